# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""two_moons and slcp score what sbibm's simulators say, and agree with its reference draws.

Run with the data: ``PYRO_FLOWS_DATA=../shared/data pytest tests/benchmarks/posteriordb``.
"""

from __future__ import annotations

import math
import os

import numpy as np
import pytest
import torch
from scipy import stats

from . import checks
from .sbibm import targets
from .target import Target

ROOT = os.environ.get("PYRO_FLOWS_DATA")
pytestmark = pytest.mark.skipif(
    ROOT is None,
    reason="Set PYRO_FLOWS_DATA to a folder that holds sbibm, for example ../shared/data.",
)
NAMES = ("two_moons", "two_moons_opaque", "slcp", "slcp_opaque")


@pytest.fixture(scope="module")
def made() -> dict[str, Target]:
    return targets(ROOT)


def _theta(target: Target) -> np.ndarray:
    (theta,) = target.reference().values()
    return theta


# The observations, as the files have them, and the likelihoods a second time with numpy.

_SEEN = {
    "two_moons": [-0.6396706, 0.16234657],
    "slcp": [2.3718784, 0.49947417, 9.931435, 1.7136912, -10.436423, -1.9067793]
    + [-1.2343777, -0.09735],
}


def _polar(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The simulator's r and a, from theta and the observation."""
    p = np.array(_SEEN["two_moons"])
    total, difference = theta[:, 0] + theta[:, 1], theta[:, 1] - theta[:, 0]
    east, north = p[0] - 0.25 + np.abs(total) / np.sqrt(2), p[1] - difference / np.sqrt(2)
    return np.hypot(east, north), np.arctan2(north, east)


def _two_moons(theta: np.ndarray) -> np.ndarray:
    r, a = _polar(theta)
    # Change of variables: (r, a) is uniform in a on a half turn; the map to x has Jacobian r.
    value = stats.norm.logpdf(r, 0.1, 0.01) - np.log(np.pi) - np.log(r)
    return np.where(np.abs(a) < np.pi / 2, value, -np.inf)


def _slcp(theta: np.ndarray) -> np.ndarray:
    points = np.array(_SEEN["slcp"]).reshape(4, 2)
    out = []
    for t in theta:
        covariance = np.tanh(t[4]) * t[2] ** 2 * t[3] ** 2
        matrix = [[t[2] ** 4 + 1e-6, covariance], [covariance, t[3] ** 4 + 1e-6]]
        out.append(stats.multivariate_normal.logpdf(points, t[:2], matrix).sum())
    return np.array(out)


@pytest.mark.parametrize("name", NAMES)
def test_log_joint_is_the_formula(name: str, made: dict[str, Target]) -> None:
    target = made[name]
    likelihood, half_width = (_slcp, 3) if name.startswith("slcp") else (_two_moons, 1)
    z = checks.reference(target, 20)
    sites, ladj = checks.constrain(target, z)
    (theta,) = sites.values()
    expected = likelihood(theta.numpy()) - target.dim * math.log(2 * half_width) + ladj.numpy()
    np.testing.assert_allclose(target.log_joint(z), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["two_moons", "slcp"])
def test_forms_agree(name: str, made: dict[str, Target]) -> None:
    natural, opaque = made[name], made[f"{name}_opaque"]
    z = checks.reference(natural, 50)
    torch.testing.assert_close(natural.log_joint(z), opaque.log_joint(z))
    assert natural.log_z == opaque.log_z
    assert opaque.opaque
    assert not natural.opaque


@pytest.mark.parametrize("name", NAMES)
def test_vectorised_particles(name: str, made: dict[str, Target]) -> None:
    checks.assert_vectorised(made[name], checks.reference(made[name], 4))


@pytest.mark.parametrize("name", NAMES)
def test_package_scores_the_same(name: str, made: dict[str, Target]) -> None:
    checks.assert_packages(made[name], checks.reference(made[name], 4))


@pytest.mark.parametrize("name", NAMES)
def test_shares_of_modes(name: str, made: dict[str, Target]) -> None:
    checks.assert_shares(made[name], tolerance=0.02)


@pytest.mark.parametrize("name", NAMES)
def test_canonical_undoes_the_symmetry(name: str, made: dict[str, Target]) -> None:
    """One mode is left, and no log joint has changed."""
    target = made[name]
    sites = {site: torch.from_numpy(value[:500]) for site, value in target.reference().items()}
    z, folded = target.unconstrain(sites), target.unconstrain(target.canonical(sites))
    assert target.modes.assign(z).unique().numel() == len(target.modes.shares)
    assert target.modes.assign(folded).unique().numel() == 1

    def without_jacobian(points: torch.Tensor) -> torch.Tensor:
        return target.log_joint(points) - checks.constrain(target, points)[1]

    torch.testing.assert_close(without_jacobian(z), without_jacobian(folded))


@pytest.mark.parametrize("name", ["slcp", "slcp_opaque"])
def test_score_identities(name: str, made: dict[str, Target]) -> None:
    checks.assert_score_identities(made[name])


def test_two_moons_is_a_ring(made: dict[str, Target]) -> None:
    """Its scores have no mean of zero (the edge); r and the angle are what the simulator says."""
    radius, angle = _polar(_theta(made["two_moons"]))
    assert stats.kstest(radius, stats.norm(0.1, 0.01).cdf).pvalue > 1e-3
    assert stats.kstest(angle, stats.uniform(-np.pi / 2, np.pi).cdf).pvalue > 1e-3


def test_two_moons_ends_at_its_edge(made: dict[str, Target]) -> None:
    theta = torch.tensor([[0.0, 0.0], [0.9, 0.9]], dtype=torch.float64)
    for name, site in (("two_moons", "theta"), ("two_moons_opaque", "z")):
        value = made[name].log_joint(made[name].unconstrain({site: theta}))
        assert value[0] == -torch.inf
        assert torch.isfinite(value[1])


def test_log_z_of_two_moons(made: dict[str, Target]) -> None:
    target = made["two_moons"]
    assert target.log_z == pytest.approx(-math.log(2), abs=1e-12)
    assert target.log_z_se == 0.0
    size = 1600
    middle = (np.arange(size) + 0.5) * 2 / size - 1
    mass = sum(
        np.exp(_two_moons(np.stack([np.full(size, first), middle], 1))).sum() for first in middle
    )
    assert math.log(mass * (2 / size) ** 2 / 4) == pytest.approx(target.log_z, abs=2e-3)


def test_log_z_of_slcp(made: dict[str, Target]) -> None:
    """By importance sampling from a smooth of the folded reference draws."""
    target = made["slcp"]
    folded = target.unconstrain(target.canonical(target.reference())).numpy()
    centres, kept = folded[:2000].T, np.random.default_rng(0)
    smooth = stats.gaussian_kde(centres, bw_method=0.35)
    z = smooth.resample(20_000, kept)
    lw = target.log_joint(torch.from_numpy(z.T)).numpy() - np.log(smooth(z))
    w = np.exp(lw - lw.max())
    # The four modes weigh the same; what of the proposal lies in another is one of them, too.
    in_mode = target.modes.assign(torch.from_numpy(z.T)).numpy() == 3
    w = w * in_mode
    log_z = lw.max() + math.log(w.mean()) + math.log(4)
    se = w.std() / w.mean() / math.sqrt(len(w))
    assert se < 0.02
    assert target.log_z == pytest.approx(log_z, abs=4 * se)
