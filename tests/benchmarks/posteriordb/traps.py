# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Targets that a verdict may be wrong about, each with what is known of it.

- ``mixture_90_10``, ``mixture_98_2``: two modes 8 sds apart, the second easily missed;
  ``unequal_widths``: two equal modes, sds 1 and 0.1. In 4 dimensions.
- ``cauchy``, ``t2``: no moments, or no variance. In 3 dimensions.
- ``label_switching``: a mixture's two means, exchangeable, their modes overlap;
  ``sign_flip``: a factor model with latent scores, the same under a change of all signs.
- ``beta``, ``gamma``: Beta(0.1, 0.1) and Gamma(0.05), nearly all mass at the ends. As a site,
  Beta loses 1.4 % of its mass: its draws above 1 - 1e-16 can't be told from 1 in float64.
- ``separated_logistic``, ``flat_log_sigma``, ``ridge``: no posterior exists (``improper``).
- ``edge_nan``, ``edge_inf``: a steady state that exists on one side of a line only; on the other
  the log joint is NaN, or -inf. ``explosion``: an ODE whose solution overflows to -inf, with NaN
  gradients, close to where the mass is.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import softplus

from .forms import N_DRAWS, SEED, Density, Grid, both_forms, by_grid, zero
from .synthetic import mixture, student_t
from .target import Modes, Target

Sites = dict[str, Tensor]

# By quadrature; test_traps.py repeats it.
_LOG_Z = {
    "label_switching": -63.6960350325,
    "sign_flip": -104.7030256749,
    "edge": -2.2492712512,
    "explosion": -5.0259841249,
}


def _float64(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Modes of unequal weight or width, heavy tails, ends


def _two_modes(weight: float, sds: tuple[float, float]) -> Density:
    """Two round Gaussians in 4 dimensions, 8 apart along the diagonal."""
    means = torch.full((4,), 2.0, dtype=torch.float64) * _float64(-1.0, 1.0)[:, None]
    return mixture(_float64(weight, 1 - weight), means, _float64(*sds))


def _beta(a: float) -> Density:
    """Beta(a, a), on the logit scale."""
    constant = math.lgamma(2 * a) - 2 * math.lgamma(a)

    def sample(rng: np.random.Generator, count: int) -> np.ndarray:
        # As log(G1 / G2) of two Gammas, each on the log scale: no draw is rounded to an end.
        first, second = _log_gamma_draws(rng, a, count), _log_gamma_draws(rng, a, count)
        return first - second

    def natural() -> None:
        pyro.sample("x", dist.Beta(zero() + a, zero() + a))

    def sites(z: np.ndarray) -> dict[str, np.ndarray]:
        return {"x": torch.sigmoid(torch.from_numpy(z[:, 0])).numpy()}

    def log_density(z: Tensor) -> Tensor:
        return (constant - a * (softplus(z) + softplus(-z))).squeeze(-1)

    return Density(1, log_density, sample, natural=natural, sites=sites)


def _gamma(a: float) -> Density:
    """Gamma(a, 1), on the log scale."""

    def natural() -> None:
        pyro.sample("x", dist.Gamma(zero() + a, 1.0))

    return Density(
        1,
        lambda z: (a * z - z.exp() - math.lgamma(a)).squeeze(-1),
        lambda rng, count: _log_gamma_draws(rng, a, count),
        natural=natural,
        sites=lambda z: {"x": np.exp(z[:, 0])},
    )


def _log_gamma_draws(rng: np.random.Generator, a: float, count: int) -> np.ndarray:
    """Logs of Gamma(a) draws, by Gamma(a) = Gamma(a + 1) U^(1 / a)."""
    boosted = np.log(rng.gamma(a + 1, size=(count, 1)))
    return boosted + np.log1p(-rng.random((count, 1))) / a


# Symmetries


def label_switching(y: Tensor) -> None:
    """The two means of a mixture with equal weights and known sds."""
    with pyro.plate("component", 2):
        mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 2.0))
    components = dist.Normal(mu[..., None, :], 1.0)
    with pyro.plate("data", len(y)):
        pyro.sample(
            "y", dist.MixtureSameFamily(dist.Categorical(_float64(0.5, 0.5)), components), obs=y
        )


