# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The trainable affine map with a Cholesky factor."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_flows.errors import ShapeError
from pyro_flows.transforms.base import Layer


class CholeskyAffine(Layer):
    """``y = loc + L x`` with a lower-triangular ``L`` of positive diagonal.

    On a standard normal this is the full-rank Gaussian with covariance ``L L^T``.

    ``L`` is stored relative to its rows: ``L = diag(exp(log_scale)) (I + strict lower triangle)``.
    An optimiser's step then means the same in a coordinate with standard deviation 0.02 as in one
    with 9,700.

    Args:
        dim: number of coordinates.

    Cost: one triangular product (forward) or solve (inverse), O(dim^2) per value.

    Example:
        >>> layer = transforms.CholeskyAffine(2)
        >>> tril = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
        >>> layer.set(loc=torch.tensor([1.0, 2.0]), scale_tril=tril)
        >>> layer(torch.tensor([1.0, 1.0]))
        tensor([3., 6.], grad_fn=<AddBackward0>)
    """

    positions: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.loc = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.zeros(dim))
        self.lower = nn.Parameter(torch.zeros(dim * (dim - 1) // 2))
        rows, columns = torch.tril_indices(dim, dim, offset=-1, device="cpu")
        self.register_index("positions", rows * dim + columns)

    @property
    def scale_tril(self) -> Tensor:
        """The factor ``L``, shape ``(dim, dim)``."""
        return self.log_scale.exp().unsqueeze(-1) * self._unit()

    def _unit(self) -> Tensor:
        d = self.dim
        flat = self.lower.new_zeros(d * d).index_put((self.positions,), self.lower)
        return flat.view(d, d) + torch.diag_embed(torch.ones_like(self.log_scale))

    @torch.no_grad()
    def set(self, loc: Tensor | None = None, scale_tril: Tensor | None = None) -> None:
        """Set location ``(dim,)`` and factor ``(dim, dim)`` in place, or neither.

        Raises:
            ShapeError: a shape differs, or the factor is not lower-triangular with a positive
                diagonal.
        """
        if loc is not None and loc.shape != (self.dim,):
            raise ShapeError(
                f"CholeskyAffine.set expected loc of shape ({self.dim},), but got "
                f"{tuple(loc.shape)}. Pass one location per coordinate."
            )
        if scale_tril is not None and not self._is_factor(scale_tril):
            raise ShapeError(
                f"CholeskyAffine.set expected a lower-triangular scale_tril of shape "
                f"({self.dim}, {self.dim}) with a positive diagonal, but got one of shape "
                f"{tuple(scale_tril.shape)}. Pass torch.linalg.cholesky of a covariance."
            )
        if loc is not None:
            self.loc.copy_(loc)
        if scale_tril is not None:
            diagonal = scale_tril.diagonal()
            self.log_scale.copy_(diagonal.log())
            unit = scale_tril / diagonal.unsqueeze(-1)
            self.lower.copy_(unit.reshape(-1)[self.positions])

    def _is_factor(self, tril: Tensor) -> bool:
        if tril.shape != (self.dim, self.dim):
            return False
        return bool((tril.diagonal() > 0).all()) and not bool(tril.triu(1).any())

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``loc + L x``."""
        self.check(x, context)
        y = self.loc + self.log_scale.exp() * (x @ self._unit().T)
        return y, self.log_scale.sum().expand(x.shape[:-1])

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``L^-1 (y - loc)`` by a triangular solve."""
        self.check(y, context)
        scaled = (y - self.loc) * (-self.log_scale).exp()
        x = torch.linalg.solve_triangular(
            self._unit().T,
            scaled.reshape(-1, self.dim),
            upper=True,
            left=False,
            unitriangular=True,
        ).reshape(scaled.shape)
        return x, (-self.log_scale.sum()).expand(y.shape[:-1])
