# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The radon posteriors by quadrature over their scales: exact moments and log Z.

Given the scales everything is Gaussian. With y = z u + w b + noise in each county, u = m + s raw
and theta = (m, b), the raw effects are integrated out first, then theta:

- precision of a county's raw effects given theta: B = 1 + s z'z s / sigma^2;
- precision of theta: A = 1 / 100 + sum of F'F / sigma^2 - (s z'F)' B^-1 (s z'F) / sigma^4, where
  F = (z, w);
- raw given theta has the mean B^-1 s z'(y - F theta) / sigma^2.
"""

from __future__ import annotations

import itertools
import math
from typing import TypeAlias

import numpy as np

from .target import Target

Array: TypeAlias = np.ndarray
Axis: TypeAlias = tuple[float, float, int]

_LOG_2PI = math.log(2 * math.pi)
_PRIOR_VARIANCE = 100.0


def radon(target: Target, axes: dict[str, Axis]) -> tuple[dict[str, tuple[Array, Array]], float]:
    """Means and sds of the unconstrained sites of both forms, and log Z.

    Args:
        target: A radon target, of either form.
        axes: By the site of a scale, sigma_y last: the ends of its log and the number of points.
    """
    cross, count, effects = _cross(target)
    grid = [np.linspace(*axis) for axis in axes.values()]
    log_mass, means, variances = [], [], []
    for point in itertools.product(*grid):
        value, mean, variance = _given(cross, count, np.exp(point[:effects]), math.exp(point[-1]))
        # Half-normal priors, and the Jacobian of the logs.
        prior = sum(math.log(2) - _LOG_2PI / 2 - math.exp(2 * x) / 2 + x for x in point)
        log_mass.append(value + prior)
        means.append(np.append(point, mean))
        variances.append(np.append(np.zeros(len(point)), variance))
    step = math.prod(axis[1] - axis[0] for axis in grid)
    peak = max(log_mass)
    weights = np.exp(np.array(log_mass) - peak)
    log_z = peak + math.log(weights.sum() * step)
    weights /= weights.sum()
    mean = weights @ np.array(means)
    variance = weights @ (np.array(variances) + (np.array(means) - mean) ** 2)
    names = _names(axes, cross, effects)
    return {name: (mean[at], np.sqrt(variance[at])) for name, at in names.items()}, log_z


def _cross(target: Target) -> tuple[Array, int, int]:
    """Sums over the rows of each county of (z, w, y) (z, w, y)', the rows, and the size of z."""
    county, *columns, counties = target.args
    rows = np.stack([np.ones(len(county)), *(column.numpy() for column in columns)], -1)
    cross = np.zeros((counties, rows.shape[1], rows.shape[1]))
    np.add.at(cross, county.numpy(), rows[:, :, None] * rows[:, None, :])
    return cross, len(rows), 2 if "slopes" in target.name else 1


def _given(cross: Array, count: int, scale: Array, noise: float) -> tuple[float, Array, Array]:
    """The log density of y given the scales; means and variances of theta, raw and effects."""
    size, fixed = len(scale), cross.shape[1] - 1
    scaled = scale[:, None] * cross[:, :size] / noise**2
    precision = np.eye(size) + scaled[:, :, :size] * scale
    inverse = np.linalg.inv(precision)
    solved = inverse @ scaled
    whole = (cross / noise**2 - scaled.swapaxes(1, 2) @ solved).sum(0)
    inner = whole[:fixed, :fixed] + np.eye(fixed) / _PRIOR_VARIANCE
    cov = np.linalg.inv(inner)
    theta = cov @ whole[:fixed, fixed]
    log_density = -count * (math.log(noise) + _LOG_2PI / 2) - whole[fixed, fixed] / 2
    log_density -= np.linalg.slogdet(precision)[1].sum() / 2 + np.linalg.slogdet(inner)[1] / 2
    log_density += theta @ inner @ theta / 2 - fixed * math.log(_PRIOR_VARIANCE) / 2
    slope, start = -solved[:, :, :fixed], solved[:, :, fixed]
    own = np.diagonal(inverse, axis1=1, axis2=2)
    means, variances = [theta], [np.diag(cov)]
    for unit, shift in ((np.ones(size), 0.0), (scale, np.eye(size, fixed))):
        direction = unit[:, None] * slope + shift
        means.append((unit * start + direction @ theta).T.ravel())
        spread = np.einsum("jkf,fg,jkg->jk", direction, cov, direction)
        variances.append((unit**2 * own + spread).T.ravel())
    return float(log_density), np.concatenate(means), np.concatenate(variances)


def _names(axes: dict[str, Axis], cross: Array, effects: int) -> dict[str, int | slice]:
    """Where each site stands in the vectors of means."""
    out: dict[str, int | slice] = {name: i for i, name in enumerate(axes)}
    names, start = ("alpha", "beta")[:effects], len(axes)
    out |= {f"mu_{name}": start + i for i, name in enumerate(names)}
    if effects == 1:
        out["beta"] = slice(start + 1, start + 3)
    start += cross.shape[1] - 1
    for suffix in ("_raw", ""):
        for name in names:
            out[name + suffix] = slice(start, start + len(cross))
            start += len(cross)
    return out
