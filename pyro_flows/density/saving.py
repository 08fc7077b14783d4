# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A density on disk: plain tensors and JSON, read back without running anything."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pyro_flows._version import __version__
from pyro_flows.density import tables
from pyro_flows.density.arguments import DTYPES, build_flow
from pyro_flows.density.columns import Columns
from pyro_flows.density.device import device_trouble
from pyro_flows.density.fitting import Rows
from pyro_flows.density.start import with_start
from pyro_flows.density.tails import Tails
from pyro_flows.density.units import Units
from pyro_flows.diagnostics.anchors import more
from pyro_flows.distributions import FlowMixture
from pyro_flows.errors import PyroFlowsError, SavedDensityError
from pyro_flows.training.folders import told, write_folder

if TYPE_CHECKING:
    from pyro_flows.density.flow_density import FlowDensity

FORMAT = 3
FILES = ("density.json", "tensors.pt")
# Facts of a fit that JSON can hold.
FACTS = ("best_score_", "best_score_se_", "stop_reason_", "n_steps_", "n_epochs_", "seconds_")
BUFFERS = ("low", "high", "loc", "scale")


def save(density: FlowDensity, path: Path) -> Path:
    """See :meth:`FlowDensity.save`."""
    # As they were in fit: what was set since says nothing of the flow that is saved.
    params = {**density.fit_params_, "support": _support(density.units_.columns)}
    params["checkpoint"] = None  # of that fit alone
    if not isinstance(params["flow"], str):
        params["flow"] = None
    if params["device"] is not None:
        params["device"] = str(torch.device(params["device"]))
    units = density.units_
    config = {
        "format": FORMAT,
        "pyro_flows": __version__,
        "params": params,
        "components": density.components_,
        "weights": density.weights_,
        "facts": {name: getattr(density, name) for name in (*FACTS, "compiled_")},
        "names": units.names,
        "context_names": units.context_names,
        "tensor": units.kind.tensor,
        "kind_dtype": str(units.kind.dtype).removeprefix("torch."),
    }
    try:
        text = json.dumps(config, indent=1, default=_plain)
    except TypeError as error:
        raise SavedDensityError(
            f"FlowDensity.save expected flow_options of plain values, but got "
            f"{params['flow_options']!r} ({error}). Register a flow that needs no such option."
        ) from error
    tensors: dict[str, Any] = {
        "flow": density.flow_.state_dict(),
        "columns": _buffers(units.columns),
        "context_columns": _buffers(units.context_columns) if units.context_columns else None,
        "heldout": {"x": density.heldout_.x, "context": density.heldout_.context},
        "history": {k: torch.as_tensor(v) for k, v in density.history_.items()},
    }

    def write(folder: Path) -> None:
        (folder / FILES[0]).write_text(text, encoding="utf-8")
        torch.save(tensors, folder / FILES[1])

    refusal = SavedDensityError(
        f"FlowDensity.save expected a new name or an older density, but {path} is something "
        "else. Choose another name."
    )
    write_folder(path, FILES[0], write, refusal)
    return path


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy as JSON can hold them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a plain value")


def _with_tuples(value: Any) -> Any:
    """Lists as tuples, however deep: widths of layers are usually given as such."""
    if isinstance(value, dict):
        return {name: _with_tuples(part) for name, part in value.items()}
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


def load(cls: type[FlowDensity], path: Path, flow: Any) -> FlowDensity:
    """See :meth:`FlowDensity.load`."""
    config, tensors = _read(path)
    params = config["params"]
    for name in {"components", "flow_options"} & set(params):  # JSON knows no tuples
        params[name] = _with_tuples(params[name])
    device = params.get("device")
    trouble = None if device is None else device_trouble(device)
    if trouble:
        warnings.warn(
            f"{path} was fitted on the device {device!r}, which isn't here ({trouble}). "
            f"It is loaded to the CPU, with device=None. {more('device-not-here')}",
            stacklevel=3,
        )
        params["device"] = None
    if flow is not None:
        params["flow"] = flow
    elif params["flow"] is None:
        raise SavedDensityError(
            f"{path} holds a flow that was given as an object or function, so it can't be built "
            "again. Pass the same: FlowDensity.load(path, flow=...)."
        )
    try:
        density = cls(**params)
        units = _units(config, tensors, density)
        made = build_flow(density.flow, units.dim, units.context_dim, density.flow_options or {})
        if config["components"] is not None:
            made = with_start(made, config["components"])
        if config["weights"] is not None:
            second = build_flow(density.flow, units.dim, 0, density.flow_options or {})
            made = FlowMixture([made, second], config["weights"])
        made.to(units.device, units.dtype)
        made.load_state_dict(tensors["flow"])
    except (PyroFlowsError, RuntimeError, TypeError) as error:
        raise SavedDensityError(
            f"{path} holds a flow of another architecture: {str(error).splitlines()[0]} Load it "
            f"with the version of pyro_flows that wrote it, {config['pyro_flows']} (this is "
            f"{__version__}), and with the flow it was fitted with."
        ) from error
    density._set_units(units)
    density.fit_params_ = density.get_params()
    density.flow_, density.components_ = made.eval(), config["components"]
    density.weights_ = config["weights"]
    for name in FACTS:
        setattr(density, name, config["facts"][name])
    density.compiled_ = config["facts"].get("compiled_", "not compiled: it was not asked for")
    density.heldout_ = Rows(**tensors["heldout"])
    density.history_ = {name: value.numpy() for name, value in tensors["history"].items()}
    return density


