# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Matrices applied to vectors, where either may come in batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def matvec(matrix: Tensor, x: Tensor) -> Tensor:
    """``matrix @ x`` for every vector, broadcast over the leading axes of both.

    Args:
        matrix: shape ``(*batch, n, m)``.
        x: shape ``(*, m)``; its last leading axes broadcast against ``batch``.

    Returns:
        Shape ``(*, n)``.

    Cost: one product. Values beyond the matrices' batch are columns of it, so that no matrix is
    ever copied for them.

    Example:
        >>> matvec(torch.ones(3, 1, 2, 5), torch.ones(7, 3, 4, 5)).shape
        torch.Size([7, 3, 4, 2])
    """
    return _from_columns(matrix @ _to_columns(matrix, x), x)


def triangular_solve(
    matrix: Tensor, x: Tensor, *, upper: bool = False, unitriangular: bool = False
) -> Tensor:
    """``matrix^-1 x`` for every vector and a triangular matrix, broadcast as in :func:`matvec`.

    Args:
        matrix: shape ``(*batch, n, n)``; only its triangle is read.
        x: shape ``(*, n)``.
        upper: which triangle.
        unitriangular: take the diagonal to be 1 and don't read it.

    Returns:
        Shape ``(*, n)``.

    Example:
        >>> tril = torch.tensor([[2.0, 0.0], [1.0, 4.0]])
        >>> triangular_solve(tril, torch.tensor([[2.0, 5.0]]))
        tensor([[1., 1.]])
    """
    columns = torch.linalg.solve_triangular(
        matrix, _to_columns(matrix, x), upper=upper, unitriangular=unitriangular
    )
    return _from_columns(columns, x)


def strict_lower_positions(dim: int) -> Tensor:
    """Where the entries below the diagonal lie in a flattened ``(dim, dim)`` matrix, row by row.

    Example:
        >>> strict_lower_positions(3).tolist()
        [3, 6, 7]
    """
    rows, columns = torch.tril_indices(dim, dim, offset=-1, device="cpu")
    return rows * dim + columns


def strict_lower(entries: Tensor, positions: Tensor, dim: int) -> Tensor:
    """The matrix with ``entries`` below its diagonal and zeros elsewhere.

    Args:
        entries: shape ``(*, dim (dim - 1) / 2)``, row by row.
        positions: :func:`strict_lower_positions` of ``dim``, on the entries' device.
        dim: number of rows.

    Returns:
        Shape ``(*, dim, dim)``.

    Example:
        >>> strict_lower(torch.tensor([1.0, 2.0, 3.0]), strict_lower_positions(3), 3)
        tensor([[0., 0., 0.],
                [1., 0., 0.],
                [2., 3., 0.]])
    """
    flat = entries.new_zeros(*entries.shape[:-1], dim * dim)
    return flat.index_copy(-1, positions, entries).unflatten(-1, (dim, dim))


def cosines(count: int, dim: int) -> Tensor:
    """``count`` different directions in ``dim`` dimensions, entries of size 1.

    Rows of the cosine transform, ``cos(pi k (i + 1/2) / dim)``: orthogonal, none of them along an
    axis; after ``dim`` of them they come again.

    Returns:
        Shape ``(count, dim)``, of the default dtype.

    Example:
        >>> rows = cosines(3, 4)
        >>> torch.allclose(rows @ rows.T, torch.diag(torch.tensor([4.0, 2.0, 2.0])), atol=1e-6)
        True
    """
    k = torch.arange(count).remainder(dim).unsqueeze(-1)
    return (math.pi / dim * k * (torch.arange(dim) + 0.5)).cos()


def _to_columns(matrix: Tensor, x: Tensor) -> Tensor:
    """``(*extra, *batch, n)`` as ``(*batch, n, extra)``."""
    extra = x.dim() - matrix.dim() + 1
    if extra <= 0:
        return x.unsqueeze(-1)
    return x.flatten(0, extra - 1).movedim(0, -1)


def _from_columns(columns: Tensor, x: Tensor) -> Tensor:
    """Back to ``(*extra, *batch, n)``, the extra axes as ``x`` has them."""
    extra = x.dim() - columns.dim() + 1
    if extra <= 0:
        return columns.squeeze(-1)
    y = columns.movedim(-1, 0)
    return y.reshape(*x.shape[:extra], *y.shape[1:])
