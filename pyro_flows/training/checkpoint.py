# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""An unfinished run on disk: written now and then, so that another process can go on with it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from pyro_flows._version import __version__
from pyro_flows.errors import CheckpointError, PyroFlowsError
from pyro_flows.training.folders import told

FORMAT = 1
MARKER = "checkpoint.json"
DRAFT = ".draft"
# Seconds of training that an interrupt loses at most, and the most time that writing may take, as
# a share.
EVERY, SHARE = 60.0, 0.05
# What a fact begins with that says nothing to a reader.
DIGEST = "sha256:"

now = time.monotonic


class Stateful(Protocol):
    """Something whose state is tensors, numbers and texts in plain containers."""

    def state(self) -> Any:
        """All that changes from step to step; no copies, but to be written at once."""
        ...

    def set_state(self, state: Any) -> None:
        """Go on from what :meth:`state` gave."""
        ...


class Checkpoint:
    """A folder with the state of one unfinished run.

    It is there once its JSON is, which says of which run it is and comes last. Each file is
    written beside and moved into place, so that a kill leaves what was there; and it begins with
    its digest, so that no damage goes unseen. Reading runs no code.

    Args:
        path: the folder; made when the run begins to be written.
        names: files that it may hold, beside the JSON.

    Raises:
        CheckpointError: something else is there, which may be the user's.
    """

    def __init__(self, path: str | os.PathLike[str], names: Sequence[str]) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise CheckpointError(
                f"Expected checkpoint to be the name of a folder, but got {path!r}. Give a text "
                "or a path, or None for no checkpoint."
            )
        self.path, self.names = Path(path).absolute(), tuple(names)
        if os.path.lexists(self.path) and not self.exists and not self._is_ours():
            raise CheckpointError(
                f"Expected {self.path} to be a checkpoint or a new name, but it is something "
                "else. It is left as it is; give checkpoint= another name."
            )

    @property
    def exists(self) -> bool:
        """Whether a run can go on from it."""
        return (self.path / MARKER).is_file()

    def _is_ours(self) -> bool:
        """Whether the folder is empty, but for what was left by a kill in making or removing."""
        ours = {name + end for name in (MARKER, *self.names) for end in ("", DRAFT)}
        return self.path.is_dir() and {part.name for part in self.path.iterdir()} <= ours

    def prepare(self) -> None:
        """See that it can be made, before any work is done that would be lost without it.

        Raises:
            CheckpointError: it can't be made, or not be written into.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._put(MARKER + DRAFT, b"")
            self._clear()
        except OSError as error:
            raise CheckpointError(
                f"The checkpoint {self.path} can't be written ({error}). Give checkpoint= the "
                "name of a folder that can be, or None for no checkpoint."
            ) from error

    def begin(self, facts: Mapping[str, Any], states: Mapping[str, Any]) -> None:
        """From here on there is one; where it can't be written, a warning, and the fit goes on.

        Args:
            facts: what must be the same for a run to go on, as JSON holds it.
            states: to begin with, by the name of the file.
        """
        text = json.dumps({"format": FORMAT, "facts": {**_versions(), **facts}}, indent=1)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name, state in states.items():
                self.write(name, state)
            self._put(MARKER, text.encode())
        except OSError as error:
            _warn(
                f"The checkpoint {self.path} couldn't be written; the fit goes on without", error
            )

    def check(self, facts: Mapping[str, Any]) -> None:
        """Raise CheckpointError unless it is of a run of these facts."""
        try:
            found = json.loads((self.path / MARKER).read_text(encoding="utf-8"))
            version, known = found["format"], dict(found["facts"])
        except Exception as error:  # what isn't ours can fail in any way
            raise self.damaged(error) from error
        if version != FORMAT:
            raise CheckpointError(
                f"The checkpoint {self.path} has format {version}, but this version of pyro_flows "
                f"({__version__}) reads format {FORMAT}. Go on with the version that wrote it, "
                f"{known.get('pyro_flows')}, or remove the folder to begin anew."
            )
        wanted = json.loads(json.dumps({**_versions(), **facts}))
        names = [*wanted, *(set(known) - set(wanted))]
        other = [name for name in names if known.get(name) != wanted.get(name)]
        if other:
            differ = [_difference(name, known.get(name), wanted.get(name)) for name in other]
            raise self.of_another("; ".join(differ))

    def of_another(self, what: str) -> CheckpointError:
        """The error to raise where something differs from the run that was interrupted."""
        return CheckpointError(
            f"The checkpoint {self.path} is of another run: {what}. To go on with it, fit as "
            "before; to begin anew, remove the folder or give checkpoint= another name."
        )

    def write(self, name: str, state: Any) -> None:
        """Put a state in the place of the one under this name."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        data = buffer.getvalue()
        self._put(name, hashlib.sha256(data).hexdigest().encode() + b"\n" + data)

    def read(self, name: str) -> Any:
        """The state under this name; None if there is none.

        Raises:
            CheckpointError: it is damaged, or something else.
        """
        path = self.path / name
        if not path.exists():
            return None
        try:
            digest, _, data = path.read_bytes().partition(b"\n")
            if hashlib.sha256(data).hexdigest().encode() != digest:
                raise ValueError("its digest is another")  # noqa: TRY301 (told as damage, below)
            # weights_only: tensors and plain containers, never code.
            return torch.load(io.BytesIO(data), weights_only=True)
        except Exception as error:
            raise self.damaged(error, name) from error

    def damaged(self, error: Exception, name: str = MARKER) -> CheckpointError:
        """The error to raise where a file isn't what was written."""
        return CheckpointError(
            f"The checkpoint {self.path / name} is damaged, or was written by something else "
            f"({told(error)}). Restore it from a copy, or remove the folder "
            f"{self.path} to begin anew."
        )

    def remove(self) -> None:
        """Remove what was written, and the folder if nothing else is in it."""
        try:
            self._clear()
        except OSError as error:
            _warn(f"The checkpoint {self.path} of a run that has ended couldn't be removed", error)

    def _clear(self) -> None:
        for name in (MARKER, *self.names):  # without the first it is none
            for end in ("", DRAFT):
                (self.path / (name + end)).unlink(missing_ok=True)
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    def _put(self, name: str, data: bytes) -> None:
        """Write a file whole or not at all, also if the power fails."""
        draft = self.path / (name + DRAFT)
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self.path / name)
        if os.name == "posix":
            folder = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


