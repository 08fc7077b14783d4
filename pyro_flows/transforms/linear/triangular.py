# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The trainable affine map with a Cholesky factor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_flows.errors import ShapeError
from pyro_flows.ops import matvec, strict_lower, strict_lower_positions, triangular_solve
from pyro_flows.transforms.linear.affine import AffineMap, Tensors


class CholeskyAffine(AffineMap):
    """``y = loc + L x`` with a lower-triangular ``L`` of positive diagonal.

    On a standard normal this is the full-rank Gaussian with covariance ``L L^T``.

    ``L`` is stored relative to its rows: ``L = diag(exp(log_scale)) (I + strict lower triangle)``.
    An optimiser's step then means the same in a coordinate with standard deviation 0.02 as in one
    with 9,700.

    Args:
        dim: number of coordinates.
        context_dim: width of the context; a network of it adds to ``loc``, ``log_scale`` and
            ``lower``.
        hidden_dims: widths of that network's hidden layers.

    Cost: one triangular product (forward) or solve (inverse), O(dim^2) per value.

    When to choose it: as the last layer, where a Gaussian's own correlations are to be learned
    first; with a context, as a full-rank Gaussian regression. For an upper triangle put it
    between two reversals, ``Permute(dim)``.

    Example:
        >>> layer = transforms.CholeskyAffine(2)
        >>> tril = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
        >>> layer.set(loc=torch.tensor([1.0, 2.0]), scale_tril=tril)
        >>> layer(torch.tensor([1.0, 1.0]))
        tensor([3., 6.], grad_fn=<AddBackward0>)
    """

    positions: Tensor
    unit: Tensor

    def __init__(
        self, dim: int, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64)
    ) -> None:
        start = {"log_scale": torch.zeros(dim), "lower": torch.zeros(dim * (dim - 1) // 2)}
        super().__init__(dim, start, context_dim, hidden_dims)
        self.register_index("positions", strict_lower_positions(dim))
        self.register_buffer("unit", torch.ones(dim))

    @property
    def loc(self) -> Tensor:
        """The location, shape ``(dim,)``, without what a context adds."""
        return self.unit * self.tensors.start["loc"]

    @property
    def log_scale(self) -> nn.Parameter:
        """The logarithm of the factor's diagonal, shape ``(dim,)``."""
        return self.tensors.start["log_scale"]

    @property
    def lower(self) -> nn.Parameter:
        """The factor below its diagonal, relative to it, row by row."""
        return self.tensors.start["lower"]

    @property
    def scale_tril(self) -> Tensor:
        """The factor ``L``, shape ``(dim, dim)``, without what a context adds."""
        strict = strict_lower(self.lower, self.positions, self.dim)
        one = torch.diag_embed(torch.ones_like(self.log_scale))
        return self.log_scale.exp().unsqueeze(-1) * (strict + one)

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
            self.tensors.start["loc"].copy_(loc / self.unit)
        if scale_tril is not None:
            diagonal = scale_tril.diagonal()
            self.log_scale.copy_(diagonal.log())
            unit = scale_tril / diagonal.unsqueeze(-1)
            self.lower.copy_(unit.reshape(-1)[self.positions])

    @torch.no_grad()
    def measure_in_scales(self) -> None:
        """Count the location in standard deviations, as they are now, from here on.

        Nothing moves; but an optimiser's step of 0.03, which is 0.03 in the coordinates' own units
        until then, becomes 0.03 standard deviations of each, given those before it.
        """
        loc = self.loc.clone()
        self.unit.copy_(self.log_scale.exp())
        self.set(loc=loc)

    def _is_factor(self, tril: Tensor) -> bool:
        if tril.shape != (self.dim, self.dim):
            return False
        return bool((tril.diagonal() > 0).all()) and not bool(tril.triu(1).any())

    def _strict(self, tensors: Tensors) -> Tensor:
        return strict_lower(tensors["lower"], self.positions, self.dim)

    def _multiply(self, x: Tensor, tensors: Tensors) -> Tensor:
        return tensors["log_scale"].exp() * (x + matvec(self._strict(tensors), x))

    def _divide(self, y: Tensor, tensors: Tensors) -> Tensor:
        scaled = (-tensors["log_scale"]).exp() * y
        return triangular_solve(self._strict(tensors), scaled, unitriangular=True)

    def _divide_transposed(self, score: Tensor, tensors: Tensors) -> Tensor:
        strict = self._strict(tensors).mT
        solved = triangular_solve(strict, score, upper=True, unitriangular=True)
        return (-tensors["log_scale"]).exp() * solved

    def _loc(self, tensors: Tensors) -> Tensor:
        return self.unit * tensors["loc"]

    def _ladj(self, tensors: Tensors) -> Tensor:
        return tensors["log_scale"].sum(-1)
