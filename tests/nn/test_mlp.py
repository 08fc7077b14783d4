# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The multilayer perceptron conditioner."""

import math

import pytest
import torch

from pyro_flows.nn import MLP, pseudo_huber


@pytest.mark.parametrize("hidden_dims", [(), (8,), (8, 8)])
def test_starts_at_zero_exactly(hidden_dims):
    net = MLP(3, 4, hidden_dims=hidden_dims)
    y = net(100 * torch.randn(5, 2, 3))
    assert y.shape == (5, 2, 4)
    assert (y == 0).all()


@pytest.mark.parametrize("hidden_dims", [(), (8,), (8, 8)])
def test_learns(hidden_dims):
    """All parameters get gradients once the last layer has moved."""
    net = MLP(3, 4, hidden_dims=hidden_dims)
    for p in net.parameters():
        p.data.add_(0.1)
    net(torch.randn(5, 3)).square().sum().backward()
    assert all((p.grad != 0).any() for p in net.parameters())


def test_no_inputs_make_a_trainable_constant():
    net = MLP(0, 4)
    assert net(torch.zeros(5, 2, 0)).shape == (5, 2, 4)
    assert [tuple(p.shape) for p in net.parameters()] == [(4,)]
    net.bias.data.fill_(2.0)
    assert (net(torch.zeros(0)) == 2.0).all()


def test_linear_dependence_reaches_beyond_the_activation():
    """Far from the data tanh is flat; the shortcut keeps the output growing."""
    net = MLP(1, 1, hidden_dims=(8,))
    net.shortcut.weight.data.fill_(0.5)
    assert net(torch.tensor([1e6])).item() == pytest.approx(0.2 * 5e5)


def test_within_its_reach_only():
    net = MLP(1, 1, hidden_dims=(8,), reach=10.0)
    for p in net.parameters():
        p.data.add_(0.1)
    near, far, farther = net(torch.tensor([[0.1], [1e3], [1e30]]))
    assert 0 < far == farther
    net.reach = math.inf
    torch.testing.assert_close(near, net(torch.tensor([0.1])), rtol=1e-3, atol=0.0)
    assert net(torch.tensor([1e3])) > 10 * far


def test_no_inputs_keep_dtype():
    assert MLP(0, 4).float()(torch.zeros(3, 0)).dtype == torch.float32


def test_printed():
    assert "in_dim=3, out_dim=4" in repr(MLP(3, 4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pseudo_huber_is_even_and_finite_far_away(dtype):
    x = torch.tensor([-1e30, -2.0, -1e-8, 0.0, 1e-8, 2.0, 1e30], dtype=dtype, requires_grad=True)
    y = pseudo_huber(x)
    assert torch.equal(y, y.flip(0))
    torch.testing.assert_close(y[[1, 6]], torch.tensor([5**0.5 - 1, 1e30], dtype=dtype))
    (slope,) = torch.autograd.grad(y.sum(), x)
    expected = torch.tensor([-1.0, -(0.8**0.5), -1e-8, 0.0, 1e-8, 0.8**0.5, 1.0], dtype=dtype)
    torch.testing.assert_close(slope, expected)


def test_pseudo_huber_has_second_derivatives():
    x = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(pseudo_huber, x)
