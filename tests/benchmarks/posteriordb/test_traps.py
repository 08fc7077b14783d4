# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The traps are what they say: log Z, modes and draws, or no posterior at all."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pytest
import torch
from scipy import stats
from torch.func import grad, vmap

from . import checks
from .forms import Grid
from .traps import loadings_log_density, targets

TARGETS = targets()
IMPROPER = [name for name, target in TARGETS.items() if target.improper]
PROPER = [name for name in TARGETS if name not in IMPROPER]
MODAL = [name for name, target in TARGETS.items() if target.modes is not None]
NATURAL = [name for name in PROPER if f"{name}_opaque" in TARGETS]


def _points(name: str, count: int) -> torch.Tensor:
    target = TARGETS[name]
    if target.improper:
        return torch.randn(count, target.dim, generator=torch.Generator().manual_seed(0)).double()
    return checks.reference(target, count)


@pytest.mark.parametrize("name", TARGETS)
def test_vectorised_particles(name: str) -> None:
    checks.assert_vectorised(TARGETS[name], _points(name, 4))


@pytest.mark.parametrize("name", TARGETS)
def test_package_scores_the_same(name: str) -> None:
    checks.assert_packages(TARGETS[name], _points(name, 4))


# Beyond an edge there is no score; beta as a site has one at 1 - 1e-16. Both have other tests.
@pytest.mark.parametrize("name", [n for n in PROPER if n not in ("beta", "edge_nan", "edge_inf")])
def test_score_identities(name: str) -> None:
    checks.assert_score_identities(TARGETS[name])


@pytest.mark.parametrize("name", NATURAL)
def test_forms_agree(name: str) -> None:
    natural, opaque = TARGETS[name], TARGETS[f"{name}_opaque"]
    z = checks.reference(opaque, 200)
    z = z[(z < 12).all(1)]  # beyond, the sigmoid's value is rounded: 1 - x loses digits
    torch.testing.assert_close(natural.log_joint(z), opaque.log_joint(z))
    assert natural.log_z == opaque.log_z == 0.0


@pytest.mark.parametrize("name", MODAL)
def test_shares_of_modes(name: str) -> None:
    checks.assert_shares(TARGETS[name], tolerance=0.01)


# Densities of known integral, by scipy


@pytest.mark.parametrize(
    ("name", "weight", "sds"),
    [
        ("mixture_90_10", 0.9, (1.0, 1.0)),
        ("mixture_98_2", 0.98, (1.0, 1.0)),
        ("unequal_widths", 0.5, (1.0, 0.1)),
    ],
)
def test_mixtures_are_the_formula(name: str, weight: float, sds: tuple[float, float]) -> None:
    z = _points(name, 50)
    centres = np.full(4, -2.0), np.full(4, 2.0)
    assert np.linalg.norm(centres[1] - centres[0]) == 8.0
    first, second = (
        stats.multivariate_normal.logpdf(z, centre, sd**2)
        for centre, sd in zip(centres, sds, strict=True)
    )
    expected = np.logaddexp(math.log(weight) + first, math.log(1 - weight) + second)
    np.testing.assert_allclose(TARGETS[name].log_joint(z), expected, rtol=1e-11)


@pytest.mark.parametrize(("name", "df"), [("cauchy", 1), ("t2", 2)])
def test_tails_are_the_formula(name: str, df: int) -> None:
    z = _points(name, 50)
    shape = np.array([[0.8 ** abs(i - j) for j in range(3)] for i in range(3)])
    expected = stats.multivariate_t.logpdf(z, np.zeros(3), shape, df)
    np.testing.assert_allclose(TARGETS[name].log_joint(z), expected, rtol=1e-11)


@pytest.mark.parametrize("name", ["beta_opaque", "gamma", "gamma_opaque"])
def test_ends_integrate_to_one(name: str) -> None:
    z = torch.linspace(-700, 400, 2_000_001, dtype=torch.float64)[:, None]
    log_p = TARGETS[name].log_joint(z, chunk_size=100_000)
    mass = torch.trapezoid(log_p.exp(), z[:, 0]).item()
    assert mass == pytest.approx(1.0, abs=1e-6)


