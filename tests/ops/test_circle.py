# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The circle: wrapping, periodic splines, Moebius maps."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_flows.ops import moebius_mixture, periodic_rational_quadratic_spline, wrap

PI = math.pi


@settings(max_examples=200, deadline=None)
@given(st.floats(-1e6, 1e6))
def test_wrap_gives_the_same_angle_within_a_turn(angle):
    wrapped = wrap(torch.tensor(angle))
    assert -PI <= wrapped <= PI
    assert math.cos(angle) == pytest.approx(wrapped.cos().item(), abs=1e-9)
    assert math.sin(angle) == pytest.approx(wrapped.sin().item(), abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wrap_leaves_angles_alone_and_stays_finite(dtype):
    x = torch.linspace(-PI, PI, 101, dtype=dtype)
    assert torch.equal(wrap(x), x)
    far = torch.tensor([-1e20, 1e20, 1e30, PI * (1 + 1e-7)], dtype=dtype)
    assert ((wrap(far) >= -PI) & (wrap(far) <= PI)).all()
    assert wrap(torch.tensor(math.nan)).isnan()


def test_wrap_has_slope_one():
    x = torch.tensor([-50.0, -4.0, 0.0, 3.5, 1e3], requires_grad=True)
    assert torch.equal(torch.autograd.grad(wrap(x).sum(), x)[0], torch.ones(5))


def test_the_spline_closes():
    params = torch.randn(1, 15)
    ends = torch.tensor([-PI, PI, -PI + 1e-9, PI - 1e-9])
    y, ladj = periodic_rational_quadratic_spline(ends, params.expand(4, -1))
    assert torch.allclose(y, ends, atol=1e-7)
    assert torch.allclose(ladj, ladj[:1].expand(4), atol=1e-6)
    assert ladj[0].abs() > 1e-3


def test_the_spline_takes_sizes_of_any_parameters():
    x = torch.linspace(-PI, PI, 300)
    params = (1e8 * torch.randn(300, 15)).requires_grad_()
    for inverse in (False, True):
        y, ladj = periodic_rational_quadratic_spline(x, params, inverse=inverse)
        assert (y.abs() <= PI * (1 + 1e-12)).all()
        assert torch.autograd.grad(y.sum() + ladj.sum(), params)[0].isfinite().all()


def poles_and_logits(count, components, scale=1.0):
    return scale * torch.randn(count, components, 2), torch.randn(count, components)


def test_one_component_is_the_automorphism_of_the_disc():
    poles, logits = poles_and_logits(50, 1)
    x = torch.linspace(-PI, PI, 50)
    y, ladj = moebius_mixture(x, poles, logits)
    raw = torch.view_as_complex(poles[:, 0])
    w = 0.99 * raw / (1 + raw.abs() ** 2).sqrt()
    z = torch.polar(torch.ones(50), x)
    image = (z - w) / (1 - w.conj() * z)
    assert torch.allclose(torch.polar(torch.ones(50), y), image, atol=1e-12)
    # The form in which Rezende et al. 2020 give it.
    theirs = (1 - w.abs() ** 2) / (z - w).abs() ** 2 * (z - w) - w
    assert torch.allclose(image, theirs, atol=1e-12)
    assert torch.allclose(ladj.exp(), (1 - w.abs() ** 2) / (z - w).abs() ** 2, atol=1e-10)


@pytest.mark.parametrize("components", [1, 4])
@pytest.mark.parametrize("scale", [0.3, 1.0, 30.0])
def test_moebius_inverse_gives_back(components, scale):
    poles, logits = poles_and_logits(2000, components, scale)
    x = torch.linspace(-PI, PI, 2000)
    y, ladj = moebius_mixture(x, poles, logits)
    back, back_ladj = moebius_mixture(y, poles, logits, inverse=True)
    assert ((back - x).abs() <= 1e-13 * (1 + (-ladj).exp())).all()
    assert torch.allclose(back_ladj, -ladj, atol=1e-9)


@pytest.mark.parametrize("components", [1, 3])
def test_moebius_gains_one_turn_a_turn(components):
    poles, logits = poles_and_logits(7, components)
    x = torch.linspace(-1, 1, 7)
    y, ladj = moebius_mixture(x, poles, logits)
    again, again_ladj = moebius_mixture(x + 2 * PI, poles, logits)
    assert torch.allclose(again - y, torch.tensor(2 * PI), atol=1e-12)
    assert torch.allclose(again_ladj, ladj, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_moebius_slopes_are_bounded_however_large_the_poles(dtype):
    poles = torch.tensor([[[1e20, 0.0]], [[0.0, -1e15]], [[3e18, 3e18]]], dtype=dtype)
    poles.requires_grad_()
    x = torch.tensor([[0.0], [PI]], dtype=dtype).expand(2, 3)
    for inverse in (False, True):
        y, ladj = moebius_mixture(x, poles, torch.zeros(3, 1, dtype=dtype), inverse=inverse)
        assert ladj.abs().max() <= math.log(199) + 1e-4
        assert torch.autograd.grad(y.sum() + ladj.sum(), poles)[0].isfinite().all()


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("components", [1, 3])
def test_moebius_gradients(components, inverse):
    poles, logits = (t.requires_grad_() for t in poles_and_logits(5, components))
    x = torch.linspace(-3, 3, 5).requires_grad_()

    def run(*inputs):
        return moebius_mixture(*inputs, inverse=inverse)

    assert torch.autograd.gradcheck(run, (x, poles, logits))
