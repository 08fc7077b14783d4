# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Second derivatives of what is found by iteration: right, or refused."""

import pytest
import torch

from pyro_flows.errors import DerivativeError
from pyro_flows.ops import bernstein_basis, log_det_estimate, normal_quantile_of_log, powers
from pyro_flows.ops.derivatives import once


def cube(x):
    return once(x**3, "This cube")


X = torch.tensor([0.5, -2.0], dtype=torch.float64)


def test_once_is_the_identity_with_its_gradient():
    x = X.clone().requires_grad_()
    assert torch.equal(cube(x), x**3)
    for create_graph in (False, True):
        (gradient,) = torch.autograd.grad(cube(x).sum(), x, create_graph=create_graph)
        assert torch.equal(gradient, 3 * X**2)


def test_once_refuses_a_second_derivative_by_anything_it_depends_on():
    """Also where what is recorded around it could be differentiated."""
    x, a = X.clone().requires_grad_(), torch.tensor(1.5, requires_grad=True)
    grads = torch.autograd.grad(cube(a * x).exp().sum(), (x, a), create_graph=True)
    for gradient in grads:
        for leaf in (x, a):
            with pytest.raises(DerivativeError) as caught:
                torch.autograd.grad(gradient.sum(), leaf, retain_graph=True)
            assert str(caught.value) == (
                "This cube expected to be differentiated at most once, but got one derivative "
                "more, which would be wrong. Take finite differences of the gradient, or another "
                "layer."
            )


def test_once_leaves_other_second_derivatives_alone():
    x, b = X.clone().requires_grad_(), torch.tensor(1.5, requires_grad=True)
    (gradient,) = torch.autograd.grad(cube(x.detach()).sum() * b**3, b, create_graph=True)
    assert torch.allclose(torch.autograd.grad(gradient, b)[0], 6 * b * (X**3).sum())


def test_once_under_functorch():
    slopes = torch.func.vmap(torch.func.grad(cube))(X)
    assert torch.equal(slopes, 3 * X**2)
    assert torch.equal(torch.func.jvp(cube, (X,), (X,))[1], 3 * X**3)
    for outer in (torch.func.jacfwd, torch.func.jacrev):
        with pytest.raises(DerivativeError, match="This cube expected"):
            outer(torch.func.grad(lambda x: cube(x).sum()))(X)


def test_an_estimated_log_det_refuses_second_derivatives():
    def estimate(x):
        half = 0.5 * x.cos()
        return log_det_estimate(lambda v: half * v, torch.ones_like(x), lipschitz=0.5).sum()

    assert torch.func.grad(estimate)(X).isfinite().all()
    with pytest.raises(DerivativeError, match="An estimated log-determinant expected"):
        torch.autograd.functional.hessian(estimate, X)


def test_second_derivatives_of_a_normal_quantile():
    """Of a gradient of any order: the slope is a function of the quantile."""
    log_p = torch.tensor([-0.75, -3.0, -80.0, -1e5], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(normal_quantile_of_log, log_p)
    assert torch.autograd.gradgradcheck(normal_quantile_of_log, log_p, rtol=1e-4)

    def total(log_p):
        return normal_quantile_of_log(log_p).sum()

    exact = torch.autograd.functional.hessian(total, log_p)
    for outer in (torch.func.jacfwd, torch.func.jacrev):
        assert torch.allclose(outer(torch.func.grad(total))(log_p.detach()), exact, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_second_derivatives_of_powers_at_zero(dtype):
    """Where a clamp puts values outside the box: torch.pow has NaN there."""
    zero = torch.zeros((), dtype=dtype)
    for k, expected in enumerate((0.0, 0.0, 2.0, 0.0)):
        second = torch.autograd.functional.hessian(lambda x, k=k: powers(x, 3)[k], zero)
        assert second.item() == pytest.approx(expected, abs=1e-9)
    for end in (zero, zero + 1):
        hessian = torch.autograd.functional.hessian(lambda t: bernstein_basis(t, 3)[2], end)
        assert hessian.item() == pytest.approx(6.0 if end == 0 else -12.0)
