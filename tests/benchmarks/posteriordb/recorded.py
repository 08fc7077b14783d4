# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Reference moments that references.py made by long runs of NUTS, from the folder references.

``NAME.json`` holds, by site, ``mean``, ``sd`` and their standard errors ``mean_se``, ``sd_se`` on
the unconstrained scale, and ``quantiles`` of the constrained values; ``how`` says how they were
made, and how good the runs were.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from .target import Moments

FOLDER = Path(__file__).with_name("references")


def recorded(name: str) -> Callable[[], Moments] | None:
    """Gives the reader of a target's moments, or None where there are none."""
    file = FOLDER / f"{name}.json"
    return partial(_read, file) if file.is_file() else None


def _read(file: Path) -> Moments:
    values = json.loads(file.read_text())
    del values["how"]
    arrays = {
        key: {site: np.array(value) for site, value in by_site.items()}
        for key, by_site in values.items()
    }
    return Moments(**arrays, constrained=False)
