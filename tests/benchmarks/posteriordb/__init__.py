# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Posteriors to be approximated: ports of posteriordb, and others of which the answer is known."""

from __future__ import annotations

from pathlib import Path

from . import classic, models, sbibm, synthetic, traps
from .database import Database, Draws, MissingData
from .target import Modes, Moments, Target

__all__ = ["Database", "Draws", "MissingData", "Modes", "Moments", "Target", "targets"]


def targets(root: str | Path | None = None) -> dict[str, Target]:
    """Gives all targets that can be had, by name; ``group`` says which family each is of.

    Args:
        root: A folder that holds ``posteriordb``, and ``classic`` and ``sbibm`` where those are
            wanted. Without it only those that need no files are given.

    Raises:
        MissingData: If ``root`` is given and no checkout of posteriordb is there.
    """
    made = models.targets(root)
    for module in (classic, sbibm, synthetic, traps):
        made |= module.targets(None if root is None else Path(root))
    return made
