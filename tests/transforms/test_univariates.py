# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Univariates of closed form in their schemes: what they do, what they refuse."""

import math
import re

import pyro.distributions as dist
import pytest
import torch

from pyro_flows.distributions import Flow
from pyro_flows.errors import ShapeError
from pyro_flows.transforms import (
    ELU,
    Affine,
    Autoregressive,
    Chain,
    Coupling,
    CubicSpline,
    Elementwise,
    LeakyReLU,
    LeakyTanh,
    LinearRationalSpline,
    PiecewiseLinear,
    PReLU,
    QuadraticSpline,
    Sigmoid,
    Softplus,
    Tanh,
)

SPLINES = [PiecewiseLinear(4), QuadraticSpline(4), CubicSpline(4), LinearRationalSpline(4)]
SQUASHES = [Tanh(), Sigmoid(), Softplus(), ELU()]


def randomise(layer):
    for p in layer.parameters():
        p.data.add_(torch.randn_like(p))
    return layer


def test_leaky_relu():
    y, ladj = Elementwise(2, LeakyReLU(0.2)).forward_and_ladj(torch.tensor([-5.0, 5.0]))
    assert y.tolist() == [-1.0, 5.0]
    assert ladj.item() == pytest.approx(math.log(0.2))


def test_prelu_learns_its_slope():
    layer = Elementwise(1, PReLU(log_slope_bound=2.0))
    layer.conditioner.bias.data.fill_(0.5)
    slope = math.exp(2 * math.tanh(0.25))
    assert layer(torch.tensor([-1.0])).item() == pytest.approx(-slope)
    assert layer(torch.tensor([1.0])).item() == 1.0
    layer.conditioner.bias.data.fill_(1e9)
    assert layer(torch.tensor([-1.0])).item() == pytest.approx(-math.exp(2))


@pytest.mark.parametrize("univariate", SPLINES, ids=lambda u: type(u).__name__)
@pytest.mark.parametrize("scheme", [Coupling, Autoregressive])
def test_splines_in_every_scheme(univariate, scheme):
    layer = randomise(scheme(3, univariate, hidden_dims=(8,)))
    x = 2 * torch.randn(50, 3)
    y, ladj = layer.forward_and_ladj(x)
    back, back_ladj = layer.inverse_and_ladj(y)
    assert (y != x).any()
    assert torch.allclose(back, x, atol=1e-9)
    assert torch.allclose(back_ladj, -ladj, atol=1e-6)


@pytest.mark.parametrize("univariate", SQUASHES, ids=lambda u: type(u).__name__)
def test_squashes_end_a_distribution(univariate):
    layer = Elementwise(2, univariate)
    flow = dist.TransformedDistribution(dist.Normal(torch.zeros(2), 40.0).to_event(1), [layer])
    value = flow.sample((1000,))
    assert flow.support.check(value).all()
    assert flow.log_prob(value).isfinite().all()
    outside = torch.tensor([0.5, -1.5])
    quiet = dist.TransformedDistribution(flow.base_dist, [layer], validate_args=False)
    assert quiet.log_prob(outside).item() == -math.inf
    given = dist.ConditionalTransformedDistribution(
        flow.base_dist, [Elementwise(2, univariate, context_dim=1)]
    ).condition(torch.ones(3, 1))
    given._validate_args = False
    assert given.log_prob(outside).tolist() == [-math.inf] * 3
    assert Flow([layer])().log_prob(outside).item() == -math.inf
    with pytest.raises(ValueError, match="support"):
        flow.log_prob(outside)


def test_one_coordinate_outside_is_enough():
    layer = Elementwise(3, Sigmoid())
    x, ladj = layer.inverse_and_ladj(torch.tensor([[0.5, 0.2, 0.9], [0.5, 1.2, 0.9]]))
    assert x.isfinite().all()
    assert ladj.isfinite().tolist() == [True, False]


@pytest.mark.parametrize("univariate", [Tanh(), LeakyReLU()], ids=str)
def test_a_fixed_map_broadcasts_over_contexts(univariate):
    layer = Elementwise(2, univariate, context_dim=3)
    y, ladj = layer.forward_and_ladj(torch.zeros(2), torch.ones(5, 3))
    assert (y.shape, ladj.shape) == ((5, 2), (5,))
    assert layer.condition(torch.ones(5, 3)).inv(torch.zeros(2)).shape == (5, 2)


def test_a_coupling_needs_something_to_decide():
    text = (
        "Coupling has nothing to decide: LeakyReLU(slope=0.1) has no parameters. "
        "Use Elementwise, or a Chain with a univariate that has some."
    )
    with pytest.raises(ShapeError, match=re.escape(text)):
        Coupling(2, LeakyReLU())
    layer = randomise(Coupling(2, Chain((LeakyReLU(), Affine()))))
    x = torch.randn(5, 2)
    assert torch.allclose(layer.inv(layer(x)), x)


def test_a_coupling_keeps_its_space():
    with pytest.raises(ShapeError, match="expected a univariate from one space to itself"):
        Coupling(2, Chain((Affine(), Tanh())))


def test_chains_know_their_spaces():
    chain = Chain((Affine(), LeakyTanh(), Sigmoid()))
    assert chain.domain is Affine.domain
    assert chain.codomain is Sigmoid.codomain
    with pytest.raises(ShapeError, match=re.escape(
        "Chain expected each part to take what the one before it gives, but Tanh() leads to "
        "Interval(lower_bound=-1.0, upper_bound=1.0) and Affine(log_scale_bound=3.0) takes "
    )):  # fmt: skip
        Chain((Tanh(), Affine()))
    with pytest.raises(ShapeError, match="Chain expected at least one univariate, but got none"):
        Chain(())


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: LeakyReLU(0.0), "LeakyReLU expected a positive slope, but got 0.0. With a slope "
         "of zero or below it has no inverse."),
        (lambda: LeakyTanh(11.0), "LeakyTanh expected a limit in (0, 10], but got 11.0."),
        (lambda: PiecewiseLinear(0), "PiecewiseLinear expected 1 to 500 bins and a positive "
         "bound, but got bins=0 and bound=5.0. 8 bins and a bound of 5 suit whitened values."),
        (lambda: QuadraticSpline(1), "QuadraticSpline expected 2 to 500 bins"),
        (lambda: CubicSpline(2), "CubicSpline expected 3 to 500 bins"),
        (lambda: LinearRationalSpline(4, bound=0.0), "but got bins=4 and bound=0.0."),
    ],
)  # fmt: skip
def test_impossible_settings(make, text):
    with pytest.raises(ShapeError, match=re.escape(text)):
        make()
