# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The Sylvester layer: several ridge functions that see one another, in one step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows.errors import ShapeError
from pyro_flows.nn import Parameters
from pyro_flows.nn.sizes import is_size
from pyro_flows.ops import matvec, monotone_inverse
from pyro_flows.transforms.base import Layer
from pyro_flows.transforms.residual.planar import above_minus_one


class Sylvester(Layer):
    """``y = x + Q R tanh(S Q^T x + b)``: ``Q`` orthonormal, ``R`` and ``S`` upper triangular.

    ``Q`` has ``rank`` columns, made of Householder reflections. By Sylvester's identity

    ``det = det(I + diag(h') S R) = prod_i (1 + h'_i R_ii S_ii)``, ``h' = 1 - tanh^2``,

    and the diagonal of ``R`` is shrunk so that every ``R_ii S_ii > -1``.

    Args:
        dim: number of coordinates.
        context_dim: with a context all of ``Q``, ``R``, ``S``, ``b`` are moved by a network of it
            (what van den Berg et al. do with their encoder).
        rank: number of columns of ``Q``, ``min(dim, 4)`` by default; 1 is a planar layer.
        hidden_dims: widths of the network.

    Raises:
        ShapeError: the rank is not in 1 ... dim.

    Cost: O(dim rank^2) forward, for the reflections, and O(dim rank) per value beyond. The inverse
    solves ``rank`` increasing equations in one unknown after another, from the last coordinate of
    ``Q^T x`` to the first, so any value can be scored; its gradient is that of the implicit
    function theorem, right to second order.

    When: a stronger planar layer, mostly for amortised posteriors.

    Reference: van den Berg et al., Sylvester normalizing flows, 2018,
    https://arxiv.org/abs/1803.05649

    Example:
        >>> layer = transforms.Sylvester(6, rank=3)
        >>> x = torch.randn(5, 6)
        >>> y, ladj = layer.forward_and_ladj(x)
        >>> torch.equal(y, x), ladj.shape
        (True, torch.Size([5]))
    """

    places: Tensor

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        *,
        rank: int | None = None,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(dim, context_dim)
        self.rank = min(dim, 4) if rank is None else rank
        if not (is_size(self.rank) and self.rank <= dim):
            raise ShapeError(
                f"Sylvester expected a rank of 1 to dim={dim}, but got {rank!r}. The rank is the "
                "number of directions that move."
            )
        m = self.rank
        strict = m * (m - 1) // 2
        # R = 0 is the identity. A reflection of the one axis there is changes nothing at dim 1.
        start = {
            "reflections": torch.randn(min(m, dim - 1), dim),
            "r_diagonal": torch.zeros(m),
            "r_upper": torch.zeros(strict),
            "s_diagonal": torch.ones(m),
            "s_upper": torch.zeros(strict),
            "b": torch.zeros(m),
        }
        self.parameters_of = Parameters(start, context_dim, hidden_dims)
        # Where each entry of a matrix is found in (diagonal, upper, one zero).
        places = torch.full((m, m), m + strict, device="cpu")
        rows, columns = torch.triu_indices(m, m, offset=1, device="cpu")
        places[rows, columns] = torch.arange(m, m + strict, device="cpu")
        places.diagonal().copy_(torch.arange(m, device="cpu"))
        self.register_index("places", places.reshape(-1))

    def extra_repr(self) -> str:
        """Sizes in words, for ``print``."""
        return f"{super().extra_repr()}, rank={self.rank}"

    def _triangular(self, diagonal: Tensor, upper: Tensor) -> Tensor:
        entries = torch.cat([diagonal, upper, torch.zeros_like(diagonal[..., :1])], -1)
        return entries.index_select(-1, self.places).unflatten(-1, (self.rank, self.rank))

    def _factors(
        self, x: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """``Q``, ``R``, ``S``, ``b`` and the products ``R_ii S_ii``."""
        self.check(x, context)
        p = self.parameters_of(context)
        q = orthonormal_columns(p["reflections"], self.rank)
        diagonal = above_minus_one(p["r_diagonal"], p["r_diagonal"] * p["s_diagonal"])
        r = self._triangular(diagonal, p["r_upper"])
        s = self._triangular(p["s_diagonal"], p["s_upper"])
        return q, r, s, p["b"], diagonal * p["s_diagonal"]

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Add the ridge functions."""
        q, r, s, b, slopes = self._factors(x, context)
        h = torch.tanh(matvec(s, matvec(q.mT, x)) + b)
        return x + matvec(q, matvec(r, h)), torch.log1p(slopes * (1 - h * h)).sum(-1)

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Solve the triangular system for ``z = Q^T x``, then subtract."""
        q, r, s, b, slopes = self._factors(y, context)
        target = matvec(q.mT, y)
        z: list[Tensor] = []  # coordinates i + 1, ..., rank - 1: what coordinate i depends on
        h: list[Tensor] = []
        total = torch.zeros_like(y[..., 0])
        for i in reversed(range(self.rank)):
            inner, outer = b[..., i], target[..., i]
            for j, (z_j, h_j) in enumerate(zip(z, h, strict=True), start=i + 1):
                inner = inner + s[..., i, j] * z_j
                outer = outer - r[..., i, j] * h_j
            z_i, h_i, ladj = _solve_one(r[..., i, i], s[..., i, i], slopes[..., i], inner, outer)
            z, h = [z_i, *z], [h_i, *h]
            total = total + ladj
        return y - matvec(q, matvec(r, torch.stack(h, -1))), total


def _solve_one(
    r: Tensor, s: Tensor, slope: Tensor, inner: Tensor, outer: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``z`` with ``z + r tanh(s z + inner) = outer``, the tanh there, and the log-slope."""

    def along(z: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(s * z + inner)
        return z + r * h, torch.log1p(slope * (1 - h * h))

    shape = torch.broadcast_shapes(outer.shape, inner.shape, r.shape)
    z, ladj = monotone_inverse(along, outer.expand(shape))
    return z, torch.tanh(s * z + inner), ladj


def orthonormal_columns(reflections: Tensor, count: int) -> Tensor:
    """The first ``count`` columns of a product of Householder reflections.

    Args:
        reflections: their normals, shape ``(*, k, dim)``; a zero one reflects nothing.
        count: number of columns.

    Returns:
        Shape ``(*, dim, count)``. Cost: O(k dim count).
    """
    dim = reflections.shape[-1]
    columns = torch.eye(dim, count, dtype=reflections.dtype, device=reflections.device)
    columns = columns.expand(*reflections.shape[:-2], dim, count)
    tiny = torch.finfo(reflections.dtype).tiny
    for i in reversed(range(reflections.shape[-2])):
        v = reflections[..., i, :].unsqueeze(-1)
        length = (v * v).sum(-2, keepdim=True) + tiny
        columns = columns - 2 * v @ ((v.mT @ columns) / length)
    return columns
