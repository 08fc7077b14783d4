# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A univariate on every coordinate, each with its own parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_flows.nn import MLP
from pyro_flows.transforms.base import Layer, vector_of
from pyro_flows.transforms.elementwise.univariate import Univariate


class Elementwise(Layer):
    """Map each coordinate by a univariate with its own (or context-made) parameters.

    ``y[i] = univariate(x[i]; params[i])``.

    Args:
        dim: number of coordinates.
        univariate: for example ``RationalQuadraticSpline()``.
        context_dim: with a context the parameters come from a network of it.
        hidden_dims: widths of that network.

    Cost: one evaluation of the univariate in both directions. Choose it for one coordinate, for
    marginal shapes between layers that mix coordinates, and as a last layer onto a bounded space.

    Reference: that of the univariate.

    Example:
        >>> layer = transforms.Elementwise(1, transforms.RationalQuadraticSpline(bins=16))
        >>> x = torch.tensor([[0.5], [9.0]])
        >>> torch.allclose(layer(x), x)
        True
    """

    def __init__(
        self,
        dim: int,
        univariate: Univariate,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(dim, context_dim)
        self.univariate = univariate
        count = dim * univariate.num_parameters
        self.conditioner = MLP(context_dim, count, hidden_dims) if count else None

    @property
    def domain(self) -> Any:  # type: ignore[override]
        """The univariate's domain, of every coordinate."""
        return vector_of(self.univariate.domain)

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        """The univariate's codomain, of every coordinate."""
        return vector_of(self.univariate.codomain)

    def _params(self, x: Tensor, context: Tensor | None) -> Tensor:
        self.check(x, context)
        if self.conditioner is None:
            return x.unsqueeze(-1)[..., :0]
        flat = self.conditioner(x[..., :0] if context is None else context)
        return flat.unflatten(-1, (self.dim, self.univariate.num_parameters))

    def _batched(self, x: Tensor, context: Tensor | None) -> Tensor:
        """Values with the context's batch axes, where no parameters bring them in."""
        if self.conditioner is not None or context is None:
            return x
        return x.expand(*torch.broadcast_shapes(x.shape[:-1], context.shape[:-1]), -1)

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map every coordinate."""
        params = self._params(x, context)
        y, ladj = self.univariate.forward_and_ladj(self._batched(x, context), params)
        return y, ladj.sum(-1)

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Invert every coordinate."""
        params = self._params(y, context)
        x, ladj = self.univariate.inverse_and_ladj(self._batched(y, context), params)
        return x, ladj.sum(-1)

    def extra_repr(self) -> str:
        """Sizes and univariate, for ``print``."""
        return f"{super().extra_repr()}, univariate={self.univariate}"
