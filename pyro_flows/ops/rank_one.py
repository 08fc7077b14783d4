# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Products of ``I + u v^T`` applied to vectors, in two narrow products and a small solve."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_flows.ops.matrices import matvec, triangular_solve


def rank_ones(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``(I + u_1 v_1^T) ... (I + u_r v_r^T) x``.

    With ``t_i`` what the i-th factor measures, ``t_i = v_i . (x + sum_{j>i} u_j t_j)``, so
    ``(I - triu(V U^T, 1)) t = V x``, and the result is ``x + U^T t``: the compact form of a
    product of reflections (Joffrain et al. 2006, https://doi.org/10.1145/1141885.1141886), for
    any factors of rank one. The ``t_i`` are those of the product taken one by one, so it is as
    stable.

    Args:
        x: shape ``(*, n)``.
        left: the ``u_i``, shape ``(*batch, r, n)``.
        right: the ``v_i``, shape ``(*batch, r, n)``.

    Returns:
        Shape ``(*, n)``.

    Cost: O(n r^2) once and O(n r) per vector.

    Example:
        >>> u, v, x = torch.randn(2, 5), torch.randn(2, 5), torch.randn(5)
        >>> factors = [torch.eye(5) + torch.outer(a, b) for a, b in zip(u, v)]
        >>> torch.allclose(rank_ones(x, u, v), factors[0] @ factors[1] @ x, atol=1e-4)
        True
    """
    gram = right @ left.mT
    seen = triangular_solve(-gram.triu(1), matvec(right, x), upper=True, unitriangular=True)
    return x + matvec(left.mT, seen)


def rank_ones_inverse(y: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """The inverse of :func:`rank_ones`, for factors with ``1 + v_i . u_i`` other than 0.

    By ``(I + u v^T)^-1 = I - u v^T / (1 + v . u)`` and the same argument in the other order,
    ``(I + tril(V U^T)) s = V y``, and the result is ``y - U^T s``.

    Args:
        y: shape ``(*, n)``.
        left: the ``u_i``, shape ``(*batch, r, n)``.
        right: the ``v_i``, shape ``(*batch, r, n)``.

    Returns:
        Shape ``(*, n)``.

    Cost: O(n r^2) once and O(n r) per vector.

    Example:
        >>> u, v, x = torch.full((2, 5), 0.1), torch.full((2, 5), 0.2), torch.arange(5.0)
        >>> torch.allclose(rank_ones_inverse(rank_ones(x, u, v), u, v), x, atol=1e-5)
        True
    """
    gram = right @ left.mT
    one = torch.diag_embed(gram.new_ones(gram.shape[-1]))
    seen = triangular_solve(one + gram.tril(), matvec(right, y))
    return y - matvec(left.mT, seen)
