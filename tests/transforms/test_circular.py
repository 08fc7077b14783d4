# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Layers on tori: periodic densities, rotations, conditioning across the seam."""

import math
import re

import pyro.distributions as dist
import pytest
import torch

from pyro_flows.errors import ShapeError
from pyro_flows.transforms import (
    Affine,
    Autoregressive,
    Chain,
    CircularSpline,
    Coupling,
    Elementwise,
    Moebius,
)

PI = math.pi
MAPS = [CircularSpline(4), Moebius(3), Moebius(1)]
every = pytest.mark.parametrize("univariate", MAPS, ids=str)
UNIFORM = -math.log(2 * PI)


def randomise(layer, scale=1.0):
    for p in layer.parameters():
        p.data.add_(scale * torch.randn_like(p))
    return layer


@every
def test_the_density_is_periodic(univariate):
    """Value and slope of the log density at -pi are those at pi, with a uniform base."""
    layer = randomise(Elementwise(1, univariate))
    near = torch.tensor([[-PI], [-PI + 1e-7], [PI - 1e-7], [PI]], requires_grad=True)
    log_p = UNIFORM + layer.inverse_and_ladj(near)[1]
    (slope,) = torch.autograd.grad(log_p.sum(), near)
    assert torch.allclose(log_p, log_p[:1].expand(4), atol=1e-5)
    assert torch.allclose(slope, slope[:1].expand(4, 1), atol=1e-4, rtol=1e-4)
    assert slope[0].abs() > 1e-3


@every
def test_the_density_integrates_to_one_on_the_circle(univariate):
    layer = randomise(Elementwise(1, univariate))
    grid = torch.linspace(-PI, PI, 20_001)[:-1].unsqueeze(-1)
    density = (UNIFORM + layer.inverse_and_ladj(grid)[1].detach()).exp()
    assert density.mean().item() * 2 * PI == pytest.approx(1, abs=1e-5)
    assert density.max() > 1.1 * density.min()


@every
def test_the_last_parameter_rotates(univariate):
    params = torch.zeros(5, univariate.num_parameters)
    x = torch.linspace(-3, 3, 5)
    start, _ = univariate.forward_and_ladj(x, params)
    params[:, -1] = torch.tensor([0.5, 2.0, PI, -2.0, 1e3])
    y, _ = univariate.forward_and_ladj(x, params)
    for f in (torch.cos, torch.sin):
        assert torch.allclose(f(y - start), f(params[:, -1]), atol=1e-9)
    assert (y.abs() <= PI).all()
    back, _ = univariate.inverse_and_ladj(y, params)
    assert torch.allclose(back, x)


@every
def test_angles_outside_have_no_density(univariate):
    params = torch.randn(4, univariate.num_parameters)
    x = torch.tensor([-4.0, PI + 1e-6, 1e20, math.inf])
    for run in (univariate.forward_and_ladj, univariate.inverse_and_ladj):
        y, ladj = run(x, params)
        assert y.isfinite().all()
        assert (ladj == -math.inf).all()
        assert all(t.isnan().all() for t in run(x * math.nan, params))


@every
@pytest.mark.parametrize("where", [0, 1])
def test_in_a_coupling_kept_angles_outside_have_no_density_either(univariate, where):
    layer = randomise(Coupling(2, univariate, hidden_dims=(8,)))
    x = torch.zeros(5, 2)
    x[:, where] = torch.tensor([4.0, -7.0, 1e20, math.inf, -math.inf])
    for run in (layer.forward_and_ladj, layer.inverse_and_ladj):
        y, ladj = run(x)
        assert (ladj == -math.inf).all()
        assert not y.isnan().any()
        y, ladj = run(torch.tensor([[4.0, math.nan], [math.nan, 4.0]]))
        assert (y.sum(-1) + ladj).isnan().all()


@every
@pytest.mark.parametrize("scheme", [Coupling, Autoregressive])
def test_what_depends_on_an_angle_has_no_seam(univariate, scheme):
    layer = randomise(scheme(2, univariate, hidden_dims=(8,)))
    ends = torch.tensor([[-PI, 1.0], [PI, 1.0]])
    y, ladj = layer.forward_and_ladj(ends)
    assert torch.allclose(y[0, 1], y[1, 1])
    assert torch.allclose(ladj[0], ladj[1])
    x, ladj = layer.inverse_and_ladj(ends)
    assert torch.allclose(x[0, 1], x[1, 1])
    assert torch.allclose(ladj[0], ladj[1])


def test_in_a_distribution_on_the_torus():
    base = dist.Uniform(torch.full((2,), -PI), PI).to_event(1)
    layers = [randomise(Coupling(2, u, mask), 0.3) for u in MAPS for mask in ([0, 1], [1, 0])]
    flow = dist.TransformedDistribution(base, layers)
    value = flow.sample((500,))
    assert flow.support.check(value).all()
    assert flow.log_prob(value).isfinite().all()
    axis = torch.linspace(-PI, PI, 121)[:-1]
    with torch.no_grad():
        density = flow.log_prob(torch.cartesian_prod(axis, axis)).exp()
    assert density.mean().item() * (2 * PI) ** 2 == pytest.approx(1, abs=5e-3)
    assert density.max() > 1.5 * density.min()


def test_moebius_components_start_apart_near_the_identity():
    for components in (1, 2, 3, 8):
        univariate = Moebius(components)
        x = torch.linspace(-PI, PI, 101)
        params = torch.zeros(101, univariate.num_parameters, requires_grad=True)
        y, ladj = univariate.forward_and_ladj(x, params)
        assert (y - x).abs()[1:-1].max() <= (0.1 if components > 1 else 1e-15)
        assert ladj.abs().max() < 0.1
        (grad,) = torch.autograd.grad((x * y + ladj * x.cos()).sum(), params)
        poles = grad.sum(0)[: 2 * components].reshape(components, 2)
        if components > 1:
            assert (poles[0] - poles[1]).abs().max() > 1e-3


def test_chains_stay_on_the_circle():
    chain = Chain((CircularSpline(4), Moebius(2)))
    assert chain.domain is chain.codomain is Moebius(3).domain
    assert chain.num_features == 2
    layer = randomise(Coupling(2, chain))
    x = torch.tensor([[0.5, -3.0]])
    assert torch.allclose(layer.inv(layer(x)), x)
    with pytest.raises(ShapeError, match=re.escape(
        "Chain expected each part to take what the one before it gives, but CircularSpline(bins=4)"
    )):  # fmt: skip
        Chain((CircularSpline(4), Affine()))


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: CircularSpline(0), "CircularSpline expected between 1 and 500 bins, but got "
         "bins=0. 8 suit most angles."),
        (lambda: Moebius(0), "Moebius expected at least one component, but got 0."),
    ],
)  # fmt: skip
def test_impossible_sizes(make, text):
    with pytest.raises(ShapeError, match=re.escape(text)):
        make()
