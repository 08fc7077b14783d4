# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Synthetic targets with exact draws and exact log Z, as sites and as one opaque factor.

- ``funnel_10``, ``funnel_100`` (Neal 2003): v ~ N(0, sd 3), x_i ~ N(0, sd exp(v / 2));
  ``rotated_funnel_10_opaque``: the first, turned by a random rotation. 10 and 100 count v.
- ``banana`` (Haario 1999): x ~ N(0, sd 10), y ~ N(0.03 (x^2 - 100), 1).
- ``funana_10``, banana and funnel in one: z_0 ~ N(0, sd 10), z_1 ~ N(0, sd 3),
  z_i ~ N(0.03 (z_0^2 - 100), sd exp(z_1 / 2)).
- ``student_t2``, ``student_t5``: multivariate t in 10 dimensions, correlations 0.8^|i - j|.
- ``gmm_40``: 40 equal Gaussians in the plane, as in FAB (Midgley et al. 2023): means uniform on
  [-40, 40]^2 from ``torch.manual_seed(0)``, sd softplus(1).
- ``many_well_6``, ``many_well_32`` (FAB): for each pair of coordinates
  -x^4 + 6 x^2 + x / 2 - y^2 / 2. It is no model of sites, so it has its opaque form alone.
- ``horseshoe``, ``horseshoe_noncentered``: sparse regression of 24 coefficients, 50 parameters,
  as sites alone; log Z isn't known, and the moments are from long runs of NUTS (references.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.nn.functional import softplus

from .forms import SEED, Density, Grid, both_forms, zero
from .recorded import recorded
from .target import Modes, Target

_HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


def log_normal_density(x: Tensor, loc: Tensor | float, log_scale: Tensor | float) -> Tensor:
    """The log density of N(loc, exp(log_scale)), elementwise."""
    scale = torch.as_tensor(log_scale, dtype=x.dtype)
    return -0.5 * ((x - loc) * (-scale).exp()) ** 2 - scale - _HALF_LOG_2PI


# Funnels and bananas


def funnel(dim: int) -> Density:
    """Neal's funnel in ``dim`` coordinates, the first of them v."""

    def log_density(z: Tensor) -> Tensor:
        v, x = z[..., :1], z[..., 1:]
        top = log_normal_density(v, 0.0, math.log(3.0))
        return (top + log_normal_density(x, 0.0, v / 2).sum(-1, keepdim=True)).squeeze(-1)

    def sample(rng: np.random.Generator, count: int) -> np.ndarray:
        v = 3.0 * rng.standard_normal((count, 1))
        return np.concatenate([v, np.exp(v / 2) * rng.standard_normal((count, dim - 1))], 1)

    def natural() -> None:
        v = pyro.sample("v", dist.Normal(zero(), 3.0))
        with pyro.plate("coordinate", dim - 1):
            pyro.sample("x", dist.Normal(zero(), (v / 2).exp()))

    def sites(z: np.ndarray) -> dict[str, np.ndarray]:
        return {"v": z[:, 0], "x": z[:, 1:]}

    return Density(dim, log_density, sample, natural=natural, sites=sites)


def rotated(density: Density, seed: int = 0) -> Density:
    """The same density seen through a random rotation; it has no natural form."""
    gauss = np.random.default_rng(seed).standard_normal((density.dim, density.dim))
    rotation = np.linalg.qr(gauss)[0]
    back = torch.from_numpy(rotation)
    return Density(
        density.dim,
        lambda z: density.log_density(z @ back),
        lambda rng, count: density.sample(rng, count) @ rotation.T,
    )


def banana() -> Density:
    """Haario's twisted Gaussian."""

    def log_density(z: Tensor) -> Tensor:
        x, y = z[..., 0], z[..., 1]
        bent = log_normal_density(y, 0.03 * (x**2 - 100), 0.0)
        return log_normal_density(x, 0.0, math.log(10.0)) + bent

    def sample(rng: np.random.Generator, count: int) -> np.ndarray:
        x = 10.0 * rng.standard_normal(count)
        return np.stack([x, 0.03 * (x**2 - 100) + rng.standard_normal(count)], 1)

    def natural() -> None:
        x = pyro.sample("x", dist.Normal(zero(), 10.0))
        pyro.sample("y", dist.Normal(0.03 * (x**2 - 100), 1.0))

    def sites(z: np.ndarray) -> dict[str, np.ndarray]:
        return {"x": z[:, 0], "y": z[:, 1]}

    return Density(2, log_density, sample, natural=natural, sites=sites)


