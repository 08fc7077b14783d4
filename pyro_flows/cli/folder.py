# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The folder of a fit: what lies in it, and that nothing else is written over."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_flows._version import __version__
from pyro_flows.errors import OptionError, SavedPosteriorError

if TYPE_CHECKING:
    import torch

MARKER = "fit.json"
FORMAT = 1
# Numbers in the data from which on all processors are worth having.
LITTLE = 100_000


def check_free(folder: Path, kind: str) -> None:
    """Raise OptionError unless the folder is new, empty, or of an earlier fit of that kind.

    Args:
        folder: where results are to go.
        kind: "posterior" or "density".
    """
    if folder.is_dir():
        if not any(folder.iterdir()):
            return
        try:
            if read_marker(folder).get("kind") == kind:
                return
        except SavedPosteriorError:
            pass
    elif not os.path.lexists(folder):
        return
    raise OptionError(
        f"Expected a new folder to write to, or one of an earlier fit of this kind, but {folder} "
        "is something else. Choose another by -o."
    )


def for_interrupted(folder: Path) -> Path:
    """Where an interrupted fit goes: beside an earlier one, which may be a whole one."""
    from pyro_flows.training.folders import free_name

    return free_name(folder, "_interrupted") if (folder / MARKER).exists() else folder


def read_marker(folder: Path) -> dict[str, Any]:
    """What an earlier fit noted of itself.

    Raises:
        SavedPosteriorError: there is no such note, or it isn't ours.
    """
    path = folder / MARKER
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["pyro_flows_fit"] != FORMAT:
            raise ValueError(f"format {found['pyro_flows_fit']}")
    except Exception as error:  # what isn't ours can fail in any way
        raise SavedPosteriorError(
            f"Expected the folder of a fit at {folder}, with a {MARKER} of ours, but got none "
            f"({type(error).__name__}). Check the path."
        ) from error
    return dict(found)


def write_marker(folder: Path, kind: str, **facts: Any) -> None:
    """Note what the folder is, and how it was made."""
    known = {"pyro_flows_fit": FORMAT, "kind": kind, "pyro_flows": __version__, **facts}
    write_text(folder / MARKER, json.dumps(known, indent=1, default=str) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside ``path``, with its ending; what was written there then takes its place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.stem}.partial{os.getpid()}{path.suffix}")
    try:
        yield draft
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def precision(dtype: str, device: str | None) -> Iterator[tuple[torch.dtype, torch.device]]:
    """Everything in one dtype and on one device, the model's own constants included."""
    import torch

    from pyro_flows.density.device import device_trouble

    trouble = None if device is None else device_trouble(device)
    if trouble:
        raise OptionError(
            f"Expected --device to be one that torch has here, such as cpu, but got {device!r} "
            f"({trouble}). Leave it out for the CPU."
        )
    before, wanted = torch.get_default_dtype(), getattr(torch, dtype)
    place = torch.device(device or "cpu")
    torch.set_default_dtype(wanted)
    try:
        # On the CPU nothing is set, so that a model may choose for itself.
        with torch.device(place) if device else _nothing():
            yield wanted, place
    finally:
        torch.set_default_dtype(before)


@contextmanager
def threads(number: int | None, numbers: int) -> Iterator[None]:
    """So many threads inside; by default one where there are few numbers to work on.

    Threads wait for one another after each operation. With small ones that is most of the time,
    and where another program holds one of the processors nearly all of it: eight schools took 22
    minutes then, in place of 40 seconds.
    """
    import torch

    before = torch.get_num_threads()
    few = numbers < LITTLE and "OMP_NUM_THREADS" not in os.environ
    torch.set_num_threads(number or (1 if few else before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _nothing() -> Iterator[None]:
    yield