def test_ends_have_the_right_draws() -> None:
    beta, gamma = (TARGETS[name].reference()["x"] for name in ("beta", "gamma"))
    assert stats.kstest(gamma, stats.gamma(0.05).cdf).pvalue > 1e-3
    # By halves: the end at 1 has rounded draws.
    low = beta[beta < 0.5]
    assert len(low) / len(beta) == pytest.approx(0.5, abs=0.01)
    assert stats.kstest(low, lambda x: 2 * stats.beta(0.1, 0.1).cdf(x)).pvalue > 1e-3
    z = TARGETS["beta_opaque"].reference()["z"][:, 0]
    assert stats.kstest(-z[z > 0], z[z < 0]).pvalue > 1e-3


def test_beta_loses_its_end() -> None:
    """As a site, what lies above 1 - 1e-16 has no float64 of its own: 1.4 % of the mass."""
    z = torch.linspace(-400, 400, 800_001, dtype=torch.float64)[:, None]
    log_p = TARGETS["beta"].log_joint(z, chunk_size=100_000)
    mass = torch.trapezoid(log_p.exp(), z[:, 0]).item()
    assert mass == pytest.approx(1 - 0.0137, abs=2e-3)
    # The limit of the verdict's "right" is 0.05: log_z = 0 stays fair.
    assert abs(math.log(mass)) < 0.02


# Symmetries


def test_label_switching() -> None:
    target = TARGETS["label_switching"]
    y = target.args[0].numpy()

    def log_density(mu: torch.Tensor) -> torch.Tensor:
        a, b = (stats.norm.pdf(y, mu.numpy()[:, [k]], 1) for k in (0, 1))
        prior = stats.norm.logpdf(mu.numpy(), 0, 2).sum(1)
        return torch.from_numpy(np.log(0.5 * a + 0.5 * b).sum(1) + prior)

    grid = Grid(log_density, ((-4.0, 4.0), (-4.0, 4.0)), 200)
    assert target.log_z == pytest.approx(grid.log_z(), abs=1e-8)
    # The modes overlap: one in seven draws has its means closer than half of what is usual.
    mu = target.reference()["mu"]
    assert 0.1 < (np.abs(mu[:, 0] - mu[:, 1]) < 0.3).mean() < 0.3
    sorted_mu = target.canonical({"mu": mu})["mu"]
    assert (sorted_mu[:, 0] <= sorted_mu[:, 1]).all()
    flipped = torch.from_numpy(mu[:50])
    torch.testing.assert_close(target.log_joint(flipped), target.log_joint(flipped.flip(-1)))


def test_sign_flip() -> None:
    target = TARGETS["sign_flip"]
    y = target.args[0]

    def log_density(loading: torch.Tensor) -> torch.Tensor:
        cov = loading[:, :, None] * loading[:, None, :] + torch.eye(3, dtype=torch.float64)
        zeros = torch.zeros_like(loading)
        prior = torch.distributions.Normal(zeros, 1.0).log_prob(loading).sum(-1)
        data = torch.distributions.MultivariateNormal(zeros[:, None], cov[:, None])
        return prior + data.log_prob(y).sum(-1)

    points = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).double()
    torch.testing.assert_close(loadings_log_density(points, y), log_density(points))
    assert target.log_z == pytest.approx(
        Grid(log_density, ((-4.0, 4.0),) * 3, 40).log_z(), abs=1e-6
    )
    z = checks.reference(target, 200)
    torch.testing.assert_close(target.log_joint(z), target.log_joint(-z))
    sites = {name: value[:200] for name, value in target.reference().items()}
    same = target.canonical(sites)
    assert (same["loading"].sum(-1) > 0).all()
    torch.testing.assert_close(
        target.log_joint(target.unconstrain(sites)), target.log_joint(target.unconstrain(same))
    )


def test_log_z_of_sign_flip_with_scores() -> None:
    """By importance sampling of one of its two halves, in all 23 dimensions."""
    target = TARGETS["sign_flip"]
    half = target.unconstrain(target.canonical(target.reference()))
    # The proposal hardly reaches the other half, which is its mirror image.
    log_z, se = checks.importance_log_z(target, half)
    assert se < 0.05
    assert target.log_z == pytest.approx(log_z + math.log(2), abs=4 * se)


# No posterior


def test_improper_ones_have_no_log_z() -> None:
    assert sorted(IMPROPER) == ["flat_log_sigma", "ridge", "separated_logistic"]
    assert all(TARGETS[name].log_z is None for name in IMPROPER)


def test_ridge_is_flat() -> None:
    away = torch.tensor([[1.0, -1.0]], dtype=torch.float64) * torch.tensor([[0.0], [1e3], [1e6]])
    values = TARGETS["ridge"].log_joint(away)
    torch.testing.assert_close(values, values[:1].expand(3))


