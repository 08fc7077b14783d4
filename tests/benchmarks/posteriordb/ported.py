# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What the tests of the ports share: data, points, and the comparison with a second formula."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from . import models
from .checks import constrain, reference
from .database import Database, MissingData
from .target import Target

ROOT = os.environ.get("PYRO_FLOWS_DATA")
needs_data = pytest.mark.skipif(
    ROOT is None,
    reason="Set PYRO_FLOWS_DATA to a folder that holds posteriordb, for example ../shared/data.",
)
NAMES = tuple(models.ENTRIES)
WITHOUT_DRAWS = (*(name for name in NAMES if name.startswith("radon")), "accel_gp")
WITH_DRAWS = tuple(name for name in NAMES if name not in WITHOUT_DRAWS)

Values = dict[str, Any]
Formula = Callable[[Values, Values], float]


@cache
def port(name: str) -> Target:
    """The target of that name, made once."""
    return _ports()[name]


@cache
def data(name: str) -> Values:
    """The data of a target, under Stan's names."""
    return Database(ROOT).data(models.ENTRIES[name][0])


@cache
def _ports() -> dict[str, Target]:
    return models.targets(ROOT)


def points(target: Target, count: int) -> Tensor:
    """Reference draws where there are some, else points around the mean or around 0."""
    try:
        return reference(target, count)
    except MissingData:
        rng = torch.Generator().manual_seed(0)
        z = torch.randn(count, target.dim, generator=rng, dtype=torch.float64)
    if target.moments is None:
        return z
    known = target.moments()
    if not known.constrained:
        return torch.from_numpy(np.hstack([np.ravel(v) for v in known.mean.values()])) + 0.2 * z
    mean = {name: value[None] for name, value in known.mean.items()}
    return target.unconstrain(mean) + 0.2 * z


def assert_same_as_formula(target: Target, given: Values, formula: Formula) -> None:
    """The log joint is the formula's, which has the Jacobian in it, at 5 points."""
    z = points(target, 5)
    sites = {name: value.numpy() for name, value in constrain(target, z)[0].items()}
    expected = [formula(given, {k: v[i] for k, v in sites.items()}) for i in range(len(z))]
    np.testing.assert_allclose(target.log_joint(z).numpy(), expected, rtol=1e-9, atol=1e-9)


def normal(x: Any, loc: Any, scale: Any) -> float:
    """The sum of normal log densities."""
    return float(np.sum(stats.norm.logpdf(x, loc, scale)))


def positive(*values: Any) -> float:
    """The log Jacobian of positive sites, whose unconstrained values are logs."""
    return float(sum(np.sum(np.log(value)) for value in values))
