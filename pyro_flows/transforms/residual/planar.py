# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The planar layer: one ridge function moves all coordinates along one direction."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_flows.nn import Parameters
from pyro_flows.ops import monotone_inverse
from pyro_flows.transforms.base import Layer


def above_minus_one(u: Tensor, product: Tensor) -> Tensor:
    """Shrink ``u`` so that ``product``, which is linear in it, ends above -1.

    ``c(a) = 1 / (1 + softplus(-a))`` makes ``a c(a)`` increase from -1 to infinity with ``a``, so
    that every admissible ``u`` has one preimage. Unlike Rezende and Mohamed's correction along
    ``w / |w|^2`` it leaves ``u = 0`` at 0 and is smooth where ``w = 0``.
    """
    return u / (1 + F.softplus(-product))


class Planar(Layer):
    """``y = x + u tanh(w . x + b)``, with ``u`` shrunk so that ``w . u > -1``.

    ``log|det| = log(1 + (w . u) (1 - tanh(w . x + b)^2))``. One such layer squeezes or stretches
    space along a single plane; stacks of many are usual.

    Args:
        dim: number of coordinates.
        context_dim: with a context ``u``, ``w`` and ``b`` are moved by a network of it.
        hidden_dims: widths of that network.

    Cost: O(dim) forward. The inverse is the root of one increasing function of the one number
    ``w . x + b``, found in about 5 to 10 evaluations of O(1) a value, so any value can be scored;
    its gradient is that of the implicit function theorem, right to second order.

    When: cheap variational posteriors in few dimensions, and comparisons with the literature;
    couplings and splines say more per parameter.

    Reference: Rezende & Mohamed, Variational inference with normalizing flows, 2015,
    https://arxiv.org/abs/1505.05770

    Example:
        >>> layer = transforms.Planar(3, context_dim=2)
        >>> y, ladj = layer.forward_and_ladj(torch.ones(5, 3), torch.zeros(5, 2))
        >>> y.shape, ladj.shape, bool((y == 1).all())
        (torch.Size([5, 3]), torch.Size([5]), True)
    """

    def __init__(
        self, dim: int, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__(dim, context_dim)
        # u = 0 is the identity; w must not be 0 too, or nothing but a shift could be learned.
        start = {
            "u": torch.zeros(dim),
            "w": torch.randn(dim) / dim**0.5,
            "b": torch.zeros(()),
        }
        self.parameters_of = Parameters(start, context_dim, hidden_dims)

    def _ridge(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``u``, ``w . u``, ``w`` and ``b``."""
        self.check(x, context)
        p = self.parameters_of(context)
        u = above_minus_one(p["u"], (p["u"] * p["w"]).sum(-1, keepdim=True))
        return u, (u * p["w"]).sum(-1), p["w"], p["b"]

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Add the ridge function."""
        u, slope, w, b = self._ridge(x, context)
        h = torch.tanh((w * x).sum(-1) + b)
        return x + u * h.unsqueeze(-1), torch.log1p(slope * (1 - h * h))

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Find where on the ridge the value came from, then subtract."""
        u, slope, w, b = self._ridge(y, context)
        # s = w . x + b solves s + (w . u) tanh(s) = w . y + b, whose slope is above 0.
        target = (w * y).sum(-1) + b

        def along(s: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(s)
            return s + slope * h, torch.log1p(slope * (1 - h * h))

        s, ladj = monotone_inverse(along, target)
        return y - u * torch.tanh(s).unsqueeze(-1), ladj
