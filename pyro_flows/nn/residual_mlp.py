# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The multilayer perceptron with residual blocks."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from pyro_flows.errors import ShapeError
from pyro_flows.nn.dropout import WithDropout
from pyro_flows.nn.mlp import SHORTCUT


class ResidualMLP(nn.Module):
    """Fully connected residual blocks with a linear shortcut, whose output starts at zero.

    ``h = W_0 x``, then ``h <- h + B act(A act(norm(h)))`` for each block, and
    ``y = net(h) / hidden_dim + 0.2 W x`` with the last layer and ``W`` zeroed, as in
    :class:`MLP`. Choose it over the MLP where there is data for a deeper network: it trains at
    depths at which a plain one doesn't.

    Args:
        in_dim: width of the input, at least 1.
        out_dim: width of the output.
        hidden_dim: width of the residual stream.
        blocks: number of residual blocks, two linear layers each.
        norm: whether each block, and the output, sees the stream normalised over its width
            (layer norm). Results then don't grow with far-away inputs except by the shortcut.
        activation: elementwise nonlinearity, smooth by default so that log densities are too.

    Shapes: ``(*, in_dim) -> (*, out_dim)``. Cost: ``2 blocks + 3`` matrix products.

    Reference: He et al., Identity mappings in deep residual networks, 2016, arXiv:1603.05027.

    Example:
        >>> net = ResidualMLP(3, 4, hidden_dim=16, norm=True)
        >>> net(torch.ones(7, 3)).shape, net(torch.ones(7, 3)).abs().max().item()
        (torch.Size([7, 4]), 0.0)
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        hidden_dim: int = 64,
        blocks: int = 2,
        norm: bool = False,
        activation: Callable[[Tensor], Tensor] = functional.silu,
    ) -> None:
        super().__init__()
        if in_dim < 1 or hidden_dim < 1 or blocks < 0:
            raise ShapeError(
                "ResidualMLP expected in_dim >= 1, hidden_dim >= 1 and blocks >= 0, but got "
                f"in_dim={in_dim}, hidden_dim={hidden_dim}, blocks={blocks}. Without inputs, use "
                "MLP: it gives a trainable constant."
            )
        self.in_dim, self.out_dim, self.hidden_dim = in_dim, out_dim, hidden_dim
        self.entry = nn.Linear(in_dim, hidden_dim)
        self.blocks = nn.ModuleList(
            _Block(hidden_dim, norm=norm, activation=activation) for _ in range(blocks)
        )
        self.norm = nn.LayerNorm(hidden_dim) if norm else nn.Identity()
        self.last = nn.Linear(hidden_dim, out_dim)
        self.shortcut = nn.Linear(in_dim, out_dim, bias=False)
        for zeroed in (self.last.weight, self.last.bias, self.shortcut.weight):
            nn.init.zeros_(zeroed)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, in_dim)`` to ``(*, out_dim)``."""
        h = self.entry(x)
        for block in self.blocks:
            h = block(h)
        return self.last(self.norm(h)) / self.hidden_dim + SHORTCUT * self.shortcut(x)

    def extra_repr(self) -> str:
        """Widths in words, for ``print``."""
        return f"in_dim={self.in_dim}, out_dim={self.out_dim}"


class _Block(WithDropout):
    def __init__(
        self,
        width: int,
        *,
        norm: bool,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.activation = activation

    def forward(self, h: Tensor) -> Tensor:
        inner = self.first(self.activation(self.norm(h)))
        return h + self.second(self.drop(self.activation(inner)))
