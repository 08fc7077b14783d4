# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The gradient of a fixed point, without the iterations that led to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


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
