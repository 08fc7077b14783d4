# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Fixed points whose gradient doesn't run through the iterations that led to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_flows.ops.derivatives import once, to_second_order
from pyro_flows.ops.roots import fixed_point
from pyro_flows.ops.tracing import is_recording

# The map's value at a constant, that constant, and the most terms.
Graph = tuple[Tensor, Tensor, int]


def implicit_fixed_point(step: Callable[[Tensor], Tensor], x: Tensor, most: int) -> Tensor:
    """Give a fixed point ``x = step(x)`` its gradient by all that ``step`` closes over.

    By the implicit function theorem the gradient ``g`` of a loss by ``x`` becomes
    ``v = g + g N + g N^2 + ...`` with ``N = d step / dx``, and goes on from one evaluation of
    ``step``. The series is summed until nothing changes; in an autoregressive map ``N`` is
    nilpotent, so that it ends.

    Args:
        step: the map, of the shape of ``x``; batch elements must not depend on each other.
        x: the fixed point, ``(*, D)``, with or without a graph of its own, which is cut off.
        most: the most terms of the series.

    Returns:
        ``step(x)``, differentiable once; a second time is refused.

    Cost: one evaluation of ``step`` with gradient, so the memory of one pass; its backward
    costs a vector-Jacobian product and one look at the result for each term.

    Example:
        >>> a = torch.tensor([0.5], requires_grad=True)
        >>> x = implicit_fixed_point(lambda x: a * x + 1, torch.tensor([2.0]), 100)
        >>> gradient = torch.autograd.grad(x, a)[0]  # of 1 / (1 - a)
        >>> torch.allclose(gradient, torch.tensor([4.0]))
        True
    """
    return once(_implicit(step, x, most)[0], "A fixed point")


def _implicit(step: Callable[[Tensor], Tensor], x: Tensor, most: int) -> tuple[Tensor, Graph]:
    leaf = x.detach().requires_grad_()
    value = step(leaf)
    graph = value, leaf, most
    return _FixedPoint.apply(value, graph), graph


def solve_by_passes(
    step: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, depth: int
) -> tuple[Tensor, Tensor]:
    """Solve ``x = step(x)`` where each number depends on few others, and so on, without cycles.

    Passes begin at ``start`` and stop when nothing moves by more than 16 eps. Numbers that wait
    for no other are right after one pass, those that wait for these after two, ...: all are after
    ``depth``, however bad the start. Far fewer do where dependence is mild.

    Args:
        step: ``x -> (new x, any result)``; shapes ``(*, D)``. It is shown finite numbers only.
        start: where to begin.
        depth: numbers on the longest path of dependence.

    Returns:
        Both results of the last step, with implicit gradients, right to second order; where
        operations are recorded (see :func:`is_recording`), with those of ``depth`` passes.

    Cost: passes without gradient; where it is wanted two passes more, and in the backward as many
    vector-Jacobian products as :func:`implicit_fixed_point` says; ``depth`` of them, with their
    graph, in a gradient that is to be differentiated.

    Example:
        >>> weight = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
        >>> x, _ = solve_by_passes(lambda x: (1 - x @ weight.T, x), torch.zeros(2), 2)
        >>> torch.equal(x, torch.tensor([1.0, -1.0]))
        True
    """
    latest: list[Tensor] = []

    def first(x: Tensor) -> Tensor:
        # A number that overflows before those it depends on are right must not reach them: a
        # weight of zero makes NaN of infinity.
        x, other = step(x.nan_to_num())
        latest[:] = [other]
        return x

    if is_recording() or not torch.is_grad_enabled():
        x = fixed_point(first, start, depth, 16 * torch.finfo(start.dtype).eps)
    else:
        with torch.no_grad():
            x = fixed_point(first, start, depth, 16 * torch.finfo(start.dtype).eps)
        x, graph = _implicit(first, x, depth)
        new = first(x)
        x, other = to_second_order(x, (new, latest[0]), new - x, lambda v: _series(v, graph))
        return x, other
    return x, latest[0]


def _series(grad: Tensor, graph: Graph) -> Tensor:
    """``grad + grad N + grad N^2 + ...``, until nothing changes."""
    value, leaf, most = graph
    eps, total = 4 * torch.finfo(grad.dtype).eps, grad
    for _ in range(most - 1):
        new = grad + torch.autograd.grad(value, leaf, total, retain_graph=True)[0]
        # Relative to the element's own gradient: a sample's weight may be tiny.
        settled = (new - total).abs() <= eps * new.abs().amax(-1, keepdim=True)
        total = new
        if bool((settled | new.isnan()).all()):
            break
    return total


class _FixedPoint(torch.autograd.Function):
    """The identity, whose backward sums the series."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, graph: Graph) -> Tensor:
        ctx.graph = graph
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if not torch.is_grad_enabled():
            return _series(grad, ctx.graph), None
        # To be differentiated by ``grad``, which is 0 there: no term may be left out.
        value, leaf, most = ctx.graph
        total = grad
        for _ in range(most - 1):
            total = grad + torch.autograd.grad(value, leaf, total, create_graph=True)[0]
        return total, None
