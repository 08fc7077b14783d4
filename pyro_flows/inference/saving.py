# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A posterior on disk: plain tensors, arrays and JSON, read back without running anything."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_flows._version import __version__
from pyro_flows.diagnostics import Verdict, importance_weights
from pyro_flows.errors import SavedPosteriorError
from pyro_flows.guides import AutoFlow, LogJoint, named_sites
from pyro_flows.inference.randomness import seeded
from pyro_flows.training import Report
from pyro_flows.training.folders import told, write_folder

if TYPE_CHECKING:
    from pyro_flows.inference.posterior import Posterior

FORMAT = 2
FILES = ("posterior.json", "guide.pt", "arrays.npz")
ARRAYS = frozenset({"z", "log_p", "log_q"})
DTYPES = {str(t).removeprefix("torch."): t for t in (torch.float32, torch.float64)}
KINDS = {"seed": int, "modes": int, "cost": dict, "verdict": dict, "report": dict, "sites": dict}
# Stored draws on which the given model must have the saved log density.
CHECK_POINTS = 8
SCALARS = (type(None), int, float, str, bool, Tensor, torch.nn.Parameter)


def save(posterior: Posterior, path: Path) -> Path:
    """See :meth:`Posterior.save`."""
    guide = posterior.guide
    if not isinstance(guide, AutoFlow):
        raise SavedPosteriorError(
            f"Posterior.save expected an AutoFlow guide, but got {type(guide).__name__}. Save its "
            "state_dict yourself: torch.save(posterior.guide.state_dict(), path)."
        )
    if guide.flow_name is None:
        raise SavedPosteriorError(
            "Posterior.save expected a flow with a registered name, but this guide's was given as "
            "an object, so it can't be built again. Register its constructor "
            "(@flows.register_flow) and fit with flow='name'."
        )
    args, kwargs = _without_numpy((posterior.args, posterior.kwargs))
    plain = _is_plain((args, kwargs))
    config = {
        "format": FORMAT,
        "pyro_flows": __version__,
        "flow": guide.flow_name,
        "dtype": str(next(guide.parameters()).dtype).removeprefix("torch."),
        "sites": _sites(guide),
        "modes": guide.modes,
        "seed": posterior.seed,
        "cost": posterior.cost,
        "verdict": asdict(posterior.verdict),
        "report": {k: v for k, v in asdict(posterior.report).items() if k != "history"},
        "arguments_saved": plain,
    }
    arrays = {
        "z": posterior.pool.z,
        "log_p": posterior.pool.log_p,
        "log_q": posterior.pool.log_q,
        **{f"history_{k}": v for k, v in posterior.report.history.items()},
    }
    tensors = {
        "guide": guide.state_dict(),
        "model_state": dict(posterior.model_state),
    }
    if plain:
        tensors["arguments"] = {"args": list(args), "kwargs": dict(kwargs)}

    def write(folder: Path) -> None:
        (folder / FILES[0]).write_text(json.dumps(config, indent=1), encoding="utf-8")
        torch.save(tensors, folder / FILES[1])
        np.savez_compressed(folder / FILES[2], **arrays)  # type: ignore[arg-type]

    refusal = SavedPosteriorError(
        f"Posterior.save expected a new name or an older posterior, but {path} is something else. "
        "Choose another name."
    )
    write_folder(path, FILES[0], write, refusal)
    return path


