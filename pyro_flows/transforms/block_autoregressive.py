# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Block neural autoregressive layers: one network that is the map, not its conditioner."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyro_flows.errors import ShapeError
from pyro_flows.nn import MLP, BlockLinear, MaskedLinear
from pyro_flows.nn.mlp import SHORTCUT
from pyro_flows.nn.sizes import is_size
from pyro_flows.ops import monotone_inverse, order_adjacency, soft_clamp, solve_by_passes
from pyro_flows.transforms.base import Layer

# Where the network's share in the slope starts, in logarithms: below 0.1 of the identity's.
QUIET = -2.5


class BlockAutoregressive(Layer):
    """A network of block-triangular weights, increasing in each coordinate given those before.

    ``y[i] = exp(s[i]) x[i] + sum_{j < i} w[i, j] x[j] + net[i](x[1], ..., x[i], context)``

    with a tanh network whose weights from a coordinate's own units to its own units are
    exponentials, so positive, those from earlier ones free, and all others zero. The linear part
    makes it a map onto all of R: without it, as in Pyro's layer, a tanh network is bounded, and
    what is called its density integrates to far less than 1.

    Args:
        dim: number of coordinates.
        hidden_factors: units for each coordinate, in each hidden layer.
        context_dim: width of the context; a network of it shifts all units, and sets the slopes.
        hidden_dims: widths of that network's hidden layers.
        log_scale_bound: soft bound of ``|s|``.

    Cost: forwards one pass, ``(dim * factor)^2`` a layer. Backwards passes as in
    :class:`Autoregressive`, at most ``dim``, and in each 5 to 10 evaluations of the coordinates'
    own blocks, which find a root in the own coordinate; gradients are implicit. Denser than an
    autoregressive spline with the same number of weights, but slow to invert: choose it where one
    direction is enough, forwards as a guide, ``.inv`` for scoring data.

    Reference: De Cao et al. 2019, arXiv:1904.04676.

    Example:
        >>> layer = transforms.BlockAutoregressive(3, hidden_factors=(4, 4))
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(layer.inv(layer(x)), x, atol=1e-5)
        True
    """

    def __init__(
        self,
        dim: int,
        hidden_factors: Sequence[int] = (8, 8),
        context_dim: int = 0,
        *,
        hidden_dims: Sequence[int] = (64, 64),
        log_scale_bound: float = 3.0,
    ) -> None:
        super().__init__(dim, context_dim)
        factors = hidden_factors if isinstance(hidden_factors, Collection) else ()
        if not len(factors) or not all(map(is_size, factors)):
            raise ShapeError(
                "BlockAutoregressive expected at least one hidden layer and one unit for each "
                f"coordinate, but got hidden_factors={hidden_factors!r}. Give (8, 8), say."
            )
        self.log_scale_bound = log_scale_bound
        sizes = [1, *hidden_factors, 1]
        blocks = [BlockLinear(dim, a, b) for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
        self.blocks = nn.ModuleList(blocks)
        self.log_slope = nn.Parameter(torch.zeros(dim, 1))
        self.linear = None
        if dim > 1:
            lower = SHORTCUT * order_adjacency(dim).double()
            self.linear = MaskedLinear(lower, bias=False, zero=True)
        #: What a context shifts: each layer's units, and the log slopes.
        self.factors = [*sizes[1:], 1]
        self.conditioner = None
        if context_dim:
            self.conditioner = MLP(context_dim, dim * sum(self.factors), hidden_dims)
        self._start(blocks)

    def _start(self, blocks: Sequence[BlockLinear]) -> None:
        """Units spread over where values are; a last layer that is quiet."""
        with torch.no_grad():
            for block in blocks[:-1]:
                block.bias.copy_(torch.linspace(-2, 2, block.bias.shape[1] + 2)[1:-1])
            blocks[-1].log_own.fill_(QUIET)
            if blocks[-1].earlier is not None:
                blocks[-1].earlier.weight.zero_()

    def _constants(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, list[Tensor] | None]:
        """Values over all batch axes, and what the context shifts."""
        self.check(x, context)
        if self.conditioner is None or context is None:
            return x, None
        x = x.expand(*torch.broadcast_shapes(x.shape[:-1], context.shape[:-1]), -1)
        shifts = self.conditioner(context).unflatten(-1, (self.dim, -1))
        return x, list(shifts.split(self.factors, -1))

    def _blocks(self) -> list[BlockLinear]:
        return cast("list[BlockLinear]", list(self.blocks))

    def _shifts(self, x: Tensor, moved: list[Tensor] | None) -> list[Tensor]:
        """Of each layer's units, by earlier coordinates and context; last, the log slopes."""
        h, shifts = x.unsqueeze(-1), []
        for k, block in enumerate(self._blocks()):
            shift = block.shift(h)
            shifts.append(shift if moved is None else shift + moved[k])
            if k + 1 < len(self.blocks):
                h = torch.tanh(block.own(h) + shifts[k])
        if self.linear is not None:
            shifts[-1] = shifts[-1] + self.linear(x).unsqueeze(-1)
        slope = self.log_slope if moved is None else self.log_slope + moved[-1]
        return [*shifts, soft_clamp(slope, self.log_scale_bound)]

    def _own(self, x: Tensor, shifts: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Each coordinate's value and log slope as a function of itself, the shifts given."""
        h = x.unsqueeze(-1)
        slope, log_slope = torch.zeros_like(h), shifts[-1]
        y = h * log_slope.exp() + shifts[-2]
        *hidden, last = self._blocks()
        for k, block in enumerate(hidden):
            z = block.own(h) + shifts[k]
            h = torch.tanh(z)
            # log(1 - tanh^2), for any z
            slope = block.log_slope(slope) - 2 * (z.abs() + softplus(-2 * z.abs()) - math.log(2))
        y = y + last.own(h)
        slope = torch.logaddexp(last.log_slope(slope), log_slope.expand_as(y))
        return y.squeeze(-1), slope.squeeze(-1)

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """One pass."""
        x, moved = self._constants(x, context)
        y, ladj = self._own(x, self._shifts(x, moved))
        return y, ladj.sum(-1)

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Passes; each finds the root in every coordinate, the others as they were."""
        y, moved = self._constants(y, context)

        def step(x: Tensor) -> tuple[Tensor, Tensor]:
            shifts = self._shifts(x, moved)
            return monotone_inverse(lambda x: self._own(x, shifts), y)

        x, ladj = solve_by_passes(step, y, self.dim)
        return x, ladj.sum(-1)
