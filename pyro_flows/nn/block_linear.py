# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Linear maps of blocks of units, increasing within a block, free from earlier blocks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_flows.nn.masked import MaskedLinear
from pyro_flows.ops import order_adjacency, soft_clamp

# The soft bound of logarithms of weights.
BOUND = 6.0


class BlockLinear(nn.Module):
    """A block-triangular linear map, its diagonal blocks positive.

    What coordinate ``i``'s units become is ``own`` of them, with weights ``exp(log_own) / in``,
    plus a ``shift`` that earlier coordinates' units decide.

    Args:
        dim: number of coordinates, each with a block of units.
        in_factor: units of a block that are read.
        out_factor: units of a block that are made.

    Shapes: ``(*, dim, in_factor) -> (*, dim, out_factor)``.

    Example:
        >>> linear = BlockLinear(3, 1, 4)
        >>> h = torch.ones(5, 3, 1)
        >>> (linear.own(h) + linear.shift(h)).shape, linear.log_slope(torch.zeros(3, 1)).shape
        (torch.Size([5, 3, 4]), torch.Size([3, 4]))
    """

    def __init__(self, dim: int, in_factor: int, out_factor: int) -> None:
        super().__init__()
        self.log_own = nn.Parameter(torch.zeros(dim, out_factor, in_factor))
        self.bias = nn.Parameter(torch.zeros(dim, out_factor))
        self.earlier: MaskedLinear | None = None
        if dim > 1:
            mask = order_adjacency(dim).repeat_interleave(out_factor, 0)
            self.earlier = MaskedLinear(mask.repeat_interleave(in_factor, 1), bias=False)

    def _own_weight(self) -> Tensor:
        return soft_clamp(self.log_own, BOUND).exp() / self.log_own.shape[-1]

    def own(self, h: Tensor) -> Tensor:
        """What a block's own units add."""
        return torch.einsum("...di,doi->...do", h, self._own_weight())

    def shift(self, h: Tensor) -> Tensor:
        """What earlier blocks and the bias add."""
        if self.earlier is None:
            return self.bias
        flat: Tensor = self.earlier(h.flatten(-2))
        return flat.unflatten(-1, self.bias.shape) + self.bias

    def log_slope(self, before: Tensor) -> Tensor:
        """Log slopes by the own coordinate after the map, given those before it.

        The logarithm of the positive weights times the exponential of ``before``, by factoring
        the largest out: no slope is too small for it.
        """
        largest = before.detach().amax(-1, keepdim=True)
        return self.own((before - largest).exp()).log() + largest
