# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Networks with a Lipschitz bound, networks as vector fields, and their pushed tangents."""

import pytest
import torch

from pyro_flows.nn import LipschitzMLP, VectorField
from pyro_flows.nn.lipschitz import STEEPEST, push


def randomised(module, size):
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(size * torch.randn_like(p))
    return module


@pytest.mark.parametrize("size", [0.01, 1.0, 1e4, 1e150])
@pytest.mark.parametrize("hidden_dims", [(), (16,), (64, 32)])
def test_the_bound_holds(size, hidden_dims):
    net = randomised(LipschitzMLP(5, hidden_dims=hidden_dims, lipschitz=0.8), size)
    x = torch.randn(50, 5)
    jacobians = push(net.affines(), x, torch.eye(5))[1]
    norms = torch.linalg.matrix_norm(jacobians, ord=2)
    assert (norms <= 0.8).all()
    if size == 1e4 and not hidden_dims:
        assert (norms > 0.7).all()  # and is not wasted


def test_small_weights_are_used_as_they_are():
    net = randomised(LipschitzMLP(3, hidden_dims=(4,)), 1e-5)
    for (weight, _), linear in zip(net.affines(), net.linears, strict=True):
        assert torch.allclose(weight, linear.weight, rtol=1e-8)


def test_the_activation_is_as_steep_as_it_says():
    x = torch.linspace(-20, 20, 400001)
    slope = torch.sigmoid(x) * (1 + x * (1 - torch.sigmoid(x)))
    assert 0.999 * STEEPEST < slope.max() <= STEEPEST


def test_a_context_moves_the_network_but_not_its_bound():
    net = randomised(LipschitzMLP(3, 2, hidden_dims=(8,), lipschitz=0.5), 10.0)
    x, contexts = torch.randn(1, 3), torch.randn(20, 2)
    y = net(x, contexts)
    assert y.shape == (20, 3)
    assert (y - y[0])[1:].abs().min() > 0
    norms = torch.linalg.matrix_norm(push(net.affines(contexts), x, torch.eye(3))[1], ord=2)
    assert (norms <= 0.5).all()


def test_pushed_tangents_are_derivatives():
    net = randomised(LipschitzMLP(3, 2, hidden_dims=(8, 4)), 2.0)
    x, context = torch.randn(3), torch.randn(2)
    value, rows = push(net.affines(context), x, torch.eye(3))
    assert torch.equal(value, net(x, context))
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, context), x)
    assert torch.allclose(rows, jacobian.T)


@pytest.mark.parametrize("hidden_dims", [(), (8,), (8, 4)])
def test_a_field_pushes_its_tangents(hidden_dims):
    field = randomised(VectorField(3, 2, hidden_dims), 1.0)
    z, context = torch.randn(3), torch.randn(2)
    value, rows = field.push(0.3, z, context, torch.eye(3))
    assert torch.allclose(value, field(0.3, z, context))
    jacobian = torch.autograd.functional.jacobian(lambda z: field(0.3, z, context), z)
    assert torch.allclose(rows, jacobian.T)


def test_a_field_knows_the_time():
    field = randomised(VectorField(3), 1.0)
    z = torch.randn(3).expand(2, 3)
    together = field(torch.tensor([[0.1], [0.9]]), z)
    assert torch.allclose(together[1], field(0.9, z[0]))
    assert not torch.allclose(together[0], together[1])
