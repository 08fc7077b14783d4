# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Splines other than the rational-quadratic one: what they share, and what each one is."""

import math

import pytest
import torch

from pyro_flows.ops import (
    cubic_spline,
    linear_rational_spline,
    piecewise_linear,
    quadratic_spline,
)

BINS, BOUND = 6, 3.0
SPLINES = {
    piecewise_linear: 2 * BINS,
    quadratic_spline: 2 * BINS - 1,
    cubic_spline: 3 * BINS - 3,
    linear_rational_spline: 4 * BINS - 1,
}
SMOOTH = [s for s in SPLINES if s is not piecewise_linear]
every = pytest.mark.parametrize("spline", SPLINES, ids=lambda s: s.__name__)
smooth = pytest.mark.parametrize("spline", SMOOTH, ids=lambda s: s.__name__)
both_ways = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


def random_params(spline, *shape, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, SPLINES[spline], generator=generator, dtype=torch.float64)


def edges(logits):
    sizes = 2 * BOUND * (1e-3 + (1 - 1e-3 * logits.shape[-1]) * logits.softmax(-1))
    return torch.cat([sizes[..., :1] * 0, sizes.cumsum(-1)], -1) - BOUND


@every
@both_ways
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_parameters_are_the_identity(spline, inverse, dtype):
    x = torch.linspace(-5, 5, 101, dtype=dtype)
    params = torch.zeros(101, SPLINES[spline], dtype=dtype)
    y, ladj = spline(x, params, BOUND, inverse=inverse)
    assert (y - x).abs().max() < 10 * torch.finfo(dtype).eps
    assert ladj.abs().max() < 10 * torch.finfo(dtype).eps


@every
@both_ways
def test_outside_the_box_is_the_identity(spline, inverse):
    x = torch.tensor([-1e20, -BOUND, BOUND, 1e20])
    y, ladj = spline(x, random_params(spline, 4), BOUND, inverse=inverse)
    assert torch.equal(y, x)
    assert torch.equal(ladj, torch.zeros(4))


@every
@both_ways
def test_the_value_is_continuous_at_the_bound(spline, inverse):
    edge = torch.tensor([-BOUND, BOUND])
    y, _ = spline(edge * (1 - 1e-9), random_params(spline, 2, scale=2.0), BOUND, inverse=inverse)
    assert (y - edge).abs().max() < 1e-6


@smooth
@both_ways
def test_the_slope_is_continuous_at_the_bound_and_at_knots(spline, inverse):
    params = random_params(spline, 1, scale=0.5)

    def largest_step(count):
        x = torch.linspace(-3.1, 3.1, count)
        return spline(x, params.expand(count, -1), BOUND, inverse=inverse)[1].diff().abs().max()

    # A jump would not shrink with the distance, as a bend does.
    coarse, fine = largest_step(10_001), largest_step(100_001)
    assert 0 < fine < 0.2 * coarse


def test_the_slope_of_piecewise_linear_jumps():
    x = torch.linspace(-3.1, 3.1, 10_001)
    _, ladj = piecewise_linear(x, random_params(piecewise_linear, 1).expand(len(x), -1), BOUND)
    assert (ladj.diff().abs() > 0.01).sum() == BINS + 1


@every
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_inverse_gives_back(spline, scale):
    params = random_params(spline, 5000, scale=scale)
    x = torch.linspace(-BOUND, BOUND, 5000)
    y, ladj = spline(x, params, BOUND)
    back, back_ladj = spline(y, params, BOUND, inverse=True)
    assert ((back - x).abs() <= 100 * 2.3e-16 * BOUND * (1 + (-ladj).exp())).all()
    # At a knot of the linear one a rounded value may be of either bin.
    differs = (ladj + back_ladj).abs() > 1e-6
    assert differs.sum() <= (2 if spline is piecewise_linear else 0)


@every
def test_increases_strictly(spline):
    x = torch.linspace(-4, 4, 2001)
    y, _ = spline(x, random_params(spline, 1, scale=3.0).expand(2001, -1), BOUND)
    assert (y.diff() > 0).all()


