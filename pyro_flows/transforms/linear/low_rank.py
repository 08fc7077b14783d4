# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A diagonal and a few directions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

from pyro_flows.errors import OptionError
from pyro_flows.nn.sizes import is_size
from pyro_flows.ops import cosines, rank_ones, rank_ones_inverse, soft_clamp
from pyro_flows.transforms.linear.affine import AffineMap, Tensors

# Soft bound of the log-determinant of one direction's factor.
STRETCH_BOUND = 10.0


class LowRankAffine(AffineMap):
    """A diagonal and ``rank`` directions: ``y = loc + exp(log_scale) * (I + U V^T) x``.

    ``I + U V^T`` is a product of factors ``I + u v^T``, each invertible by construction: with
    ``v`` of length 1 and ``b = v . w``, softly bounded, ``u = w + (e^b - 1 - v . w) v``, so that
    ``1 + v . u = e^b``. The trained ``w`` is free, the determinant lemma gives
    ``ladj = sum(log_scale) + sum(b)``, and no ``(rank, rank)`` determinant is taken.

    Args:
        dim: number of coordinates.
        rank: number of directions; ``dim - 1`` is all that a diagonal leaves to do, and more are
            not made.
        context_dim: width of the context; a network of it adds to all tensors.
        hidden_dims: widths of that network's hidden layers.

    Cost: O(dim rank) per value in both directions, O(dim rank^2) per call; the inverse is
    Woodbury's identity, factor by factor, in one small triangular solve
    (:func:`pyro_flows.ops.rank_ones_inverse`).

    When to choose it: in place of :class:`CholeskyAffine` where ``dim`` is large (hundreds and
    more) and a few directions carry the correlations.

    Reference: Lu & Huang 2020 (Woodbury transformations), https://arxiv.org/abs/2002.12229.

    Example:
        >>> layer = transforms.LowRankAffine(1000, rank=5)
        >>> sum(p.numel() for p in layer.parameters())
        12000
    """

    def __init__(
        self,
        dim: int,
        rank: int,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        if not is_size(rank):
            raise OptionError(
                f"LowRankAffine expected rank >= 1, but got {rank!r}. Use DiagonalAffine for a "
                "diagonal alone."
            )
        rank = min(rank, dim - 1)
        start = {
            "log_scale": torch.zeros(dim),
            "left": torch.zeros(rank, dim),
            "right": cosines(rank, dim),
        }
        super().__init__(dim, start, context_dim, hidden_dims)

    def _factors(self, tensors: Tensors) -> tuple[Tensor, Tensor, Tensor]:
        """``U``, ``V`` and ``b``."""
        free, unit = tensors["left"], normalize(tensors["right"], dim=-1)
        along = (unit * free).sum(-1)
        stretch = soft_clamp(along, STRETCH_BOUND)
        return free + (stretch.expm1() - along).unsqueeze(-1) * unit, unit, stretch

    def _multiply(self, x: Tensor, tensors: Tensors) -> Tensor:
        left, right, _ = self._factors(tensors)
        return tensors["log_scale"].exp() * rank_ones(x, left, right)

    def _divide(self, y: Tensor, tensors: Tensors) -> Tensor:
        left, right, _ = self._factors(tensors)
        return rank_ones_inverse((-tensors["log_scale"]).exp() * y, left, right)

    def _ladj(self, tensors: Tensors) -> Tensor:
        return tensors["log_scale"].sum(-1) + self._factors(tensors)[2].sum(-1)