def test_separated_logistic_grows() -> None:
    """The likelihood rises towards 1 along a whole cone of directions, and stays there."""
    direction = torch.tensor([[-0.3, 1.0], [-0.28, 1.0]], dtype=torch.float64)
    values = [TARGETS["separated_logistic"].log_joint(s * direction) for s in (10, 100, 1000)]
    assert (values[0] < values[1]).all()
    assert (values[1] < values[2]).all()
    assert values[2].min() > -1e-3


def test_flat_log_sigma_has_a_flat_marginal() -> None:
    """With mu integrated out, every log sigma is as likely as any other."""
    target = TARGETS["flat_log_sigma"]
    for log_sigma in (-6.0, 0.0, 6.0):
        mu = 1 + math.exp(log_sigma) * torch.linspace(-9, 9, 2001, dtype=torch.float64)
        z = torch.stack([mu, torch.full_like(mu, log_sigma)], 1)
        assert torch.trapezoid(target.log_joint(z).exp(), mu).item() == pytest.approx(1, abs=1e-9)


# Regions


def test_log_z_of_edge() -> None:
    """By Gauss-Legendre in s = sqrt(log(a / b)), which makes the root at the edge smooth."""
    nodes, weights = np.polynomial.legendre.leggauss(200)
    s, log_b = np.meshgrid(nodes + 1, 4 * nodes - 0.5, indexing="ij")
    x = np.sqrt(np.exp(log_b) * np.expm1(s**2))
    seen = TARGETS["edge_nan"].args[0].numpy()[:, None, None]
    log_p = stats.norm.logpdf(s**2 + log_b, 0.5, 0.5) + stats.norm.logpdf(log_b, -0.5, 0.5)
    log_p += stats.norm.logpdf(seen, x, 0.3).sum(0)
    density = 2 * s * np.exp(log_p) * np.outer(weights, 4 * weights)
    mass = density.sum()
    for name in ("edge_nan", "edge_inf"):
        assert TARGETS[name].log_z == pytest.approx(math.log(mass), abs=1e-8)
        log_z, se = checks.importance_log_z(
            TARGETS[name], checks.reference(TARGETS[name], 5000), df=3
        )
        assert log_z == pytest.approx(TARGETS[name].log_z, abs=4 * se)
        sites = TARGETS[name].reference()
        for values, exact in ((np.log(sites["b"]), log_b), (np.log(sites["a"]), s**2 + log_b)):
            error = values.mean() - (density * exact).sum() / mass
            assert abs(error) < 4 * values.std() / math.sqrt(len(values))


def test_edge_is_nan_or_inf() -> None:
    z = torch.tensor([[0.5, 0.2], [0.2, 0.5]], dtype=torch.float64)
    nan, inf = TARGETS["edge_nan"].log_joint(z), TARGETS["edge_inf"].log_joint(z)
    torch.testing.assert_close(nan[0], inf[0])
    assert torch.isnan(nan[1])
    assert inf[1] == -torch.inf
    for name in ("edge_nan", "edge_inf"):
        draws = TARGETS[name].unconstrain(TARGETS[name].reference())
        assert torch.isfinite(TARGETS[name].log_joint(draws)).all()
        # Mass right at the edge: a Gaussian can't keep off it.
        assert ((draws[:, 0] - draws[:, 1]) < 0.05).double().mean() > 0.03


def test_explosion() -> None:
    target = TARGETS["explosion"]
    y = target.args[0].numpy()

    def log_density(rate: float, start: float) -> float:
        x, total = math.exp(start), stats.norm.logpdf(rate) + stats.norm.logpdf(start)
        for step in range(20):
            x += 0.1 * math.exp(rate) * x**2
            if step % 5 == 4:
                total += stats.norm.logpdf(y[step // 5], x, 0.5)
        return total

    z = checks.reference(target, 20)
    expected = [log_density(*row) for row in z.tolist()]
    np.testing.assert_allclose(target.log_joint(z), expected, rtol=1e-11)
    log_z, se = checks.importance_log_z(target, checks.reference(target, 5000), df=3)
    assert se < 0.02
    assert log_z == pytest.approx(target.log_z, abs=4 * se)
    # One prior sd beyond the medians the solution overflows; no gradient is left there.
    far = torch.tensor([[1.0, 1.0]], dtype=torch.float64)
    assert target.log_joint(far).item() == -torch.inf
    with pyro.validation_enabled(False):
        assert not torch.isfinite(vmap(grad(target._log_joint_at))(far)).all()
