# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""An invertible matrix by its LU decomposition."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows.errors import ShapeError
from pyro_flows.ops import matvec, triangular_solve
from pyro_flows.transforms.linear.affine import AffineMap, Tensors
from pyro_flows.transforms.linear.permutation import Permute


class PLU(AffineMap):
    """Any invertible matrix as ``W = P L U``: ``y = loc + P L U x``.

    ``P`` is a fixed permutation, ``L`` lower-triangular with a unit diagonal, ``U``
    upper-triangular with diagonal ``sign * exp(log)``; the signs are fixed too. ``L`` and ``log``
    and ``U`` share one trained matrix, as LU routines pack them. It starts at ``W = P``.

    Args:
        dim: number of coordinates.
        context_dim: width of the context; a network of it adds to ``loc`` and to the factors.
        hidden_dims: widths of that network's hidden layers.
        permutation: the order of ``P``, as :class:`Permute` takes it, or such a layer, for
            example ``Permute.random(dim, seed=1)``; by default the identity.

    :meth:`from_matrix` makes the layer that starts at a given matrix, such as a random rotation.

    Cost: two triangular products (forward) or solves (inverse), O(dim^2) per value; the
    log-determinant is a sum over the diagonal.

    When to choose it: between couplings or autoregressive layers, in place of a permutation, to
    let all coordinates meet. Not where the matrix must stay orthogonal (:class:`Householder`).

    Reference: Kingma & Dhariwal 2018 (Glow), https://arxiv.org/abs/1807.03039, eq. 10.

    Example:
        >>> layer = transforms.PLU(4, permutation=[3, 0, 1, 2])
        >>> layer(torch.tensor([1.0, 2.0, 3.0, 4.0])).tolist()
        [4.0, 1.0, 2.0, 3.0]
    """

    signs: Tensor

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        permutation: Permute | int | Sequence[int] | Tensor | None = None,
    ) -> None:
        super().__init__(dim, {"factors": torch.zeros(dim, dim)}, context_dim, hidden_dims)
        if permutation is not None and not isinstance(permutation, Permute):
            permutation = Permute(permutation)
        if permutation is not None and permutation.dim != dim:
            raise ShapeError(
                f"PLU expected a permutation of {dim} coordinates, but got one of "
                f"{permutation.dim}. Pass for example Permute.random({dim})."
            )
        self.permutation = permutation
        self.register_buffer("signs", torch.ones(dim))

    @classmethod
    @torch.no_grad()
    def from_matrix(
        cls, matrix: Tensor, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64)
    ) -> PLU:
        """The layer that starts at ``W = matrix``, shape ``(dim, dim)``, with ``loc`` 0.

        Raises:
            ShapeError: the matrix is not square, not finite, or singular.

        Example:
            >>> rotation = torch.linalg.qr(torch.randn(3, 3))[0]
            >>> x = torch.randn(3)
            >>> torch.allclose(transforms.PLU.from_matrix(rotation)(x), rotation @ x, atol=1e-5)
            True
        """
        if matrix.dim() != 2 or not _is_invertible(matrix):
            raise ShapeError(
                "PLU.from_matrix expected an invertible square matrix, but got one of shape "
                f"{tuple(matrix.shape)} that is not. Pass for example a rotation, "
                "torch.linalg.qr(torch.randn(dim, dim))[0]."
            )
        permutation, lower, upper = torch.linalg.lu(matrix)
        diagonal = upper.diagonal()
        order = permutation.argmax(-1)
        layer = cls(len(matrix), context_dim, hidden_dims, order).to(matrix)
        layer.signs.copy_(diagonal.sign())
        factors = lower.tril(-1) + upper.triu(1) + diagonal.abs().log().diag()
        layer.tensors.start["factors"].copy_(factors)
        return layer

    def _diagonal(self, tensors: Tensors) -> Tensor:
        return self.signs * _logarithms(tensors).exp()

    def _multiply(self, x: Tensor, tensors: Tensors) -> Tensor:
        factors = tensors["factors"]
        y = self._diagonal(tensors) * x + matvec(factors.triu(1), x)
        y = y + matvec(factors.tril(-1), y)
        return y if self.permutation is None else self.permutation.forward_and_ladj(y)[0]

    def _divide(self, y: Tensor, tensors: Tensors) -> Tensor:
        factors = tensors["factors"]
        if self.permutation is not None:
            y = self.permutation.inverse_and_ladj(y)[0]
        y = triangular_solve(factors.tril(-1), y, unitriangular=True)
        upper = factors.triu(1) + torch.diag_embed(self._diagonal(tensors))
        return triangular_solve(upper, y, upper=True)

    def _ladj(self, tensors: Tensors) -> Tensor:
        return _logarithms(tensors).sum(-1)


def _logarithms(tensors: Tensors) -> Tensor:
    """log|diagonal of U|."""
    return tensors["factors"].diagonal(dim1=-2, dim2=-1)


def _is_invertible(matrix: Tensor) -> bool:
    if matrix.shape[0] != matrix.shape[1] or not bool(matrix.isfinite().all()):
        return False
    return bool(torch.linalg.slogdet(matrix)[1].isfinite())
