# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The synthetic targets are the densities they say, with the draws and the log Z they say."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from . import checks
from .forms import Grid
from .synthetic import targets

TARGETS = targets()
EXACT = [name for name in TARGETS if not name.startswith("horseshoe")]
NATURAL = [name for name in EXACT if not name.endswith("_opaque")]
MODAL = ["gmm_40", "gmm_40_opaque", "many_well_6_opaque"]


# The densities a second time, with scipy.


def _funnel(z: np.ndarray) -> float:
    return stats.norm.logpdf(z[0], 0, 3) + stats.norm.logpdf(z[1:], 0, np.exp(z[0] / 2)).sum()


def _banana(z: np.ndarray) -> float:
    return stats.norm.logpdf(z[0], 0, 10) + stats.norm.logpdf(z[1], 0.03 * z[0] ** 2 - 3)


def _funana(z: np.ndarray) -> float:
    top = stats.norm.logpdf(z[0], 0, 10) + stats.norm.logpdf(z[1], 0, 3)
    return top + stats.norm.logpdf(z[2:], 0.03 * (z[0] ** 2 - 100), np.exp(z[1] / 2)).sum()


def _student_t(df: float) -> Callable[[np.ndarray], float]:
    shape = np.array([[0.8 ** abs(i - j) for j in range(10)] for i in range(10)])
    return lambda z: stats.multivariate_t.logpdf(z, np.zeros(10), shape, df)


def _gmm_40(z: np.ndarray) -> float:
    # The global stream, as FAB draws them.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        means = (torch.rand((40, 2), dtype=torch.float32) - 0.5) * 2 * 40
    variance = math.log1p(math.e) ** 2
    each = [stats.multivariate_normal.logpdf(z, mean, variance) for mean in means.numpy()]
    return special.logsumexp(each) - math.log(40)


def _many_well(z: np.ndarray) -> float:
    pairs = zip(z[0::2], z[1::2], strict=True)
    return sum(-(x**4) + 6 * x**2 + 0.5 * x - 0.5 * y**2 for x, y in pairs)


FORMULAS: dict[str, Callable[[np.ndarray], Any]] = {
    "funnel": _funnel,
    "banana": _banana,
    "funana": _funana,
    "student_t2": _student_t(2.0),
    "student_t5": _student_t(5.0),
    "gmm_40": _gmm_40,
    "many_well": _many_well,
}


@pytest.mark.parametrize("name", [name for name in EXACT if not name.startswith("rotated")])
def test_log_joint_is_the_formula(name: str) -> None:
    """All but many_well are normalised, so that this is the test of log Z = 0, too."""
    target = TARGETS[name]
    formula = next(f for prefix, f in FORMULAS.items() if name.startswith(prefix))
    z = checks.reference(target, 20)
    expected = [formula(row) for row in z.numpy()]
    np.testing.assert_allclose(target.log_joint(z).numpy(), expected, rtol=1e-12, atol=1e-9)
    if not name.startswith("many_well"):
        assert (target.log_z, target.log_z_se) == (0.0, 0.0)


def test_horseshoe_is_the_formula() -> None:
    target = TARGETS["horseshoe"]
    x, y = (arg.numpy() for arg in target.args)
    z = torch.randn(4, target.dim, generator=torch.Generator().manual_seed(0)).double()
    for row, value in zip(z.numpy(), target.log_joint(z), strict=True):
        overall, noise, local, beta = np.exp(row[0]), np.exp(row[1]), np.exp(row[2:26]), row[26:]
        expected = stats.halfcauchy.logpdf(overall) + stats.halfnorm.logpdf(noise)
        expected += stats.halfcauchy.logpdf(local).sum() + row[:26].sum()
        expected += stats.norm.logpdf(beta, 0, overall * local).sum()
        expected += stats.norm.logpdf(y, x @ beta, noise).sum()
        assert value.item() == pytest.approx(expected, rel=1e-12)


def test_horseshoe_forms_agree() -> None:
    """They differ by the Jacobian of beta = overall * local * beta_raw."""
    centred, noncentred = TARGETS["horseshoe"], TARGETS["horseshoe_noncentered"]
    assert centred.dim == noncentred.dim == 50
    z = torch.randn(4, 50, generator=torch.Generator().manual_seed(1)).double()
    log_scale = z[:, :1] + z[:, 2:26]
    moved = torch.cat([z[:, :26], log_scale.exp() * z[:, 26:]], 1)
    torch.testing.assert_close(
        centred.log_joint(moved) + log_scale.sum(1), noncentred.log_joint(z)
    )


