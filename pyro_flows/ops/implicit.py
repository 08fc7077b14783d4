# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Fixed points whose gradient doesn't run through the iterations that led to them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_flows.ops.roots import fixed_point
from pyro_flows.ops.tracing import is_recording


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
        ``step(x)``, differentiable once.

    Cost: one evaluation of ``step`` with gradient, so the memory of one pass; its backward
    costs a vector-Jacobian product and one look at the result for each term.

    Example:
        >>> a = torch.tensor([0.5], requires_grad=True)
        >>> x = implicit_fixed_point(lambda x: a * x + 1, torch.tensor([2.0]), 100)
        >>> gradient = torch.autograd.grad(x, a)[0]  # of 1 / (1 - a)
        >>> torch.allclose(gradient, torch.tensor([4.0]))
        True
    """
    leaf = x.detach().requires_grad_()
    value = step(leaf)
    return _FixedPoint.apply(value, (value, leaf, most))


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
        Both results of the last step, with implicit gradients (of first order); where operations
        are recorded (see :func:`is_recording`), with those of ``depth`` passes.

    Cost: passes without gradient; where it is wanted two passes more, and in the backward as many
    vector-Jacobian products as :func:`implicit_fixed_point` says.

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
        x = first(implicit_fixed_point(first, x, depth))
    return x, latest[0]


class _FixedPoint(torch.autograd.Function):
    """The identity, whose backward sums the series."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, graph: tuple[Tensor, Tensor, int]) -> Tensor:
        ctx.graph = graph
        return value.clone()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        value, leaf, most = ctx.graph
        eps, total = 4 * torch.finfo(grad.dtype).eps, grad
        for _ in range(most - 1):
            new = grad + torch.autograd.grad(value, leaf, total, retain_graph=True)[0]
            # Relative to the element's own gradient: a sample's weight may be tiny.
            settled = (new - total).abs() <= eps * new.abs().amax(-1, keepdim=True)
            total = new
            if bool((settled | new.isnan()).all()):
                break
        return total, None