def funana(dim: int) -> Density:
    """A funnel whose middle runs along a banana."""

    def log_density(z: Tensor) -> Tensor:
        top = log_normal_density(z[..., 0], 0.0, math.log(10.0))
        top = top + log_normal_density(z[..., 1], 0.0, math.log(3.0))
        middle = 0.03 * (z[..., :1] ** 2 - 100)
        return top + log_normal_density(z[..., 2:], middle, z[..., 1:2] / 2).sum(-1)

    def sample(rng: np.random.Generator, count: int) -> np.ndarray:
        bend, v = 10.0 * rng.standard_normal((count, 1)), 3.0 * rng.standard_normal((count, 1))
        noise = rng.standard_normal((count, dim - 2))
        return np.concatenate([bend, v, 0.03 * (bend**2 - 100) + np.exp(v / 2) * noise], 1)

    def natural() -> None:
        bend = pyro.sample("bend", dist.Normal(zero(), 10.0))
        v = pyro.sample("v", dist.Normal(zero(), 3.0))
        with pyro.plate("coordinate", dim - 2):
            pyro.sample("x", dist.Normal(0.03 * (bend**2 - 100), (v / 2).exp()))

    def sites(z: np.ndarray) -> dict[str, np.ndarray]:
        return {"bend": z[:, 0], "v": z[:, 1], "x": z[:, 2:]}

    return Density(dim, log_density, sample, natural=natural, sites=sites)


# Heavy tails


def student_t(df: float, dim: int) -> Density:
    """A multivariate Student-t with correlations 0.8^|i - j|."""
    index = np.arange(dim)
    tril = np.linalg.cholesky(0.8 ** np.abs(index[:, None] - index))
    scale_tril, whiten = torch.from_numpy(tril), torch.from_numpy(np.linalg.inv(tril).T)
    constant = math.lgamma((df + dim) / 2) - math.lgamma(df / 2) - dim / 2 * math.log(df * math.pi)
    constant -= float(np.log(np.diag(tril)).sum())

    def log_density(z: Tensor) -> Tensor:
        return constant - (df + dim) / 2 * ((z @ whiten).square().sum(-1) / df).log1p()

    def sample(rng: np.random.Generator, count: int) -> np.ndarray:
        chi = rng.chisquare(df, (count, 1))
        return rng.standard_normal((count, dim)) @ tril.T / np.sqrt(chi / df)

    def natural() -> None:
        loc = scale_tril.new_zeros(dim)
        pyro.sample("z", dist.MultivariateStudentT(zero() + df, loc, scale_tril))

    return Density(dim, log_density, sample, natural=natural)


# Several modes


def mixture(weights: Tensor, means: Tensor, sds: Tensor) -> Density:
    """A mixture of round Gaussians: weights and sds ``(K,)``, means ``(K, D)``."""
    count_modes, dim = means.shape

    def by_component(z: Tensor) -> Tensor:
        each = log_normal_density(z[..., None, :], means, sds.log()[:, None])
        return weights.log() + each.sum(-1)

    def sample(rng: np.random.Generator, count: int) -> np.ndarray:
        which = rng.choice(count_modes, count, p=weights.numpy())
        noise = rng.standard_normal((count, dim))
        return means.numpy()[which] + sds.numpy()[which, None] * noise

    def natural() -> None:
        # Not MixtureSameFamily: biject_to has no map for its support as of torch 2.13.
        scales = sds[:, None].expand(means.shape)
        pyro.sample("z", dist.MixtureOfDiagNormals(means, scales, weights.log()))

    return Density(
        dim,
        lambda z: by_component(z).logsumexp(-1),
        sample,
        modes=Modes(assign=lambda z: by_component(z).argmax(-1), shares=weights),
        natural=natural,
    )


def gmm_40() -> Density:
    """FAB's 40 Gaussians.

    Four pairs of means are 1.2 to 1.6 apart, closer than 2 sds: such a pair has one peak. A mode
    here is the cell of points nearest to a mean; the cells' shares are 1/40 to within 3 %.
    """
    # Drawn in float32, as FAB does: the same means.
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand((40, 2), generator=generator, dtype=torch.float32)
    means = ((uniform - 0.5) * 2 * 40.0).double()
    sd = softplus(torch.ones(40, dtype=torch.float64))
    return mixture(torch.full((40,), 1 / 40, dtype=torch.float64), means, sd)


def _double_well(x: Tensor) -> Tensor:
    return -(x**4) + 6 * x**2 + x / 2