class Keeper:
    """Keeps one training in a checkpoint, together with what changes beside it.

    Args:
        checkpoint: made, or to go on from.
        name: the training's file.
        parts: whatever else has a state, such as random numbers; more can be put in.
    """

    def __init__(self, checkpoint: Checkpoint, name: str, parts: dict[str, Stateful]) -> None:
        self.checkpoint, self.name, self.parts = checkpoint, name, parts
        self.due = now() + EVERY

    def resume(self, training: Stateful) -> None:
        """Go on from what is there, if anything is."""
        saved = self.checkpoint.read(self.name)
        if saved is None:
            return
        try:
            training.set_state(saved["training"])
            set_states(self.parts, saved["parts"])
        except PyroFlowsError as error:
            raise self.checkpoint.of_another(str(error)) from error
        except Exception as error:
            raise self.checkpoint.damaged(error, self.name) from error

    def look(self, training: Stateful) -> None:
        """Write if it is time to."""
        if now() >= self.due:
            self.write(training)

    def write(self, training: Stateful) -> None:
        """Write now. Where that fails, the fit is worth more than its checkpoint: a warning."""
        started = now()
        try:
            state = {"training": training.state(), "parts": states(self.parts)}
            self.checkpoint.write(self.name, state)
        except OSError as error:
            _warn(
                f"The checkpoint {self.checkpoint.path} couldn't be written; the fit goes on, and "
                "what was written before is kept",
                error,
            )
        ended = now()
        self.due = ended + max(EVERY, (ended - started) / SHARE)


def states(parts: Mapping[str, Stateful]) -> dict[str, Any]:
    """The state of each part, by name."""
    return {name: part.state() for name, part in parts.items()}


def set_states(parts: Mapping[str, Stateful], saved: Mapping[str, Any]) -> None:
    """Give each part the state that :func:`states` took."""
    for name, part in parts.items():
        part.set_state(saved[name])


def digest(value: Any) -> str:
    """A fact that stands for tensors, arrays and plain values; of other objects for their type.

    Cost: reads all the data once, a second for a gigabyte or two.
    """
    found = hashlib.sha256()
    _feed(found, value)
    return DIGEST + found.hexdigest()


def layers(module: nn.Module) -> list[Any]:
    """The kinds of a module's parts, and the shapes of its tensors, for :func:`digest`."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return [
        [[name, type(part).__name__] for name, part in module.named_modules()],
        [[name, list(t.shape), str(t.dtype), t.requires_grad] for name, t in tensors],
    ]


def _feed(found: Any, value: Any) -> None:
    kind = type(value).__name__
    if isinstance(value, Tensor) and value.layout == torch.strided:
        flat = value.detach().cpu().contiguous().reshape(-1)
        found.update(f"{value.dtype} {tuple(value.shape)}".encode())
        found.update(flat.view(torch.uint8).numpy().data if len(flat) else b"")
    elif isinstance(value, (np.ndarray, np.generic)) and not value.dtype.hasobject:
        found.update(f"{value.dtype} {value.shape}".encode())
        found.update(value.tobytes())
    elif isinstance(value, Mapping):
        _feed(found, [part for pair in value.items() for part in pair])
    elif isinstance(value, (list, tuple)):
        found.update(f"{kind} {len(value)}".encode())
        for part in value:
            _feed(found, part)
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        found.update(f"{kind} {value!r}".encode())
    elif hasattr(value, "to_numpy"):  # tables of pandas and the like
        _feed(found, [list(getattr(value, "columns", ())), value.to_numpy()])
    elif hasattr(value, "tolist"):
        _feed(found, value.tolist())
    else:
        found.update(kind.encode())


def _versions() -> dict[str, str]:
    return {"pyro_flows": __version__, "torch": str(torch.__version__)}


def _difference(name: str, there: Any, here: Any) -> str:
    if str(there).startswith(DIGEST) and str(here).startswith(DIGEST):
        return f"its {name} differed"
    return f"its {name} was {there!r} and is {here!r} here"


def _warn(what: str, error: OSError) -> None:
    place = "docs/explanation/warnings.md#checkpoint-not-written"
    warnings.warn(f"{what} ({error}). More: {place}", stacklevel=2)