def _label_switching() -> Target:
    rng = np.random.default_rng(SEED)
    y = torch.from_numpy(rng.standard_normal(40) + np.repeat([-0.5, 0.5], 20))

    def canonical(sites: Sites) -> Sites:
        return {"mu": torch.as_tensor(sites["mu"]).sort(-1).values}

    modes = Modes(assign=lambda z: (z[..., 0] > z[..., 1]).long(), shares=_float64(0.5, 0.5))
    target = Target(
        "label_switching", label_switching, (y,), modes=modes, canonical=canonical, group="trap"
    )
    return by_grid(target, _LOG_Z["label_switching"], ((-3.5, 3.5),) * 2, lambda z: {"mu": z})


def sign_flip(y: Tensor) -> None:
    """A factor model with one factor: loadings and scores, known up to their common sign."""
    people = pyro.plate("person", y.shape[0], dim=-2)
    variables = pyro.plate("variable", y.shape[1], dim=-1)
    with variables:
        loading = pyro.sample("loading", dist.Normal(y.new_tensor(0.0), 1.0))
    with people:
        score = pyro.sample("score", dist.Normal(y.new_tensor(0.0), 1.0))
    with people, variables:
        pyro.sample("y", dist.Normal(loading * score, 1.0), obs=y)


def _sign_flip() -> Target:
    rng = np.random.default_rng(SEED)
    data = rng.standard_normal((20, 1)) * [1.5, 1.0, 0.8] + rng.standard_normal((20, 3))
    y = torch.from_numpy(data)

    def read() -> dict[str, np.ndarray]:
        draw = np.random.default_rng(SEED)
        grid = Grid(lambda z: loadings_log_density(z, y), ((-4.0, 4.0),) * 3, 120)
        loading = grid.draws(draw, N_DRAWS)
        precision = 1 + (loading**2).sum(1)[:, None]
        score = loading @ data.T / precision
        score += draw.standard_normal(score.shape) / np.sqrt(precision)
        return {"loading": loading, "score": score[..., None]}

    def canonical(sites: Sites) -> Sites:
        loading, score = torch.as_tensor(sites["loading"]), torch.as_tensor(sites["score"])
        sign = torch.where(loading.sum(-1, keepdim=True) < 0, -1.0, 1.0)
        return {"loading": loading * sign, "score": score * sign[..., None]}

    return Target(
        "sign_flip",
        sign_flip,
        (y,),
        log_z=_LOG_Z["sign_flip"],
        modes=Modes(assign=lambda z: (z[..., :3].sum(-1) > 0).long(), shares=_float64(0.5, 0.5)),
        canonical=canonical,
        group="trap",
        _read_reference=read,
    )


def loadings_log_density(loading: Tensor, y: Tensor) -> Tensor:
    """The log joint of ``sign_flip`` with the scores integrated out, at loadings ``(n, 3)``."""
    length = 1 + (loading**2).sum(-1)
    square = y.square().sum() - (loading @ (y.T @ y) * loading).sum(-1) / length
    prior = -0.5 * (length - 1) - 1.5 * math.log(2 * math.pi)
    constant = -0.5 * y.numel() * math.log(2 * math.pi)
    return prior + constant - 0.5 * square - 0.5 * len(y) * length.log()


# No posterior

_FLAT = dist.ImproperUniform(constraints.real, (), ())


def separated_logistic(x: Tensor, y: Tensor) -> None:
    """Logistic regression, flat prior, on data that a line separates."""
    intercept, slope = pyro.sample("intercept", _FLAT), pyro.sample("slope", _FLAT)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=intercept + slope * x), obs=y)


def flat_log_sigma(y: Tensor) -> None:
    """The mean and the log sd of a single observation, both flat."""
    mu, log_sigma = pyro.sample("mu", _FLAT), pyro.sample("log_sigma", _FLAT)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, log_sigma.exp()), obs=y)


