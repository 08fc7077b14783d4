# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The multilayer perceptron conditioner."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from pyro_flows.nn.dropout import WithDropout
from pyro_flows.nn.sizes import hidden_widths
from pyro_flows.ops import soft_clamp

# The share of the linear shortcut: its weights see whole coordinates, not averages of features,
# so that one optimiser's step moves it further.
SHORTCUT = 0.2


class MLP(WithDropout):
    """A fully connected network with a linear shortcut, whose output starts at zero.

    ``y = net(x) / width + 0.2 W x``, the net's last layer and ``W`` zeroed: a transform that is
    the identity at zero parameters starts as the identity, exactly. The shortcut makes linear
    dependence, such as a log-scale proportional to another coordinate, quick to learn and right
    far from the data. Dividing by the width of the last hidden layer makes an optimiser's step
    change the output alike at every width, so that one learning rate serves (Yang et al. 2022,
    arXiv:2203.03466), and large ones, as are usual for Pyro's guides, don't diverge.

    Args:
        in_dim: width of the input; 0 makes the output a trainable constant.
        out_dim: width of the output.
        hidden_dims: widths of the hidden layers.
        activation: elementwise nonlinearity, smooth by default so that log densities are too.
        reach: inputs are softly bounded by it, so that no output grows without end.

    Shapes: ``(*, in_dim) -> (*, out_dim)``. Cost: one matrix product per layer.

    Example:
        >>> net = MLP(3, 4, hidden_dims=(16, 16))
        >>> net(torch.ones(7, 3)).shape, net(torch.ones(7, 3)).abs().max().item()
        (torch.Size([7, 4]), 0.0)
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        activation: Callable[[Tensor], Tensor] = torch.tanh,
        reach: float = math.inf,
    ) -> None:
        super().__init__()
        self.in_dim, self.out_dim, self.reach = in_dim, out_dim, reach
        self.activation = activation
        if in_dim == 0:
            self.bias = nn.Parameter(torch.zeros(out_dim))
            self.linears = nn.ModuleList()
            self.shortcut = None
            return
        hidden_dims = hidden_widths("MLP", hidden_dims)
        widths = [in_dim, *hidden_dims, out_dim]
        linears = [nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        nn.init.zeros_(linears[-1].weight)
        nn.init.zeros_(linears[-1].bias)
        self.linears = nn.ModuleList(linears)
        self.shortcut = nn.Linear(in_dim, out_dim, bias=False) if hidden_dims else None
        if self.shortcut is not None:
            nn.init.zeros_(self.shortcut.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, in_dim)`` to ``(*, out_dim)``."""
        if self.in_dim == 0:
            return self.bias.expand(*x.shape[:-1], self.out_dim)
        *hidden, last = self.linears
        h = x = soft_clamp(x, self.reach) if self.reach < math.inf else x
        for linear in hidden:
            h = self.drop(self.activation(linear(h)))
        y = last(h) / h.shape[-1]
        return y if self.shortcut is None else y + SHORTCUT * self.shortcut(x)

    def extra_repr(self) -> str:
        """Widths and reach in words, for ``print``."""
        reach = f", reach={self.reach}" if self.reach < math.inf else ""
        return f"in_dim={self.in_dim}, out_dim={self.out_dim}{reach}"
