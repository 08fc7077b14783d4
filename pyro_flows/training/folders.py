# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A fit on disk is a folder: written whole or not at all, and nothing beside it is touched."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path

from pyro_flows.errors import PyroFlowsError


def told(error: Exception) -> str:
    """What reading a file failed of, in brief.

    Not in torch's words where it refuses code: they advise to run it.
    """
    if isinstance(error, pickle.UnpicklingError):
        return "it holds other things than tensors, or code, which is never run"
    lines = str(error).splitlines()
    first = lines[0].split(". ")[0].rstrip(".")[:200] if lines else ""
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def write_folder(
    path: Path, marker: str, write: Callable[[Path], None], refusal: PyroFlowsError
) -> None:
    """Make the folder ``path``, or put it in the place of an older one of its kind.

    It is written beside and moved into place, so that an interrupted save loses nothing: the
    folder, or the older one, is there whatever happens.

    Args:
        path: the folder's name; folders above it are made.
        marker: a file that every folder of this kind holds.
        write: fills an empty folder.
        refusal: raised if ``path`` is something else, which may be the user's.
    """
    path = path.resolve()  # what a link points to is replaced, not the link
    if path.exists() and not (path / marker).exists():
        raise refusal
    draft, aside = free_name(path, ".partial"), free_name(path, ".older")
    draft.mkdir(parents=True)
    try:
        write(draft)
        if not path.exists():
            draft.rename(path)
            return
        path.rename(aside)
        try:
            draft.rename(path)
        except BaseException:
            aside.rename(path)
            raise
        shutil.rmtree(aside)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def free_name(path: Path, end: str) -> Path:
    """A name beside ``path`` that nobody uses: what is there may be the user's."""
    names = (path.with_name(f"{path.name}{end}{number}") for number in count())
    return next(name for name in names if not os.path.lexists(name))
