# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Mixtures of correlated Gaussians against torch's, and their fit."""

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from pyro_flows.distributions import CorrelatedMixture, Flow
from pyro_flows.errors import DataError, ShapeError
from pyro_flows.ops import Gaussians, factor_covariance, fit_gaussians, gaussians
from pyro_flows.transforms import AffineCoupling


def mixture(count=3, dim=4):
    root = torch.randn(count, dim, dim).triu(1) + torch.diag_embed(torch.rand(count, dim) + 0.5)
    return Gaussians(torch.randn(count), torch.randn(count, dim), root)


def by_torch(g):
    precision = g.root @ g.root.mT
    parts = MultivariateNormal(g.mean, precision_matrix=precision)
    return MixtureSameFamily(Categorical(logits=g.log_weight), parts)


@pytest.mark.parametrize("shape", [(), (7,), (2, 3)])
def test_density(shape):
    g, x = mixture(), torch.randn(*shape, 4)
    torch.testing.assert_close(g.log_prob(x), by_torch(g).log_prob(x))


def test_one_component_is_the_gaussian_of_the_data():
    x = torch.randn(500, 3) @ torch.randn(3, 3) + torch.tensor([1e3, 0.0, -5.0])
    g = fit_gaussians(x, 1, ridge=0.0)
    torch.testing.assert_close(g.mean[0], x.mean(0))
    covariance = torch.linalg.inv(g.root[0] @ g.root[0].mT)
    torch.testing.assert_close(covariance, torch.cov(x.T, correction=0))
    assert torch.equal(g.root, g.root.triu())
    assert (g.root.diagonal(dim1=-2, dim2=-1) > 0).all()


def test_a_mixture_is_found_again():
    truth = mixture(3, 2)
    spread = Gaussians(torch.zeros(3), 8 * torch.eye(3, 2) - 4, truth.root)
    x = by_torch(spread).sample((6000,))
    found = fit_gaussians(x[:3000], 3, ridge=1e-6)
    gap = spread.log_prob(x[3000:]) - found.log_prob(x[3000:])
    assert abs(gap.mean()) < 0.02


def test_the_fit_rises_with_components_and_follows_the_units():
    x = torch.cat([torch.randn(300, 2) * 0.1, torch.randn(300, 2) + 3, torch.randn(300, 2) - 3])
    fits = [fit_gaussians(x, count).log_prob(x).mean() for count in (1, 2, 3)]
    assert fits[0] < fits[1] < fits[2]
    units = torch.tensor([1000.0, 1e-3])
    scaled = fit_gaussians(x * units, 3).log_prob(x * units).mean() + units.log().sum()
    torch.testing.assert_close(scaled, fits[2])


@pytest.mark.parametrize("rows", [300, 12], ids=["dependent columns", "fewer rows than columns"])
def test_points_that_do_not_span_the_space(rows):
    x = torch.randn(rows, 10, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, x[:, :5]], -1).double()
    for count in (1, 3):
        assert torch.isfinite(fit_gaussians(x, count).log_prob(x)).all()
    factor = factor_covariance(x)
    gap = factor @ factor.T - torch.cov(x.T, correction=0)
    assert gap.abs().max() < (1e-5 if rows > 15 else 2.0)


@pytest.mark.parametrize("count", [1, 4, 9])
def test_more_gaussians_than_distinct_points(count):
    x = torch.tensor([[0.0, 0.0], [1.0, 5.0], [2.0, 0.0]]).repeat(20, 1)
    assert torch.isfinite(fit_gaussians(x, count).log_prob(x)).all()


@pytest.mark.parametrize("value", [1.0, torch.nan])
def test_points_without_a_shape(value):
    with pytest.raises(DataError, match="finite points that differ, but got 20 of mean variance"):
        fit_gaussians(torch.full((20, 2), value), 2)


def test_many_columns_are_taken_few_rows_at_once(monkeypatch):
    sizes = []
    pairs = gaussians._pairs
    monkeypatch.setattr(gaussians, "_pairs", lambda x: sizes.append(pairs(x).numel()) or pairs(x))
    fit_gaussians(torch.randn(1500, 120), 1, most_passes=1)
    assert max(sizes) <= gaussians.MOST_PRODUCTS


def test_no_component_shrinks_onto_a_point():
    x = torch.cat([torch.randn(200, 2), torch.full((50, 2), 2.0)])
    g = fit_gaussians(x, 4)
    assert torch.isfinite(g.log_prob(x)).all()
    assert g.log_prob(x).max() < 10


class TestBase:
    def test_it_is_what_was_set_and_draws_agree(self):
        g = mixture(3, 2)
        base = CorrelatedMixture(2, 3)
        base.set(g)
        x = torch.randn(9, 2)
        torch.testing.assert_close(base().log_prob(x), by_torch(g).log_prob(x))
        draws, expected = base().sample((40_000,)), by_torch(g).sample((40_000,))
        torch.testing.assert_close(draws.mean(0), expected.mean(0), atol=0.05, rtol=0.05)
        torch.testing.assert_close(torch.cov(draws.T), torch.cov(expected.T), atol=0.1, rtol=0.1)

    def test_it_starts_as_the_standard_normal(self):
        normal = MultivariateNormal(torch.zeros(3), torch.eye(3))
        x = torch.randn(5, 3)
        torch.testing.assert_close(CorrelatedMixture(3)().log_prob(x), normal.log_prob(x))

    def test_every_parameter_is_trained(self):
        base = CorrelatedMixture(3, 2)
        base.initialize(torch.randn(100, 3))
        base().log_prob(torch.randn(10, 3)).sum().backward()
        for name, parameter in base.named_parameters():
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 0, name

    @pytest.mark.parametrize("shape", [(), (0,), (2, 5)])
    def test_shapes_below_a_flow(self, shape):
        flow = Flow([AffineCoupling(3)], CorrelatedMixture(3, 2))
        assert flow().sample(shape).shape == (*shape, 3)
        assert flow().expand((4,)).sample(shape).shape == (*shape, 4, 3)
        assert flow.log_prob(torch.zeros(*shape, 3)).shape == shape

    def test_on_another_device(self):
        base, x = CorrelatedMixture(2, 3).to(torch.float32), torch.zeros(4, 2).float()
        with torch.device("meta"):
            assert base().log_prob(x).device.type == "cpu"

    def test_no_components(self):
        with pytest.raises(ShapeError, match="components >= 1, but got 0"):
            CorrelatedMixture(2, 0)