def test_rotation_moves_the_funnel() -> None:
    """The same draws, turned: the same log densities and lengths, no coordinate left as it was."""
    plain, turned = TARGETS["funnel_10_opaque"], TARGETS["rotated_funnel_10_opaque"]
    before, after = checks.reference(plain, 100), checks.reference(turned, 100)
    torch.testing.assert_close(plain.log_joint(before), turned.log_joint(after))
    torch.testing.assert_close(before.norm(dim=1), after.norm(dim=1))
    steps = torch.linalg.lstsq(before, after).solution
    assert steps.abs().max() < 0.95
    assert turned.log_z == 0.0


@pytest.mark.parametrize("name", EXACT)
def test_score_identities(name: str) -> None:
    checks.assert_score_identities(TARGETS[name])


@pytest.mark.parametrize("name", NATURAL)
def test_forms_agree(name: str) -> None:
    natural, opaque = TARGETS[name], TARGETS[f"{name}_opaque"]
    z = checks.reference(natural, 50)
    torch.testing.assert_close(z, checks.reference(opaque, 50))
    torch.testing.assert_close(natural.log_joint(z), opaque.log_joint(z))
    assert opaque.opaque
    assert not natural.opaque


@pytest.mark.parametrize("name", TARGETS)
def test_vectorised_particles(name: str) -> None:
    target = TARGETS[name]
    z = torch.randn(4, target.dim, generator=torch.Generator().manual_seed(0)).double()
    checks.assert_vectorised(target, z)


@pytest.mark.parametrize("name", TARGETS)
def test_package_scores_the_same(name: str) -> None:
    target = TARGETS[name]
    z = torch.randn(4, target.dim, generator=torch.Generator().manual_seed(0)).double()
    checks.assert_packages(target, z)


@pytest.mark.parametrize("name", MODAL)
def test_shares_of_modes(name: str) -> None:
    checks.assert_shares(TARGETS[name], tolerance=0.02)


def test_log_z_of_many_well() -> None:
    def well(x: float) -> float:
        return math.exp(-(x**4) + 6 * x**2 + x / 2)

    left, right = (
        integrate.quad(well, *ends, epsabs=0, epsrel=1e-12)[0] for ends in ((-5, 0), (0, 5))
    )
    # fab-torch has 11784.50927 for the sum.
    assert left + right == pytest.approx(11784.50927, rel=1e-8)
    for dim in (6, 32):
        target = TARGETS[f"many_well_{dim}_opaque"]
        log_z = dim / 2 * (math.log(left + right) + 0.5 * math.log(2 * math.pi))
        assert target.log_z == pytest.approx(log_z, abs=1e-9)
        shares = target.modes.shares
        assert len(shares) == (8 if dim == 6 else 17)
        assert shares[-1].item() == pytest.approx((right / (left + right)) ** (dim / 2), rel=1e-9)


def test_modes_of_many_well_32() -> None:
    """By how many wells are on their right: 65,536 modes are too many to count draws in."""
    target = TARGETS["many_well_32_opaque"]
    z = checks.reference(target, 20_000)
    assert torch.equal(target.modes.assign(z), (z[:, 0::2] > 0).sum(-1))
    checks.assert_shares(target, 0.02)


def test_grid_draws_and_integrates() -> None:
    grid = Grid(lambda z: -0.5 * ((z - 1) ** 2).sum(-1) / 0.25, ((-2.0, 4.0), (-3.0, 5.0)), 200)
    assert grid.log_z() == pytest.approx(math.log(2 * math.pi * 0.25), abs=1e-8)
    draws = grid.draws(np.random.default_rng(0), 100_000)
    np.testing.assert_allclose(draws.mean(0), 1.0, atol=0.01)
    np.testing.assert_allclose(np.cov(draws.T), 0.25 * np.eye(2), atol=0.005)
    assert stats.kstest(draws[:, 0], stats.norm(1, 0.5).cdf).pvalue > 1e-3