def ridge(y: Tensor) -> None:
    """Data that say something of a + b only, both flat."""
    a, b = pyro.sample("a", _FLAT), pyro.sample("b", _FLAT)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(a + b, y.new_tensor(1.0)), obs=y)


def _improper() -> dict[str, Target]:
    x = torch.linspace(-2, 2, 20, dtype=torch.float64)
    cases = {
        "separated_logistic": (separated_logistic, (x, (x > 0.3).double())),
        "flat_log_sigma": (flat_log_sigma, (_float64(1.0),)),
        "ridge": (ridge, (_float64(0.3, -0.2, 1.1, 0.6, 0.9),)),
    }
    return {
        name: Target(name, model, args, improper=True, group="trap")
        for name, (model, args) in cases.items()
    }


# Regions where nothing can be computed


def edge(y: Tensor, *, guarded: bool) -> None:
    """The steady state sqrt(a - b) of x' = a - b - x^2, seen with noise.

    Where a < b there is none: NaN, or -inf where the model's author thought of it.
    """
    a = pyro.sample("a", dist.LogNormal(y.new_tensor(0.5), 0.5))
    b = pyro.sample("b", dist.LogNormal(y.new_tensor(-0.5), 0.5))
    square = a - b
    if guarded:
        exists = square > 0
        pyro.factor("exists", torch.where(exists, 0.0, -torch.inf).to(y.dtype))
        square = torch.where(exists, square, 1.0)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(square.sqrt(), 0.3), obs=y)


def explosion(y: Tensor) -> None:
    """x' = rate x^2 in 20 Euler steps: its solution explodes in finite time."""
    rate = pyro.sample("rate", dist.LogNormal(y.new_tensor(0.0), 1.0))
    x = pyro.sample("start", dist.LogNormal(y.new_tensor(0.0), 1.0))
    for step in range(1, 21):
        x = x + 0.1 * rate * x * x
        if step % 5 == 0:
            pyro.sample(f"y_{step}", dist.Normal(x, 0.5), obs=y[step // 5 - 1])


def _regions() -> dict[str, Target]:
    seen = (_float64(0.1, 0.5, 0.2),)

    def ratio(z: np.ndarray) -> dict[str, np.ndarray]:
        return {"a": np.exp(z[:, 0] + z[:, 1]), "b": np.exp(z[:, 1])}

    def logs(z: np.ndarray) -> dict[str, np.ndarray]:
        return {"rate": np.exp(z[:, 0]), "start": np.exp(z[:, 1])}

    nan = Target("edge_nan", edge, seen, {"guarded": False}, group="trap")
    inf = Target("edge_inf", edge, seen, {"guarded": True}, group="trap")
    far = Target("explosion", explosion, (_float64(0.5, 1.1, 1.2, 2.6),), group="trap")
    return {
        # In log(a / b) and log b the edge is a side of the grid.
        "edge_nan": by_grid(nan, _LOG_Z["edge"], ((0.0, 3.0), (-3.5, 3.5)), ratio),
        "edge_inf": by_grid(inf, _LOG_Z["edge"], ((0.0, 3.0), (-3.5, 3.5)), ratio),
        "explosion": by_grid(far, _LOG_Z["explosion"], ((-5.0, 5.0), (-5.0, 3.0)), logs),
    }


def targets(root: Path | None = None) -> dict[str, Target]:
    """Gives the targets by name; none of them needs files."""
    made: dict[str, Target] = {}
    densities = {
        "mixture_90_10": _two_modes(0.9, (1.0, 1.0)),
        "mixture_98_2": _two_modes(0.98, (1.0, 1.0)),
        "unequal_widths": _two_modes(0.5, (1.0, 0.1)),
        "cauchy": student_t(1.0, 3),
        "t2": student_t(2.0, 3),
        "beta": _beta(0.1),
        "gamma": _gamma(0.05),
    }
    for name, density in densities.items():
        made |= both_forms(name, density, "trap")
    made |= {target.name: target for target in (_label_switching(), _sign_flip())}
    return made | _improper() | _regions()
