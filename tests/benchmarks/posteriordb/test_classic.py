# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The classic targets score what their sources say, and have the log Z of the table.

Run with the data: ``PYRO_FLOWS_DATA=../shared/data pytest tests/benchmarks/posteriordb``.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch.func import grad, hessian, vmap

from . import checks
from .classic import targets
from .target import Target

ROOT = os.environ.get("PYRO_FLOWS_DATA")
pytestmark = pytest.mark.skipif(
    ROOT is None,
    reason="Set PYRO_FLOWS_DATA to a folder that holds classic, for example ../shared/data.",
)
REGRESSIONS = ("sonar", "ionosphere", "credit_flat", "credit_n10", "credit_gym")
NAMES = (*REGRESSIONS, "seeds", "brownian")


@pytest.fixture(scope="module")
def made() -> dict[str, Target]:
    return targets(ROOT)


def _table(name: str) -> np.ndarray:
    return np.genfromtxt(Path(ROOT) / "classic" / name, delimiter=",", skip_header=1)


def _points(target: Target, count: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.3 * torch.randn(count, target.dim, generator=generator, dtype=torch.float64)


# The log joints a second time, with scipy.


def _bernoulli(y: np.ndarray, logits: np.ndarray) -> float:
    return float(np.sum(y * special.log_expit(logits) + (1 - y) * special.log_expit(-logits)))


def _scaled(name: str, prior: float, z: np.ndarray) -> float:
    table = _table(name)
    x, y = table[:, :-1], table[:, -1]
    spread = np.sqrt(np.mean((x - x.mean(0)) ** 2, 0))
    x = (x - x.mean(0)) / np.where(spread == 0, 1, spread)
    return _bernoulli(y, z[0] + x @ z[1:]) + stats.norm.logpdf(z, 0, prior).sum()


def _credit(z: np.ndarray) -> float:
    table = _table("german_credit.csv")
    x, y = table[:, :-1], table[:, -1]
    return _bernoulli(y, -(z[0] + (x / np.sqrt(np.var(x, 0))) @ z[1:]))


def _credit_gym(z: np.ndarray) -> float:
    # Ones last: the intercept is the last of z.
    return _scaled("german_credit.csv", 1.0, np.roll(z, 1))


def _seeds(z: np.ndarray) -> float:
    r, n, x1, x2 = _table("seeds.csv").T
    tau, (a0, a1, a2, a12), b = np.exp(z[0]), z[1:5], z[5:]
    total = stats.gamma.logpdf(tau, 0.01, scale=100) + z[0]
    total += stats.norm.logpdf(z[1:5], 0, 10).sum() + stats.norm.logpdf(b, 0, tau**-0.5).sum()
    p = special.expit(a0 + a1 * x1 + a2 * x2 + a12 * x1 * x2 + b)
    return total + stats.binom.logpmf(r, n, p).sum()


def _brownian(z: np.ndarray) -> float:
    seen = _table("brownian.csv")[:, 1]
    step, noise, loc = np.exp(z[0]), np.exp(z[1]), z[2:]
    total = stats.norm.logpdf(z[:2], 0, 2).sum()
    total += stats.norm.logpdf(np.diff(loc, prepend=0.0), 0, step).sum()
    there = ~np.isnan(seen)
    return total + stats.norm.logpdf(seen[there], loc[there], noise).sum()


FORMULAS: dict[str, Any] = {
    "sonar": lambda z: _scaled("sonar.csv", 1.0, z),
    "ionosphere": lambda z: _scaled("ionosphere.csv", 1.0, z),
    "credit_flat": _credit,
    "credit_n10": lambda z: _credit(z) + stats.norm.logpdf(z, 0, 10).sum(),
    "credit_gym": _credit_gym,
    "seeds": _seeds,
    "brownian": _brownian,
}


@pytest.mark.parametrize("name", NAMES)
def test_log_joint_is_the_formula(name: str, made: dict[str, Target]) -> None:
    z = _points(made[name], 5)
    expected = [FORMULAS[name](row) for row in z.numpy()]
    np.testing.assert_allclose(made[name].log_joint(z), expected, rtol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_vectorised_particles(name: str, made: dict[str, Target]) -> None:
    checks.assert_vectorised(made[name], _points(made[name], 4))


@pytest.mark.parametrize("name", NAMES)
def test_package_scores_the_same(name: str, made: dict[str, Target]) -> None:
    checks.assert_packages(made[name], _points(made[name], 4))


def test_dimensions(made: dict[str, Target]) -> None:
    dims = {name: target.dim for name, target in made.items()}
    assert dims == dict(zip(NAMES, (61, 35, 25, 25, 25, 26, 32), strict=True))


# log Z, by another way than the table's


def _gaussian_draws(target: Target) -> torch.Tensor:
    """Draws of the best Gaussian: Newton's steps on mean gradients and Hessians over it."""
    generator = torch.Generator().manual_seed(1)

    def log_p(row: torch.Tensor) -> torch.Tensor:
        return target.log_joint(row[None], chunk_size=None)[0]

    derivatives = vmap(lambda row: (grad(log_p)(row), hessian(log_p)(row)))
    loc = torch.zeros(target.dim, dtype=torch.float64)
    root = torch.zeros(target.dim, target.dim, dtype=torch.float64)
    for _ in range(8):
        normal = torch.randn(100, target.dim, generator=generator, dtype=torch.float64)
        gradient, curvature = derivatives(loc + torch.cat([normal, -normal]) @ root.T)
        covariance = torch.linalg.inv(-curvature.mean(0))
        loc = loc + covariance @ gradient.mean(0)
        root = torch.linalg.cholesky(covariance)
    normal = torch.randn(20_000, target.dim, generator=generator, dtype=torch.float64)
    return loc + normal @ root.T


@pytest.mark.parametrize("name", REGRESSIONS)
def test_log_z_of_regressions(name: str, made: dict[str, Target]) -> None:
    target = made[name]
    log_z, se = checks.importance_log_z(target, _gaussian_draws(target), rounds=1)
    assert se < 0.05
    assert target.log_z == pytest.approx(log_z, abs=4 * math.hypot(se, target.log_z_se))


def test_log_z_of_seeds(made: dict[str, Target]) -> None:
    """Effects integrated out by Gauss-Hermite, the other five by importance sampling."""
    r, n, x1, x2 = _table("seeds.csv").T
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    design = np.stack([np.ones_like(x1), x1, x2, x1 * x2])

    def log_density(z: np.ndarray) -> np.ndarray:
        scale = np.exp(-z[:, 0] / 2)
        logits = (z[:, 1:] @ design)[..., None] + scale[:, None, None] * nodes
        each = special.gammaln(n + 1) - special.gammaln(r + 1) - special.gammaln(n - r + 1)
        like = each[:, None] + r[:, None] * logits - n[:, None] * np.logaddexp(0, logits)
        total = special.logsumexp(like, axis=-1, b=weights / weights.sum()).sum(-1)
        prior = stats.gamma.logpdf(np.exp(z[:, 0]), 0.01, scale=100) + z[:, 0]
        return total + prior + stats.norm.logpdf(z[:, 1:], 0, 10).sum(-1)

    rng, df = np.random.default_rng(0), 5
    loc, cov = np.array([2.5, -0.5, 0.0, 1.3, -0.8]), np.diag([1.0, 0.1, 0.1, 0.1, 0.2])
    for _ in range(4):
        z = stats.multivariate_t.rvs(loc, cov, df, size=3000, random_state=rng)
        lw = log_density(z) - stats.multivariate_t.logpdf(z, loc, cov, df)
        w = np.exp(lw - lw.max()) / np.exp(lw - lw.max()).sum()
        loc, cov = w @ z, np.cov(z.T, aweights=w)
    log_z = special.logsumexp(lw) - math.log(len(lw))
    se = w.std() * math.sqrt(len(w))
    assert se < 0.05
    assert made["seeds"].log_z == pytest.approx(log_z, abs=4 * se)
    assert made["seeds"].log_z_se == 0.0


def test_brownian_by_quadrature(made: dict[str, Target]) -> None:
    """log Z and the reference moments, with all locations integrated out."""
    seen = _table("brownian.csv")[:, 1]
    there = ~np.isnan(seen)
    time = np.arange(1, 31)
    walk = np.minimum(time[:, None], time)[:, there]
    logs = np.linspace(-9, 1.5, 80)
    log_p, means, seconds = [], [], []
    for log_step in logs:
        for log_noise in logs:
            cross = np.exp(2 * log_step) * walk
            cov = cross[there] + np.exp(2 * log_noise) * np.eye(there.sum())
            prior = stats.norm.logpdf([log_step, log_noise], 0, 2).sum()
            zero = np.zeros(there.sum())
            log_p.append(prior + stats.multivariate_normal.logpdf(seen[there], zero, cov))
            solved = np.linalg.solve(cov, np.stack([seen[there], *cross])[..., None])[..., 0].T
            mean = cross @ solved[:, 0]
            variance = np.exp(2 * log_step) * time - np.einsum("ij,ji->i", cross, solved[:, 1:])
            means.append([np.exp(log_step), np.exp(log_noise), *mean])
            seconds.append(means[-1] ** np.array(2) + np.array([0, 0, *variance]))
    target = made["brownian"]
    log_p = np.array(log_p) + 2 * math.log(logs[1] - logs[0])
    assert target.log_z == pytest.approx(special.logsumexp(log_p), abs=2e-3)
    w = special.softmax(log_p)
    mean = w @ np.array(means)
    sd = np.sqrt(w @ np.array(seconds) - mean**2)
    _assert_moments(target, mean, sd)


def _assert_moments(target: Target, mean: np.ndarray, sd: np.ndarray) -> None:
    moments = target.moments()
    assert list(moments.mean) == list(target.latents)
    np.testing.assert_allclose([float(v) for v in moments.mean.values()], mean, atol=2e-3)
    np.testing.assert_allclose([float(v) for v in moments.sd.values()], sd, rtol=2e-2)
