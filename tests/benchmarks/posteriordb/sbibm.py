# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Two posteriors of sbibm (Lueckmann et al. 2021), read from a folder ``sbibm``.

``two_moons``: two thin crescents in a box, with a hard edge: log p is -inf beyond it. ``slcp``:
four skewed modes, equal by the signs of theta_3 and theta_4. Both for observation 1 with 10,000
reference draws. They come in two forms: a uniform prior and a factor for the likelihood, and
(``_opaque``) flat on the same box with the whole density in one factor.
"""

from __future__ import annotations

import bz2
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from .forms import opaque
from .target import Model, Modes, Target

Sites = dict[str, Tensor]


def two_moons_log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
    """The log likelihood of one point x; -inf on the far side of the crescents' edge."""
    u = x[0] + (theta[..., 0] + theta[..., 1]).abs() / math.sqrt(2) - 0.25
    v = x[1] - (theta[..., 1] - theta[..., 0]) / math.sqrt(2)
    r = torch.hypot(u, v)
    ring = -0.5 * ((r - 0.1) / 0.01) ** 2 - math.log(0.01 * math.sqrt(2 * math.pi))
    return torch.where(u > 0, ring - (math.pi * r).log(), -torch.inf)


def slcp_log_likelihood(theta: Tensor, x: Tensor) -> Tensor:
    """The log likelihood of four points (x1, y1, x2, y2, ...) of a bivariate normal."""
    mean_a, mean_b, root_a, root_b, skew = theta[..., None].unbind(-2)
    # sbibm adds 1e-6 to both variances.
    var_a, var_b = root_a**4 + 1e-6, root_b**4 + 1e-6
    cov = torch.tanh(skew) * root_a**2 * root_b**2
    det = var_a * var_b - cov**2
    a, b = x[0::2] - mean_a, x[1::2] - mean_b
    square = (var_b * a**2 - 2 * cov * a * b + var_a * b**2) / det
    return (-0.5 * square - 0.5 * det.log() - math.log(2 * math.pi)).sum(-1)


def _in_box(
    log_likelihood: Callable[[Tensor, Tensor], Tensor], dim: int, half_width: float, x: Tensor
) -> Model:
    def model() -> None:
        low = x.new_full((dim,), -half_width)
        theta = pyro.sample("theta", dist.Uniform(low, -low).to_event(1))
        pyro.factor("likelihood", log_likelihood(theta, x))

    return model


# Modes


def _two_moons_modes() -> Modes:
    # The crescents are mirror images in theta_1 + theta_2 = 0. The map from the box to the real
    # line is odd, so the sum has the same sign there.
    def assign(z: Tensor) -> Tensor:
        return (z.sum(-1) > 0).long()

    return Modes(assign=assign, shares=torch.full((2,), 0.5, dtype=torch.float64))


def _two_moons_canonical(sites: Sites) -> Sites:
    """Moves all draws to the crescent with a positive sum."""
    theta = torch.as_tensor(sites[_only(sites)])
    total, difference = theta.sum(-1).abs(), theta[..., 1] - theta[..., 0]
    return {_only(sites): torch.stack([total - difference, total + difference], -1) / 2}


def _slcp_modes() -> Modes:
    def assign(z: Tensor) -> Tensor:
        return (z[..., 2] > 0) * 2 + (z[..., 3] > 0).long()

    return Modes(assign=assign, shares=torch.full((4,), 0.25, dtype=torch.float64))


def _slcp_canonical(sites: Sites) -> Sites:
    """Makes theta_3 and theta_4 positive."""
    theta = torch.as_tensor(sites[_only(sites)])
    roots = theta[..., 2:4].abs()
    return {_only(sites): torch.cat([theta[..., :2], roots, theta[..., 4:]], -1)}


def _only(sites: Sites) -> str:
    (name,) = sites
    return name


# Registry

_TASKS = {
    "two_moons": {
        "likelihood": two_moons_log_likelihood,
        "dim": 2,
        "half_width": 1.0,
        "modes": _two_moons_modes,
        "canonical": _two_moons_canonical,
        # Exact: each crescent integrates to 1 over the box, the prior's density is 1/4.
        "log_z": (-math.log(2.0), 0.0),
    },
    "slcp": {
        "likelihood": slcp_log_likelihood,
        "dim": 5,
        "half_width": 3.0,
        "modes": _slcp_modes,
        "canonical": _slcp_canonical,
        # By importance sampling.
        "log_z": (-20.828, 0.002),
    },
}


def targets(root: Path | None = None) -> dict[str, Target]:
    """Gives the targets by name, if ``root`` holds the folder ``sbibm``."""
    if root is None or not (folder := Path(root) / "sbibm").is_dir():
        return {}
    made = {}
    for name in _TASKS:
        made |= _both_forms(name, folder / name / "num_observation_1")
    return made


def _both_forms(name: str, folder: Path) -> dict[str, Target]:
    task = _TASKS[name]
    dim, half_width, likelihood = task["dim"], task["half_width"], task["likelihood"]
    x = torch.from_numpy(_read(folder / "observation.csv")[0])
    log_prior = -dim * math.log(2 * half_width)
    box = constraints.independent(constraints.interval(-half_width, half_width), 1)
    models = {
        "theta": _in_box(likelihood, dim, half_width, x),
        "z": opaque(lambda z: log_prior + likelihood(z, x), dim, box),
    }

    def read(site: str) -> dict[str, np.ndarray]:
        return {site: _read(folder / "reference_posterior_samples.csv.bz2")}

    made = {}
    for site, model in models.items():
        full_name = name if site == "theta" else f"{name}_opaque"
        made[full_name] = Target(
            full_name,
            model,
            log_z=task["log_z"][0],
            log_z_se=task["log_z"][1],
            modes=task["modes"](),
            canonical=task["canonical"],
            opaque=site == "z",
            group="sbibm",
            _read_reference=partial(read, site),
        )
    return made


def _read(path: Path) -> np.ndarray:
    with bz2.open(path, "rt") if path.suffix == ".bz2" else path.open() as lines:
        return np.loadtxt(lines, delimiter=",", skiprows=1, ndmin=2)