@every
@both_ways
@pytest.mark.parametrize("size", [1e1, 1e5, 1e15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_for_parameters_of_any_size(spline, inverse, size, dtype):
    params = (size * random_params(spline, 400)).to(dtype).requires_grad_()
    x = torch.linspace(-4, 4, 400, dtype=dtype).requires_grad_()
    y, ladj = spline(x, params, BOUND, inverse=inverse)
    grads = torch.autograd.grad(y.sum() + ladj.sum(), [x, params])
    assert all(t.isfinite().all() for t in (y, ladj, *grads))
    assert ladj.abs().max() < 30


@every
def test_float32_keeps_its_digits(spline):
    params = random_params(spline, 4000, scale=2.0)
    x = torch.linspace(-0.999 * BOUND, 0.999 * BOUND, 4000)
    for inverse in (False, True):
        exact, ladj = spline(x, params, BOUND, inverse=inverse)
        single, _ = spline(x.float(), params.float(), BOUND, inverse=inverse)
        allowed = 50 * 1.2e-7 * BOUND * ladj.exp().clamp_min(1)
        assert ((single - exact).abs() <= allowed).all()


@every
@both_ways
def test_gradients(spline, inverse):
    params = random_params(spline, 5).requires_grad_()
    x = torch.linspace(-2, 2, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: spline(a, b, BOUND, inverse=inverse), (x, params))


@every
def test_broadcasts_parameters_over_values(spline):
    y, ladj = spline(torch.zeros(7, 1, 2), random_params(spline, 3, 2), BOUND)
    assert y.shape == ladj.shape == (7, 3, 2)


def test_piecewise_linear_interpolates_its_knots():
    params = random_params(piecewise_linear, 1)
    x_knots, y_knots = edges(params[0, :BINS]), edges(params[0, BINS:])
    x = torch.linspace(-2.9, 2.9, 50)
    k = torch.searchsorted(x_knots, x) - 1
    share = (x - x_knots[k]) / (x_knots[k + 1] - x_knots[k])
    expected = y_knots[k] + share * (y_knots[k + 1] - y_knots[k])
    y, _ = piecewise_linear(x, params.expand(50, -1), BOUND)
    assert torch.allclose(y, expected, atol=1e-12)


def test_the_slope_of_a_quadratic_is_linear_and_in_the_ratio_that_is_asked_for():
    params = random_params(quadratic_spline, 1)
    knots = edges(params[0, :BINS])
    nearly = torch.cat([knots[:-1] + 1e-9, 0.5 * (knots[1:] + knots[:-1])])
    slopes = quadratic_spline(nearly, params.expand(2 * BINS, -1), BOUND)[1].exp()
    at, between = slopes[:BINS], slopes[BINS:]
    assert torch.allclose(between, 0.5 * (at + torch.cat([at[1:], at[:1] * 0 + 1])), atol=1e-6)
    bound = 0.5 * math.log(1e3)
    asked = (bound * torch.tanh(params[0, BINS:] / bound)).exp()
    assert torch.allclose(at[1:] / at[1], asked / asked[0], atol=1e-6)


def test_cubics_in_every_bin():
    """Divided differences of order three agree within a bin; knots are where they should be."""
    params = random_params(cubic_spline, 1)
    x_knots = edges(params[0, :BINS])
    widths = x_knots.diff()
    inner = params[0, BINS : 2 * BINS - 2]
    share = 1e-3 + (1 - 1e-3 * (BINS - 2)) * inner.softmax(-1)
    heights = torch.cat([widths[:1], share * widths[1:-1].sum(), widths[-1:]])
    y_knots = torch.cat([torch.zeros(1), heights.cumsum(0)]) - BOUND
    y, _ = cubic_spline(x_knots, params.expand(BINS + 1, -1), BOUND)
    assert torch.allclose(y, y_knots, atol=1e-12)
    for low, width in zip(x_knots, widths, strict=False):
        x = low + width * torch.linspace(0.01, 0.99, 6)
        y, _ = cubic_spline(x, params.expand(6, -1), BOUND)
        third = y.diff(n=3)
        assert torch.allclose(third, third[:1].expand(3), atol=1e-10)


def test_cubic_slopes_stay_in_the_monotone_region_however_large_the_parameters():
    params = 1e6 * random_params(cubic_spline, 500).sign()
    x = torch.linspace(-2.99, 2.99, 2001).unsqueeze(-1)
    _, ladj = cubic_spline(x, params, BOUND)
    assert ladj.min() > -15


def test_linear_rational_pieces_keep_cross_ratios():
    """What characterises a quotient of linear functions; the pieces end at a middle knot."""
    params = random_params(linear_rational_spline, 1)
    knots = edges(params[0, :BINS])
    middles = 0.025 + 0.95 * params[0, 2 * BINS : 3 * BINS].sigmoid()
    for low, width, share in zip(knots, knots.diff(), middles, strict=False):
        for begin, end in ((0.0, float(share)), (float(share), 1.0)):
            t = begin + (end - begin) * torch.tensor([0.01, 0.3, 0.6, 0.99])
            x = low + width * t
            y, _ = linear_rational_spline(x, params.expand(4, -1), BOUND)
            assert torch.allclose(cross_ratio(y), cross_ratio(x), rtol=1e-8)


def cross_ratio(x):
    return (x[2] - x[0]) * (x[3] - x[1]) / ((x[2] - x[1]) * (x[3] - x[0]))


def test_linear_rational_slopes_at_knots_are_those_asked_for():
    params = random_params(linear_rational_spline, 1)
    knots = edges(params[0, :BINS])[1:-1]
    bound = math.log(1e3)
    asked = bound * torch.tanh(params[0, 3 * BINS :] / bound)
    for side in (-1e-10, 1e-10):
        _, ladj = linear_rational_spline(knots + side, params.expand(BINS - 1, -1), BOUND)
        assert torch.allclose(ladj, asked, atol=1e-6)