# Wells whose modes are told apart one by one.
MOST_WELLS = 8
# Of exp(-x^4 + 6 x^2 + x / 2): the log of its integral, and the share of x > 0.
_LOG_Z_DOUBLE_WELL, _SHARE_RIGHT = 9.374541173869195, 0.8443070962111391


def many_well(dim: int) -> Density:
    """FAB's many-well: 2^(dim / 2) modes, told apart by the signs of the even coordinates.

    Where there are more of them than draws can tell the shares of, they are counted by how many of
    the signs are positive.
    """
    wells = dim // 2
    grid = Grid(lambda x: _double_well(x[:, 0]), ((-4.0, 4.0),), 200_000)

    def log_density(z: Tensor) -> Tensor:
        x, y = z[..., 0::2], z[..., 1::2]
        return (_double_well(x) - 0.5 * y**2).sum(-1)

    def sample(rng: np.random.Generator, count: int) -> np.ndarray:
        x = grid.draws(rng, count * wells).reshape(count, wells)
        return np.stack([x, rng.standard_normal((count, wells))], 2).reshape(count, dim)

    def by_signs(z: Tensor) -> Tensor:
        return ((z[..., 0::2] > 0) * 2 ** torch.arange(wells)).sum(-1)

    def by_count(z: Tensor) -> Tensor:
        return (z[..., 0::2] > 0).sum(-1)

    log_z = wells * (_LOG_Z_DOUBLE_WELL + _HALF_LOG_2PI)
    if wells > MOST_WELLS:
        count = torch.distributions.Binomial(
            wells, torch.tensor(_SHARE_RIGHT, dtype=torch.float64)
        )
        modes = Modes(by_count, count.log_prob(torch.arange(wells + 1).double()).exp())
    else:
        right = (torch.arange(2**wells)[:, None] >> torch.arange(wells)) & 1
        share = torch.tensor([1 - _SHARE_RIGHT, _SHARE_RIGHT], dtype=torch.float64)
        modes = Modes(by_signs, share[right].prod(-1))
    return Density(dim, log_density, sample, log_z=log_z, modes=modes)


# Sparse regression


def horseshoe(design: Tensor, y: Tensor, *, centered: bool) -> None:
    """Regression with a horseshoe prior: half-Cauchy scales, local and global."""
    size = design.shape[-1]
    overall = pyro.sample("overall", dist.HalfCauchy(y.new_tensor(1.0)))
    noise = pyro.sample("noise", dist.HalfNormal(y.new_tensor(1.0)))
    with pyro.plate("coefficient", size):
        local = pyro.sample("local", dist.HalfCauchy(y.new_tensor(1.0)))
        if centered:
            beta = pyro.sample("beta", dist.Normal(y.new_tensor(0.0), overall * local))
        else:
            beta = overall * local * pyro.sample("beta_raw", dist.Normal(y.new_tensor(0.0), 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(beta @ design.mT, noise), obs=y)


def _horseshoe_data() -> tuple[Tensor, Tensor]:
    """60 rows simulated from 4 large coefficients of 24."""
    rng = np.random.default_rng(SEED)
    design = rng.standard_normal((60, 24))
    y = design[:, :4] @ np.array([3.0, -2.0, 1.0, 0.5]) + rng.standard_normal(60)
    return torch.from_numpy(design), torch.from_numpy(y)


# Registry

_DENSITIES: dict[str, Callable[[], Density]] = {
    "funnel_10": partial(funnel, 10),
    "funnel_100": partial(funnel, 100),
    "rotated_funnel_10": lambda: rotated(funnel(10)),
    "banana": banana,
    "funana_10": partial(funana, 10),
    "student_t2": partial(student_t, 2.0, 10),
    "student_t5": partial(student_t, 5.0, 10),
    "gmm_40": gmm_40,
    "many_well_6": partial(many_well, 6),
    "many_well_32": partial(many_well, 32),
}


def targets(root: Path | None = None) -> dict[str, Target]:
    """Gives the targets by name; none of them needs files."""
    made: dict[str, Target] = {}
    for name, build in _DENSITIES.items():
        made |= both_forms(name, build(), "synthetic")
    for name, centered in {"horseshoe": True, "horseshoe_noncentered": False}.items():
        kwargs = {"centered": centered}
        args = _horseshoe_data()
        made[name] = Target(
            name, horseshoe, args, kwargs, moments=recorded(name), group="synthetic"
        )
    return made
