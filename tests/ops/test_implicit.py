# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Fixed points with implicit gradients: against the gradients of all passes."""

import pytest
import torch

from pyro_flows.errors import DerivativeError
from pyro_flows.ops import implicit_fixed_point, solve_by_passes

DIM = 6


def problem(seed=0):
    generator = torch.Generator().manual_seed(seed)
    lower = torch.randn(DIM, DIM, generator=generator, dtype=torch.float64).tril(-1)
    y = torch.randn(4, DIM, generator=generator, dtype=torch.float64)
    return lower.requires_grad_(), y.requires_grad_()


def step_of(lower, y):
    def step(x):
        new = y - torch.tanh(x @ lower.tril(-1).T)
        return new, new.exp()

    return step


def test_the_solution_and_its_gradients_are_those_of_all_passes():
    lower, y = problem()
    step = step_of(lower, y)
    x = torch.zeros_like(y)
    for _ in range(DIM):
        x, other = step(x)
    expected = torch.autograd.grad((x**2).sum() + other.sum(), (lower, y))
    got, other_got = solve_by_passes(step, torch.ones_like(y), DIM)
    grads = torch.autograd.grad((got**2).sum() + other_got.sum(), (lower, y))
    assert torch.allclose(got, x, atol=1e-14)
    for a, b in zip(grads, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_gradients_of_tiny_weights_are_as_exact():
    lower, y = problem()
    x, _ = solve_by_passes(step_of(lower, y), torch.zeros_like(y), DIM)
    plain = torch.autograd.grad((x**2).sum(), y, retain_graph=True)[0]
    tiny = torch.autograd.grad(1e-30 * (x**2).sum(), y)[0]
    assert torch.allclose(1e30 * tiny, plain, rtol=1e-12)


def test_passes_stop_when_nothing_moves():
    calls = []

    def step(x):
        calls.append(x)
        return torch.ones_like(x), x

    solve_by_passes(step, torch.zeros(3, 64), 64)
    assert len(calls) == 2 + 2  # and two with gradient
    calls.clear()
    with torch.no_grad():
        solve_by_passes(step, torch.zeros(3, 64), 64)
    assert len(calls) == 2


def test_a_bad_start_does_no_harm():
    """Overflow on the way doesn't reach coordinates through weights of zero."""
    lower, y = (t.detach() for t in problem())

    def step(x):
        new = y - torch.exp(50 * (x @ lower.tril(-1).T))
        return new, new

    exact = torch.zeros_like(y)
    for i in range(DIM):
        exact[:, i] = step(exact)[0][:, i]
    exact = exact.nan_to_num()
    x, _ = solve_by_passes(step, torch.full_like(y, 1e3), DIM)
    assert torch.equal(x[:, :2], exact[:, :2])
    assert not x.isnan().any()


def test_second_derivatives_are_right():
    """Of both results, against all passes; with passes that stop early."""
    lower, y = problem()
    lower = (0.1 * lower).detach().requires_grad_()

    def solved(lower, y):
        return solve_by_passes(step_of(lower, y), torch.zeros_like(y), DIM)

    def passes(lower, y):
        x = torch.zeros_like(y)
        for _ in range(DIM):
            x, other = step_of(lower, y)(x)
        return x, other

    along = [torch.randn_like(lower), torch.randn_like(y)]
    products = []
    for run in (solved, passes):
        x, other = run(lower, y)
        grads = torch.autograd.grad((x**2 * other).sum(), (lower, y), create_graph=True)
        slope = sum((g * v).sum() for g, v in zip(grads, along, strict=True))
        products.append(torch.autograd.grad(slope, (lower, y)))
    for got, expected in zip(*products, strict=True):
        assert torch.allclose(got, expected, rtol=1e-9, atol=1e-10)


def test_differentiable_once():
    a = torch.tensor([0.5], dtype=torch.float64, requires_grad=True)
    x = implicit_fixed_point(lambda x: a * x + 1, torch.tensor([2.0], dtype=torch.float64), 100)
    (gradient,) = torch.autograd.grad(x.sum(), a, create_graph=True)
    assert gradient.item() == pytest.approx(4.0)
    with pytest.raises(DerivativeError, match="A fixed point expected to be .* at most once"):
        torch.autograd.grad(gradient.sum(), a)