def _units(config: dict[str, Any], tensors: dict[str, Any], density: FlowDensity) -> Units:
    kind = tables.Kind(torch.zeros(0, dtype=DTYPES[config["kind_dtype"]]))
    kind.tensor = config["tensor"]
    context = tensors["context_columns"]
    return Units(
        _columns(tensors["columns"]),
        None if context is None else _columns(context),
        kind,
        config["names"],
        DTYPES[density.dtype],
        torch.device(density.device or "cpu"),
        config.get("context_names"),
    )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        raise SavedDensityError(
            f"Expected a density saved by FlowDensity.save at {path}, a directory with "
            f"{', '.join(FILES)}, but {', '.join(missing)} is missing. Check the path."
        )
    try:
        config = json.loads((path / FILES[0]).read_text(encoding="utf-8"))
        version = config["format"]
    except Exception as error:  # what isn't ours can fail in any way
        raise _damaged(path, error) from error
    if version != FORMAT:
        raise SavedDensityError(
            f"{path} has format {version}, but this version of pyro_flows ({__version__}) reads "
            f"format {FORMAT}. Use the version that wrote it, {config.get('pyro_flows')}."
        )
    try:
        with warnings.catch_warnings():  # torch warns of foreign pickles before it refuses them
            warnings.simplefilter("ignore")
            # weights_only: tensors and plain containers, never code.
            tensors = torch.load(path / FILES[1], weights_only=True, map_location="cpu")
        _check_complete(config, tensors)
    except Exception as error:
        raise _damaged(path, error) from error
    return config, tensors


def _check_complete(config: Any, tensors: Any) -> None:
    """Raise ValueError or KeyError if a part is missing."""
    wanted = {"flow", "columns", "context_columns", "heldout", "history"}
    lacking = wanted - set(tensors)
    lacking |= {
        "params",
        "components",
        "weights",
        "facts",
        "names",
        "tensor",
        "kind_dtype",
        "pyro_flows",
    } - set(config)
    lacking |= set(FACTS) - set(config["facts"])
    lacking |= {f"params.{name}" for name in {"flow", "dtype"} - set(config["params"])}
    if lacking:
        raise ValueError(f"without {', '.join(sorted(lacking))}")
    if any(
        set(c) != {*BUFFERS, "tails"}
        for c in (tensors["columns"], tensors["context_columns"])
        if c
    ):
        raise ValueError("columns of another kind")


def _damaged(path: Path, error: Exception) -> SavedDensityError:
    return SavedDensityError(
        f"{path} is damaged, or wasn't written by FlowDensity.save ({told(error)}). Restore it "
        "from a copy, or fit again."
    )


def _support(columns: Columns) -> list[Any] | None:
    """The bounds of the columns as JSON can hold them, and as ``support`` takes them."""
    ends = [
        [None if math.isinf(end) else end for end in (low, high)]
        for low, high in zip(columns.low.tolist(), columns.high.tolist(), strict=True)
    ]
    bounds = [None if pair == [None, None] else pair for pair in ends]
    return None if all(pair is None for pair in bounds) else bounds


def _buffers(columns: Columns) -> dict[str, Any]:
    tails = columns.tails
    return {
        **{name: getattr(columns, name) for name in BUFFERS},
        "tails": None if tails is None else dict(tails.named_buffers()),
    }


def _columns(buffers: dict[str, Any]) -> Columns:
    tails = buffers["tails"]
    return Columns(**{**buffers, "tails": None if tails is None else Tails(**tails)})
