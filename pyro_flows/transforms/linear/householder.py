# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Orthogonal matrices as products of reflections."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import normalize

from pyro_flows.errors import OptionError
from pyro_flows.ops import cosines, rank_ones, rank_ones_inverse
from pyro_flows.transforms.linear.affine import AffineMap, Tensors


class Householder(AffineMap):
    """A rotation by reflections: ``y = loc + H_1 ... H_k x``, ``H_i = I - 2 v_i v_i^T / |v_i|^2``.

    The vectors start in equal pairs, whose reflections undo each other, so the layer starts at
    the identity; the pairs are all different, so that their gradients are. An even number of
    reflections is a rotation (determinant 1); ``dim`` of them reach every one.

    Args:
        dim: number of coordinates.
        reflections: an even number; by default ``dim``, or ``dim - 1`` where that is odd. At
            ``dim=1`` there is nothing to rotate, and none are made.
        context_dim: width of the context; a network of it adds to ``loc`` and to the vectors.
        hidden_dims: widths of that network's hidden layers.

    Cost: the same in both directions, O(dim reflections) per value; per call the inner products
    of the vectors, and one small triangular solve in place of a loop over reflections
    (:func:`pyro_flows.ops.rank_ones`).

    When to choose it: to mix coordinates without a change of volume or scale, between couplings
    or inside Sylvester flows; few reflections make it cheap in many dimensions.

    Reference: Tomczak & Welling 2016, https://arxiv.org/abs/1611.09630.

    Example:
        >>> layer = transforms.Householder(5, reflections=2)
        >>> x = torch.randn(7, 5)
        >>> torch.allclose(layer(x), x, atol=1e-5)
        True
    """

    def __init__(
        self,
        dim: int,
        reflections: int | None = None,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        if reflections is None:
            reflections = max(2, dim - dim % 2)
        if reflections < 2 or reflections % 2:
            raise OptionError(
                "Householder expected an even number of reflections, at least 2, so that it "
                f"starts at the identity, but got {reflections}. Pass {max(2, reflections + 1)}."
            )
        pairs = 0 if dim == 1 else reflections // 2
        # Entries of size 1: an optimiser's step then turns as far at any width.
        vectors = cosines(pairs, dim).repeat_interleave(2, 0)
        super().__init__(dim, {"vectors": vectors}, context_dim, hidden_dims)

    def _factors(self, tensors: Tensors) -> tuple[Tensor, Tensor]:
        unit = normalize(tensors["vectors"], dim=-1)
        return -2 * unit, unit

    def _multiply(self, x: Tensor, tensors: Tensors) -> Tensor:
        return rank_ones(x, *self._factors(tensors))

    def _divide(self, y: Tensor, tensors: Tensors) -> Tensor:
        return rank_ones_inverse(y, *self._factors(tensors))
