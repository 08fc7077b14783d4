# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Squashes: torch's values, exact log-slopes in the tails, nothing outside."""

import math

import pytest
import torch
from torch.distributions import constraints, transforms

from pyro_flows.ops import elu_squash, leaky_tanh, sigmoid_squash, softplus_squash, tanh_squash
from pyro_flows.ops.squashes import softplus

CODOMAINS = {
    tanh_squash: constraints.interval(-1.0, 1.0),
    sigmoid_squash: constraints.unit_interval,
    softplus_squash: constraints.positive,
    elu_squash: constraints.greater_than(-1.0),
}
# Values that no number is mapped to.
OUTSIDE = {
    tanh_squash: [-1e20, -1.0001, 1.0001, math.inf],
    sigmoid_squash: [-1e20, -1e-9, 1.0001, math.inf],
    softplus_squash: [-1e20, -1e-300, 0.0, -math.inf],
    elu_squash: [-1e20, -1.0, -math.inf],
}
every = pytest.mark.parametrize("squash", CODOMAINS, ids=lambda s: s.__name__)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
FAR = torch.tensor([-1e20, -1e3, -100.0, -40.0, -20.0, 20.0, 40.0, 100.0, 1e3, 1e20])


@pytest.mark.parametrize(
    ("squash", "torchs"),
    [
        (tanh_squash, transforms.TanhTransform()),
        (sigmoid_squash, transforms.SigmoidTransform()),
        (softplus_squash, transforms.SoftplusTransform()),
    ],
)
def test_agrees_with_torch_in_the_middle(squash, torchs):
    x = torch.linspace(-6, 6, 101)
    y, ladj = squash(x)
    assert torch.allclose(y, torchs(x), atol=1e-12)
    assert torch.allclose(ladj, torchs.log_abs_det_jacobian(x, y), atol=1e-9)


def test_elu_agrees_with_torch():
    x = torch.linspace(-6, 6, 100)
    assert torch.allclose(elu_squash(x)[0], torch.nn.functional.elu(x), atol=1e-15)


@every
@both_dtypes
def test_strictly_inside_however_far(squash, dtype):
    x = FAR.to(dtype)
    y, ladj = squash(x)
    assert CODOMAINS[squash].check(y).all()
    edges = {
        tanh_squash: (-1, 1),
        sigmoid_squash: (0, 1),
        softplus_squash: (0,),
        elu_squash: (-1,),
    }
    assert all((y != edge).all() for edge in edges[squash])
    assert ladj.isfinite().all()
    # And so can be scored, and taken back.
    back, back_ladj = squash(y, inverse=True)
    assert back.isfinite().all()
    assert back_ladj.isfinite().all()


def test_log_slopes_in_the_tails():
    x = torch.tensor([-1e3, -300.0, 300.0, 1e3])
    away = x.abs()
    assert torch.allclose(tanh_squash(x)[1], math.log(4) - 2 * away, rtol=1e-14)
    assert torch.allclose(sigmoid_squash(x)[1], -away, rtol=1e-14)
    assert torch.allclose(softplus_squash(x)[1], x.clamp_max(0), rtol=1e-14)
    assert torch.allclose(elu_squash(x)[1], x.clamp_max(0), rtol=1e-14)


def test_softplus_has_no_threshold():
    x = torch.tensor([20.5, 25.0, 30.0])
    assert torch.allclose(softplus(x) - x, torch.log1p((-x).exp()), rtol=1e-4)
    assert ((softplus(x) - x) > 0).all()


def test_softplus_inverts_small_numbers():
    y = torch.tensor([1e-300, 1e-20, 1.0, 1e3])
    x, ladj = softplus_squash(y, inverse=True)
    assert torch.allclose(x[:2], y[:2].log(), rtol=1e-12)
    assert torch.allclose(ladj[:2], -y[:2].log(), rtol=1e-12)
    assert x[3] == 1e3


@every
@both_dtypes
def test_nothing_lies_outside(squash, dtype):
    y = torch.tensor(OUTSIDE[squash], dtype=dtype)
    y = y[y != 0] if dtype == torch.float32 and squash is softplus_squash else y
    y.requires_grad_()
    x, ladj = squash(y, inverse=True)
    assert x.isfinite().all()
    assert (ladj == -math.inf).all()
    (grad,) = torch.autograd.grad(x.sum() + torch.where(ladj.isfinite(), ladj, 0.0).sum(), y)
    assert grad.isfinite().all()


@every
def test_nan_stays_nan(squash):
    nan = torch.tensor([math.nan])
    assert all(t.isnan().all() for t in (*squash(nan), *squash(nan, inverse=True)))


@both_dtypes
def test_edges_of_intervals_count_as_their_neighbours(dtype):
    """Uniform numbers include 0, and rounding leads to 1: no reason for an infinite score."""
    eps = torch.finfo(dtype).eps
    x, ladj = tanh_squash(torch.tensor([-1.0, 1.0], dtype=dtype), inverse=True)
    expected = tanh_squash(torch.tensor([-1 + eps / 2, 1 - eps / 2], dtype=dtype), inverse=True)
    assert torch.equal(x, expected[0])
    assert torch.equal(ladj, expected[1])
    x, ladj = sigmoid_squash(torch.tensor([0.0, 1.0], dtype=dtype), inverse=True)
    assert x.isfinite().all()
    assert ladj.isfinite().all()


@both_dtypes
def test_leaky_tanh_is_smooth_and_reaches_everything(dtype):
    limit = 2.0
    x = torch.tensor([-1e10, -2.0, 1.0, 2.0, 3.0, 1e10], dtype=dtype)
    y, ladj = leaky_tanh(x, limit)
    slope = 1 - math.tanh(limit) ** 2
    inner, outer = x.abs() <= limit, x.abs() >= limit
    assert torch.allclose(y[inner], x[inner].tanh())
    assert torch.allclose(ladj[outer], torch.full_like(ladj[outer], math.log(slope)))
    assert torch.allclose(y[-2], torch.tensor(math.tanh(2) + slope, dtype=dtype))
    back, back_ladj = leaky_tanh(y, limit, inverse=True)
    assert torch.allclose(back, x, rtol=1e-5)
    assert torch.allclose(back_ladj, -ladj, atol=1e-5)
