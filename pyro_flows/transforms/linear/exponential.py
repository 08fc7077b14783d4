# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Matrices as exponentials: rotations, and all that a flow of a linear field makes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows.ops import matvec
from pyro_flows.transforms.linear.affine import AffineMap, Tensors
from pyro_flows.transforms.linear.skew import SkewRotation


class MatrixExponential(AffineMap):
    """``y = loc + exp(A) x``, log-determinant ``trace(A)``; the inverse is ``exp(-A)``.

    Any ``A`` will do, so nothing is constrained. The exponential is torch's, exact to rounding,
    not a truncated series.

    Args:
        dim: number of coordinates.
        context_dim: width of the context; a network of it adds to ``loc`` and ``A``.
        hidden_dims: widths of that network's hidden layers.

    Cost: one matrix exponential per call (per context, if there is one), some ten products of
    ``(dim, dim)`` matrices, O(dim^3), then O(dim^2) per value; the same in both directions.

    When to choose it: in place of :class:`PLU` where a smooth, symmetric parametrisation is worth
    its cost, or where parameters should be averaged or penalised; ``det W > 0`` always.

    Reference: Hoogeboom et al. 2020, https://arxiv.org/abs/2006.01910.

    Example:
        >>> layer = transforms.MatrixExponential(3)
        >>> x = torch.randn(7, 3)
        >>> torch.allclose(layer(x), x)
        True
    """

    def __init__(
        self, dim: int, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__(dim, {"exponent": torch.zeros(dim, dim)}, context_dim, hidden_dims)

    def _multiply(self, x: Tensor, tensors: Tensors) -> Tensor:
        return matvec(torch.matrix_exp(tensors["exponent"]), x)

    def _divide(self, y: Tensor, tensors: Tensors) -> Tensor:
        return matvec(torch.matrix_exp(-tensors["exponent"]), y)

    def _ladj(self, tensors: Tensors) -> Tensor:
        return tensors["exponent"].diagonal(dim1=-2, dim2=-1).sum(-1)


class Rotation(SkewRotation):
    """Any rotation as an exponential: ``y = loc + exp(S - S^T) x``, log-determinant 0.

    ``S`` is strictly lower-triangular and trained. At ``dim=2`` its one entry is the angle.

    Args:
        dim: number of coordinates.
        context_dim: width of the context; a network of it adds to ``loc`` and ``S``.
        hidden_dims: widths of that network's hidden layers.
        rate: ``S`` is so many times its parameters; below 1 it learns slower than other layers.
        shift: whether there is a ``loc``.

    Cost: one matrix exponential per call (per context, if there is one), O(dim^3), then O(dim^2)
    per value; the inverse is the transpose, and costs the same.

    When to choose it: as :class:`Cayley`, which is cheaper but reaches half turns only in the
    limit; parameters are angles, so a prior or a penalty on them means something.

    Reference: Lezcano-Casado & Martinez-Rubio 2019, https://arxiv.org/abs/1901.08428.

    Example:
        >>> layer = transforms.Rotation(4)
        >>> x = torch.randn(7, 4)
        >>> torch.allclose(layer(x), x)
        True
    """

    def _rotation(self, skew: Tensor) -> Tensor:
        near = torch.matrix_exp(skew)
        # Squaring, as the exponential does, loses orthogonality in proportion to the angles, and
        # the inverse is the transpose. One step of Newton and Schulz's iteration restores it.
        one = torch.diag_embed(near.new_ones(self.dim))
        return near @ (1.5 * one - 0.5 * near.mT @ near)
