# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The MLP with its gradient written out, for loops in which autograd's bookkeeping is the cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from pyro_flows.nn.activations import pseudo_huber
from pyro_flows.nn.mlp import MLP, SHORTCUT


def _tanh(x: Tensor) -> tuple[Tensor, Tensor]:
    y = torch.tanh(x)
    return y, torch.addcmul(x.new_ones(()), y, y, value=-1)


def _pseudo_huber(x: Tensor) -> tuple[Tensor, Tensor]:
    # A square root takes less than hypot, and overflows beyond 1e19 only, in float32.
    cone = torch.addcmul(x.new_ones(()), x, x).sqrt_()
    return cone - 1, x / cone


# Activations whose derivative is known here: value and slope.
WITH_SLOPE: dict[Callable[[Tensor], Tensor], Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    torch.tanh: _tanh,
    pseudo_huber: _pseudo_huber,
}


def clamp_with_slope(x: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """:func:`pyro_flows.ops.soft_clamp` and its derivative."""
    share, slope = _tanh(x * (1 / bound))
    return share * bound, slope


def can_be_written_out(net: nn.Module) -> bool:
    """Whether ``net`` is an MLP that :class:`WrittenOut` stands for, as it is set now."""
    if type(net) is not MLP or net.in_dim == 0 or (net.dropout and net.training):
        return False
    maps = [*net.linears, *([] if net.shortcut is None else [net.shortcut])]
    return (
        any(net.activation is known for known in WITH_SLOPE)
        and all(type(part) is nn.Linear for part in maps)
        and all(part.bias is not None for part in net.linears)
        and not any(part._forward_hooks or part._forward_pre_hooks for part in (net, *maps))
    )


def weights_of(net: MLP) -> list[Tensor]:
    """The parameters of an MLP as :class:`WrittenOut` takes them: the shortcut's is the last."""
    linears = cast("list[nn.Linear]", list(net.linears))
    weights = [tensor for linear in linears for tensor in (linear.weight, linear.bias)]
    if net.shortcut is not None:
        weights.append(net.shortcut.weight)
    return weights


class WrittenOut:
    """One pass of an :class:`MLP` that keeps what its gradients need.

    Args:
        net: an MLP for which :func:`can_be_written_out` holds.
        weights: :func:`weights_of` it.
    """

    def __init__(self, net: MLP, weights: list[Tensor]) -> None:
        self.net, self.weights = net, weights

    def push(self, x: Tensor) -> Tensor:
        """Map ``(N, in_dim)`` to ``(N, out_dim)``; autograd must not be recording."""
        net, weights = self.net, self.weights
        pairs = len(weights) // 2
        self.matrices, biases = weights[0 : 2 * pairs : 2], weights[1 : 2 * pairs : 2]
        self.shortcut = weights[-1] if len(weights) % 2 else None
        self.bounded: Tensor | None = None
        if net.reach < float("inf"):
            x, self.bounded = clamp_with_slope(x, net.reach)
        self.units, self.slopes = [x], []  # inputs of each linear map; slopes between them
        activate = WITH_SLOPE[net.activation]
        for matrix, bias in zip(self.matrices[:-1], biases[:-1], strict=True):
            x, slope = activate(nn.functional.linear(x, matrix, bias))
            self.units.append(x)
            self.slopes.append(slope)
        self.share = 1 / x.shape[-1]
        y = torch.addmm(biases[-1], x, self.matrices[-1].t(), beta=self.share, alpha=self.share)
        if self.shortcut is not None:
            y = torch.addmm(y, self.units[0], self.shortcut.t(), alpha=SHORTCUT)
        return y

    def pull(self, ahead: Tensor, *, weights: bool = False) -> tuple[Tensor, list[Tensor]]:
        """What a gradient by the outputs is by the inputs, and by the weights if asked for.

        Args:
            ahead: the gradient by the outputs, shape ``(N, out_dim)``.
            weights: also return those by the weights, in their order.
        """
        grads: list[Tensor] = []
        if self.shortcut is not None and weights:
            grads.append((ahead.t() @ self.units[0]) * SHORTCUT)
        back = ahead * self.share
        for index in range(len(self.matrices) - 1, -1, -1):
            if weights:
                grads += [back.sum(0), back.t() @ self.units[index]]
            back = back @ self.matrices[index]
            if index > 0:
                back = back * self.slopes[index - 1]
        if self.shortcut is not None:
            back = torch.addmm(back, ahead, self.shortcut, alpha=SHORTCUT)
        return back if self.bounded is None else back * self.bounded, grads[::-1]
