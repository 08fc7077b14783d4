# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Classic targets of variational inference, read from a folder ``classic``.

``sonar``, ``ionosphere``: logistic regression, N(0, 1) on all coefficients. ``credit_flat``,
``credit_n10``, ``credit_gym``: German credit as the sampling literature has it (flat prior), the
same with N(0, 10^2), and as the inference gym has it. ``seeds``: the BUGS example with a Gamma
precision. ``brownian``: the inference gym's Brownian motion, its middle unobserved.
"""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from .target import Model, Moments, Target

# Models


def logistic_regression(design: Tensor, y: Tensor, scale: float | None = 1.0) -> None:
    """Logistic regression with N(0, scale^2) on all coefficients, or a flat prior (None)."""
    size = design.shape[-1]
    if scale is None:
        prior = dist.ImproperUniform(constraints.real, (), (size,))
    else:
        prior = dist.Normal(y.new_zeros(size), scale).to_event(1)
    beta = pyro.sample("beta", prior)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=_linear(design, beta)), obs=y)


def seeds(x1: Tensor, x2: Tensor, n: Tensor, r: Tensor) -> None:
    """Germination of seeds: a binomial regression with an effect for each plate of seeds."""
    zero = x1.new_tensor(0.0)
    tau = pyro.sample("tau", dist.Gamma(x1.new_tensor(0.01), 0.01))
    a0 = pyro.sample("a0", dist.Normal(zero, 10.0))
    a1 = pyro.sample("a1", dist.Normal(zero, 10.0))
    a2 = pyro.sample("a2", dist.Normal(zero, 10.0))
    a12 = pyro.sample("a12", dist.Normal(zero, 10.0))
    with pyro.plate("dish", len(r)):
        b = pyro.sample("b", dist.Normal(zero, tau.rsqrt()))
        logits = a0 + a1 * x1 + a2 * x2 + a12 * x1 * x2 + b
        pyro.sample("r", dist.Binomial(n, logits=logits), obs=r)


def brownian(observed: Tensor) -> None:
    """A Brownian motion seen with noise; NaN marks the times it isn't seen at."""
    zero = observed.new_tensor(0.0)
    step = pyro.sample("innovation_noise_scale", dist.LogNormal(zero, 2.0))
    noise = pyro.sample("observation_noise_scale", dist.LogNormal(zero, 2.0))
    loc = zero
    for t, seen in enumerate(observed, start=1):
        loc = pyro.sample(f"loc_{t}", dist.Normal(loc, step))
        if not torch.isnan(seen):
            pyro.sample(f"observed_{t}", dist.Normal(loc, noise), obs=seen)


def _linear(design: Tensor, beta: Tensor) -> Tensor:
    """Gives ``design @ beta`` in the data plate; see the same function of the regressions.

    A ``beta`` of vectorised particles has shape ``(..., 1, k)``: the 1 is the plate's place.
    """
    return design @ beta if beta.dim() == 1 else (design @ beta.mT).squeeze(-1)


# Data


def _binary(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    table = np.loadtxt(folder / name, delimiter=",", skiprows=1)
    return table[:, :-1], table[:, -1]


def _columns(folder: Path, name: str) -> dict[str, Tensor]:
    table = np.genfromtxt(folder / name, delimiter=",", names=True)
    return {column: torch.from_numpy(table[column].copy()) for column in table.dtype.names}


def _standardised(x: np.ndarray) -> np.ndarray:
    sd = x.std(0)
    sd[sd == 0] = 1.0  # a constant column is left at 0
    return (x - x.mean(0)) / sd


def _with_ones(x: np.ndarray, *, last: bool = False) -> np.ndarray:
    ones = np.ones((len(x), 1))
    return np.hstack([x, ones] if last else [ones, x])


def _standardised_regression(name: str) -> Callable[[Path], tuple[Model, tuple[Any, ...]]]:
    def build(folder: Path) -> tuple[Model, tuple[Any, ...]]:
        x, y = _binary(folder, name)
        return logistic_regression, _tensors(_with_ones(_standardised(x)), y)

    return build


def _credit(scale: float | None) -> Callable[[Path], tuple[Model, tuple[Any, ...]]]:
    def build(folder: Path) -> tuple[Model, tuple[Any, ...]]:
        x, y = _binary(folder, "german_credit.csv")
        # In that literature p(y = 1) = sigmoid(-X b): the sign sits in the design here.
        return logistic_regression, (*_tensors(-_with_ones(x / x.std(0)), y), scale)

    return build


def _credit_gym(folder: Path) -> tuple[Model, tuple[Any, ...]]:
    x, y = _binary(folder, "german_credit.csv")
    return logistic_regression, _tensors(_with_ones(_standardised(x), last=True), y)


def _seeds(folder: Path) -> tuple[Model, tuple[Any, ...]]:
    data = _columns(folder, "seeds.csv")
    return seeds, (data["x1"], data["x2"], data["n"], data["r"])


def _brownian(folder: Path) -> tuple[Model, tuple[Any, ...]]:
    return brownian, (_columns(folder, "brownian.csv")["observed"],)


def _tensors(*arrays: np.ndarray) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays)


# Registry

_ENTRIES: dict[str, Callable[[Path], tuple[Model, tuple[Any, ...]]]] = {
    "sonar": _standardised_regression("sonar.csv"),
    "ionosphere": _standardised_regression("ionosphere.csv"),
    "credit_flat": _credit(None),
    "credit_n10": _credit(10.0),
    "credit_gym": _credit_gym,
    "seeds": _seeds,
    "brownian": _brownian,
}


def targets(root: Path | None = None) -> dict[str, Target]:
    """Gives the targets by name, if ``root`` holds the folder ``classic``."""
    if root is None or not (folder := Path(root) / "classic").is_dir():
        return {}
    with (folder / "targets.csv").open(newline="") as lines:
        rows = {row["target"]: row for row in csv.DictReader(lines)}
    made = {}
    for name, build in _ENTRIES.items():
        model, args = build(folder)
        log_z, se = float(rows[name]["logZ"]), float(rows[name]["logZ_se"])
        moments = (lambda: _brownian_moments(folder)) if name == "brownian" else None
        made[name] = Target(
            name, model, args, log_z=log_z, log_z_se=se, moments=moments, group="classic"
        )
    return made


def _brownian_moments(folder: Path) -> Moments:
    """The exact means and sds, by quadrature, on the constrained scale."""
    mean, sd = {}, {}
    with (folder / "brownian_reference.csv").open(newline="") as lines:
        for row in csv.DictReader(lines):
            # The file's loc[1] is the site loc_1.
            site = row["parameter"].replace("[", "_").removesuffix("]")
            mean[site], sd[site] = np.array(float(row["mean"])), np.array(float(row["sd"]))
    return Moments(mean, sd)
