# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Inverses of maps close to the identity."""

import math

import pytest
import torch

from pyro_flows.errors import DerivativeError, NotConvergedError
from pyro_flows.ops import contraction_inverse, log_det, near_identity_inverse


def sawtooth(x):
    """Contracts at rate 0.99, but is so bent that Newton alone cycles."""
    value = x + 0.99 * torch.sin(40 * x) / 40
    return value, torch.diag_embed(1 + 0.99 * torch.cos(40 * x))


def test_newton_is_guarded():
    y = torch.linspace(-2, 2, 400).reshape(200, 2)
    x, ladj = near_identity_inverse(sawtooth, y)
    value, jacobian = sawtooth(x)
    assert (value - y).abs().max() < 1e-14
    assert torch.allclose(ladj, -torch.linalg.slogdet(jacobian)[1])


def test_few_evaluations_are_enough():
    calls = []

    def counted(x):
        calls.append(None)
        return x + 0.5 * x.sin(), torch.diag_embed(1 + 0.5 * x.cos())

    with torch.no_grad():
        near_identity_inverse(counted, torch.linspace(-9, 9, 300).reshape(100, 3))
    assert len(calls) <= 9


def test_rows_of_the_jacobian_are_by_one_input():
    matrix = torch.tensor([[1.0, 0.3], [-0.2, 1.1]])
    y = torch.randn(4, 2, requires_grad=True)
    x, ladj = near_identity_inverse(lambda x: (x @ matrix.T, matrix.T.expand(4, 2, 2)), y)
    assert torch.allclose(x, torch.linalg.solve(matrix, y.T).T)
    assert torch.allclose(ladj, -torch.linalg.det(matrix).log())
    grad = torch.autograd.grad(x[:, 0].sum(), y)[0]
    assert torch.allclose(grad, torch.linalg.inv(matrix)[0].expand(4, 2))


def test_nan_stays_and_doesnt_spread():
    y = torch.tensor([[0.3, math.nan], [0.3, 0.4]])
    x, ladj = near_identity_inverse(sawtooth, y)
    assert x[0].isnan().any()
    assert ladj[0].isnan()
    assert torch.allclose(sawtooth(x[1])[0], y[1])


def folding(x):
    return x - 2 * torch.tanh(x), torch.diag_embed(1 - 2 * (1 - torch.tanh(x) ** 2))


def test_what_is_not_found_is_an_error():
    def hopeless(x):
        return x.abs() + 1, torch.diag_embed(x.sign())

    with pytest.raises(NotConvergedError, match="1 of 2 were not found: the map folds space"):
        near_identity_inverse(hopeless, torch.tensor([[-5.0], [3.0]]))
    y = torch.full((1, 2), 0.1)
    with pytest.raises(NotConvergedError, match="1 of 1 were not found"):
        contraction_inverse(lambda x: 3 * x, lambda x, v: 3 * v, y, y, 0.9)


def test_a_fold_has_no_log_det():
    assert log_det(folding(torch.zeros(1, 1))[1]).isnan().all()
    assert log_det(torch.diag(torch.tensor([-1.0, 1.0]))).isnan()
    assert log_det(torch.diag(torch.tensor([-1.0, -1.0]))) == 0


def test_contraction_inverse_has_the_implicit_gradient():
    w = torch.tensor([[0.2, 0.5], [-0.4, 0.1]], requires_grad=True)
    y = torch.randn(5, 2, requires_grad=True)

    def residual(x):
        return torch.tanh(x @ w.T)

    x = contraction_inverse(residual, lambda x, v: v, y, y, 0.9)
    expected = near_identity_inverse(lambda x: (x + residual(x), _dense(x, w)), y)[0]
    noise = torch.randn(5, 2)
    for got, want in zip(
        torch.autograd.grad((x * noise).sum(), (y, w)),
        torch.autograd.grad((expected * noise).sum(), (y, w)),
        strict=True,
    ):
        assert torch.allclose(got, want, atol=1e-10)


def bent(w):
    def function(x):
        return x + torch.tanh(x @ w.T), _dense(x, w)

    return function


Y = torch.tensor([[0.3, -1.0], [2.0, 0.1]], dtype=torch.float64)
W = torch.tensor([[0.2, 0.5], [-0.4, 0.1]], dtype=torch.float64)


def test_second_derivatives_are_right():
    y, w = Y.clone().requires_grad_(), W.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda y, w: near_identity_inverse(bent(w), y), (y, w))


def test_second_derivatives_under_functorch():
    def total(y):
        x, ladj = near_identity_inverse(bent(W), y)
        return (x.sin().sum(-1) * ladj).sum()

    exact = torch.autograd.functional.hessian(total, Y)
    assert torch.allclose(torch.func.hessian(total)(Y), exact, rtol=1e-8)


def test_a_contraction_refuses_second_derivatives():
    def halved(x):
        return 0.5 * x.sin()

    def along(x, v):
        return 0.5 * x.cos() * v

    def total(y):
        return (contraction_inverse(halved, along, y, y, 0.5) ** 2).sum()

    y = Y.clone().requires_grad_()
    with pytest.raises(DerivativeError, match="expected to be differentiated at most once"):
        torch.autograd.functional.hessian(total, y)
    for mode in (torch.func.jacfwd, torch.func.jacrev):
        with pytest.raises(DerivativeError, match="The inverse of a contraction expected"):
            mode(torch.func.grad(total))(Y)
    plain = torch.autograd.grad(total(y), y)[0]
    for mode in (torch.func.jacfwd, torch.func.jacrev):
        assert torch.allclose(mode(total)(Y), plain)


def _dense(x, w):
    h = torch.tanh(x @ w.T)
    return torch.eye(2) + ((1 - h * h).unsqueeze(-1) * w).mT
