# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The rational-quadratic spline: exact where it should be, finite everywhere."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_flows.ops import rational_quadratic_spline
from pyro_flows.ops.splines import MAX_LOG_SLOPE

BINS, BOUND = 6, 3.0


def random_params(*shape, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, 3 * BINS - 1, generator=generator, dtype=torch.float64)


def spline(x, params, **kwargs):
    return rational_quadratic_spline(x, params, BOUND, **kwargs)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_parameters_are_the_identity(inverse, dtype):
    x = torch.linspace(-5, 5, 101, dtype=dtype)
    y, ladj = spline(x, torch.zeros(101, 3 * BINS - 1, dtype=dtype), inverse=inverse)
    assert (y - x).abs().max() < 10 * torch.finfo(dtype).eps
    assert ladj.abs().max() < 10 * torch.finfo(dtype).eps


def test_outside_the_box_is_the_identity():
    x = torch.tensor([-1e20, -BOUND, BOUND, 1e20])
    y, ladj = spline(x, random_params(4))
    assert torch.equal(y, x)
    assert torch.equal(ladj, torch.zeros(4))


@pytest.mark.parametrize("inverse", [False, True])
def test_value_and_slope_are_continuous_at_the_bound(inverse):
    params = random_params(2, scale=2.0)
    edge = torch.tensor([-BOUND, BOUND])
    y, ladj = spline(edge * (1 - 1e-9), params, inverse=inverse)
    assert (y - edge).abs().max() < 1e-7
    assert ladj.abs().max() < 1e-5


@settings(max_examples=60, deadline=None)
@given(st.floats(-BOUND, BOUND), st.integers(0, 1000), st.floats(0.0, 5.0))
def test_inverse_gives_back(x, seed, scale):
    params = random_params(1, scale=scale, seed=seed)
    value = torch.tensor([x], dtype=torch.float64)
    y, ladj = spline(value, params)
    back, back_ladj = spline(y, params, inverse=True)
    condition = math.exp(max(0.0, -ladj.item()))
    assert abs(back.item() - x) <= 100 * 2.3e-16 * BOUND * condition
    # The log-slope changes by at most a factor of the curvature across that error.
    assert abs(ladj.item() + back_ladj.item()) < 1e-6


def test_increases_strictly():
    x = torch.linspace(-4, 4, 2001)
    y, _ = spline(x, random_params(1, scale=3.0).expand(2001, -1))
    assert (y.diff() > 0).all()


def test_log_slope_is_the_derivative_at_knots_too():
    params = random_params(1, scale=1.0)
    widths = params[0, :BINS].softmax(-1) * (1 - 1e-3 * BINS) + 1e-3
    knots = (2 * BOUND * widths.cumsum(-1) - BOUND)[:-1].requires_grad_()
    y, ladj = spline(knots, params.expand(BINS - 1, -1))
    slope = torch.autograd.grad(y.sum(), knots)[0]
    assert torch.allclose(ladj, slope.log(), atol=1e-10)


def test_slopes_are_bounded_however_large_the_parameters():
    params = torch.zeros(1, 3 * BINS - 1)
    params[..., 2 * BINS :] = 1e20
    _, ladj = spline(torch.zeros(1), params)
    assert ladj.item() == pytest.approx(MAX_LOG_SLOPE)
    params[..., 2 * BINS :] = -1e20
    _, ladj = spline(torch.zeros(1), params)
    assert ladj.item() == pytest.approx(-MAX_LOG_SLOPE)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize("size", [1e1, 1e5, 1e15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_for_parameters_of_any_size(inverse, size, dtype):
    """A conditioner far from its data asks for anything; slopes without bound made NaNs here."""
    params = (size * random_params(400)).to(dtype).requires_grad_()
    x = torch.linspace(-4, 4, 400, dtype=dtype).requires_grad_()
    y, ladj = spline(x, params, inverse=inverse)
    grads = torch.autograd.grad(y.sum() + ladj.sum(), [x, params])
    assert all(t.isfinite().all() for t in (y, ladj, *grads))


def test_float32_inverse_keeps_its_digits():
    """The quadratic's textbook form loses them by cancellation: this one has none to lose."""
    params = random_params(4000, scale=2.0)
    u = torch.linspace(-0.999 * BOUND, 0.999 * BOUND, 4000)
    exact, ladj = spline(u, params, inverse=True)
    single, _ = spline(u.float(), params.float(), inverse=True)
    allowed = 20 * 1.2e-7 * BOUND * ladj.exp().clamp_min(1)
    assert ((single - exact).abs() <= allowed).all()


def test_gradients_of_the_inverse():
    params = random_params(5).requires_grad_()
    y = torch.linspace(-2, 2, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: spline(a, b, inverse=True), (y, params))


def test_broadcasts_parameters_over_values():
    y, ladj = spline(torch.zeros(7, 1, 2), random_params(3, 2))
    assert y.shape == ladj.shape == (7, 3, 2)
