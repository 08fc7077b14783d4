# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What rotations made of a skew-symmetric matrix share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows.ops import matvec, strict_lower, strict_lower_positions
from pyro_flows.transforms.linear.affine import AffineMap, Tensors


class SkewRotation(AffineMap):
    """``y = loc + Q(A) x`` with ``A = S - S^T`` and a rotation ``Q(A)`` that a subclass makes.

    Args:
        dim: number of coordinates.
        context_dim: width of the context; a network of it adds to ``loc`` and ``S``.
        hidden_dims: widths of that network's hidden layers.
        rate: ``S`` is so many times its parameters; below 1 it learns slower than other layers.
        shift: whether there is a ``loc``.
    """

    positions: Tensor

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        *,
        rate: float = 1.0,
        shift: bool = True,
    ) -> None:
        start = {"lower": torch.zeros(dim * (dim - 1) // 2)}
        super().__init__(dim, start, context_dim, hidden_dims, shift=shift)
        self.rate = rate
        self.register_index("positions", strict_lower_positions(dim))

    @abstractmethod
    def _rotation(self, skew: Tensor) -> Tensor:
        """The rotation of a skew-symmetric matrix ``(*, dim, dim)``; the identity of zero."""

    def _skew(self, tensors: Tensors) -> Tensor:
        lower = self.rate * strict_lower(tensors["lower"], self.positions, self.dim)
        return lower - lower.mT

    def _multiply(self, x: Tensor, tensors: Tensors) -> Tensor:
        return matvec(self._rotation(self._skew(tensors)), x)

    def _divide(self, y: Tensor, tensors: Tensors) -> Tensor:
        return matvec(self._rotation(self._skew(tensors)).mT, y)

    def _multiply_and_push(
        self, x: Tensor, score: Tensor, tensors: Tensors
    ) -> tuple[Tensor, Tensor]:
        rotation = self._rotation(self._skew(tensors))  # made once for both
        product = matvec(rotation, x)
        return product, matvec(rotation.detach(), score.expand(product.shape))

    def extra_repr(self) -> str:
        """Sizes and rate, for ``print``."""
        rate = "" if self.rate == 1.0 else f", rate={self.rate}"
        return f"{super().extra_repr()}{rate}"