def load(path: Path, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Posterior:
    """See :meth:`Posterior.load`."""
    from pyro_flows.inference.posterior import Pool, Posterior

    config, tensors, arrays = _read(path)
    if not args and not kwargs:
        if not config["arguments_saved"]:
            raise SavedPosteriorError(
                f"{path} was fitted to arguments that aren't plain tensors and values, so they "
                "weren't saved. Pass them: Posterior.load(path, model, *args, **kwargs)."
            )
        saved = tensors["arguments"]
        args, kwargs = tuple(saved["args"]), saved["kwargs"]
    guide = AutoFlow(model, config["flow"], dtype=DTYPES[config["dtype"]])
    try:
        with seeded(config["seed"]):
            guide.setup(*args, **kwargs)
        found = _sites(guide)
    except Exception as error:  # the given model is any code
        raise SavedPosteriorError(
            f"{path} was fitted to a model with the sites {config['sites']}, but the given model "
            f"can't be run with the saved arguments ({error}). Pass the model it was fitted to."
        ) from error
    if found != config["sites"]:
        raise SavedPosteriorError(
            f"{path} was fitted to a model with the sites {config['sites']}, but the given model "
            f"has {found}. Pass the model and arguments it was fitted to."
        )
    try:
        if config["modes"] > 1:
            loc = guide._init_loc().to(next(guide.parameters()))
            locs, eye = loc.expand(config["modes"], -1), torch.eye(len(loc), device="cpu").to(loc)
            guide.split(locs, eye.expand(len(locs), -1, -1), torch.ones(len(locs), device="cpu"))
        guide.load_state_dict(tensors["guide"])
    except RuntimeError as error:
        raise SavedPosteriorError(
            f"{path} holds parameters of another architecture: {str(error).splitlines()[0]} "
            "Load it with the version of pyro_flows that wrote it, "
            f"{config['pyro_flows']} (this is {__version__})."
        ) from error
    log_joint = LogJoint(model, guide, args, kwargs, through=guide.noncentring)
    wanted, own = _shapes(tensors["model_state"]), _shapes(log_joint.parameters)
    if own != wanted:
        raise SavedPosteriorError(
            f"{path} was fitted to a model with the parameters {wanted}, but the given model has "
            f"{own}. Pass the model and arguments it was fitted to."
        )
    pool = Pool(arrays["z"], arrays["log_p"], arrays["log_q"])
    history = {k[len("history_") :]: v for k, v in arrays.items() if k.startswith("history_")}
    posterior = Posterior(
        guide=guide,
        log_joint=log_joint,
        pool=pool,
        weights=importance_weights(pool.log_p, pool.log_q),
        verdict=_verdict(config["verdict"]),
        report=Report(**config["report"], history=history),
        cost=config["cost"],
        seed=config["seed"],
        args=args,
        kwargs=kwargs,
        model_state=tensors["model_state"],
    )
    _check_log_p(path, posterior)
    return posterior


@torch.no_grad()
def _check_log_p(path: Path, posterior: Posterior) -> None:
    """Raise if the given model's log density isn't the saved one at a few stored draws."""
    log_joint, pool = posterior.log_joint, posterior.pool
    index = np.flatnonzero(np.isfinite(pool.log_p))[:CHECK_POINTS]
    if log_joint.stochastic or not len(index):
        return
    x = torch.as_tensor(pool.z[index]).to(next(posterior.guide.parameters()))
    with seeded(posterior.seed), posterior.under_model_state():
        if log_joint.through is None:
            log_p = log_joint(x)
        else:
            u = log_joint.through.inv(x)
            log_p = log_joint(u) - log_joint.through.forward_and_ladj(u)[1]
    got, expected = log_p.cpu().double().numpy(), pool.log_p[index]
    tolerance = 1e-6 if log_p.dtype == torch.float64 else 1e-3
    agree = np.abs(got - expected) <= tolerance * np.maximum(1.0, np.abs(expected))
    if not agree.all():
        worst = int(np.argmin(agree))
        raise SavedPosteriorError(
            f"The log densities saved in {path} differ from the given model's: at a stored draw "
            f"expected {expected[worst]:.8g}, but got {got[worst]:.8g}. Pass the model and "
            "arguments it was fitted to."
        )


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        raise SavedPosteriorError(
            f"Expected a posterior saved by Posterior.save at {path}, a directory with "
            f"{', '.join(FILES)}, but {', '.join(missing)} is missing. Check the path."
        )
    try:
        config = json.loads((path / FILES[0]).read_text(encoding="utf-8"))
        version = config["format"]
    except Exception as error:  # what isn't ours can fail in any way
        raise _damaged(path, error) from error
    if version != FORMAT:
        raise SavedPosteriorError(
            f"{path} has format {version}, but this version of pyro_flows "
            f"({__version__}) reads format {FORMAT}. Use the version that wrote it, "
            f"{config.get('pyro_flows')}."
        )
    try:
        with warnings.catch_warnings():  # torch warns of foreign pickles before it refuses them
            warnings.simplefilter("ignore")
            # weights_only: tensors and plain containers, never code.
            tensors = torch.load(path / FILES[1], weights_only=True, map_location="cpu")
        with (path / FILES[2]).open("rb") as file, np.load(file, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in loaded.files}
        _check_complete(config, tensors, arrays)
    except Exception as error:
        raise _damaged(path, error) from error
    return config, tensors, arrays


def _check_complete(config: Any, tensors: Any, arrays: Any) -> None:
    """Raise ValueError if a part is missing, or the arrays aren't of the same draws."""
    names = {"sites", "modes", "flow", "dtype", "seed", "cost", "verdict", "report", "pyro_flows"}
    names.add("arguments_saved")
    wanted = {"guide", "model_state"} | ({"arguments"} if config.get("arguments_saved") else set())
    lacking = [*(names - set(config)), *(wanted - set(tensors)), *(ARRAYS - set(arrays))]
    if lacking:
        raise ValueError(f"without {', '.join(sorted(lacking))}")
    lengths = {len(arrays[name]) for name in ARRAYS}
    if len(lengths) > 1:
        raise ValueError(f"arrays of {sorted(lengths)} draws")
    if config["dtype"] not in DTYPES:
        raise ValueError(f"unknown dtype {config['dtype']}")
    wrong = [name for name, kind in KINDS.items() if type(config[name]) is not kind]
    if wrong or not {"gradients", "seconds"} <= set(config["cost"]):
        raise ValueError(f"another kind of {', '.join(wrong) or 'cost'}")
    _verdict(config["verdict"])
    Report(**config["report"])


def _verdict(saved: dict[str, Any]) -> Verdict:
    texts = (
        saved["reasons"],
        saved["advice"],
        saved.get("anchors", ()),
    )  # older files: no anchors
    return Verdict(saved["status"], *(tuple(map(str, text)) for text in texts))


def _damaged(path: Path, error: Exception) -> SavedPosteriorError:
    return SavedPosteriorError(
        f"{path} is damaged, or wasn't written by Posterior.save "
        f"({told(error)}). Restore it from a copy, or fit again."
    )


def _sites(guide: AutoFlow) -> dict[str, list[int]]:
    return {name: list(site["value"].shape) for name, site in named_sites(guide)}


def _shapes(tensors: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(value.shape) for name, value in tensors.items()}


def _is_plain(value: Any) -> bool:
    """Whether a value can be read back, with its type, without running code."""
    # Exact types: a subclass (a namedtuple, an enum of texts) is code, and would be refused.
    if type(value) in (list, tuple):
        return all(map(_is_plain, value))
    if type(value) is dict:
        return all(type(k) is str and _is_plain(v) for k, v in value.items())
    return type(value) in SCALARS


def _without_numpy(value: Any) -> Any:
    """The same with numpy's scalars as Python's."""
    if type(value) in (list, tuple):
        return type(value)(map(_without_numpy, value))
    if type(value) is dict:
        return {k: _without_numpy(v) for k, v in value.items()}
    return value.item() if isinstance(value, np.generic) else value
