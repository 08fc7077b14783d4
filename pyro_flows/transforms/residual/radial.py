# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The radial layer: space is stretched or squeezed around a centre."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows.nn import Parameters
from pyro_flows.ops import soft_clamp
from pyro_flows.transforms.base import Layer

MAX_LOG_SCALE = math.log(1e3)


class Radial(Layer):
    """``y = c + g(r) (x - c)`` with ``g = (r + s alpha) / (r + alpha)`` and ``r = |x - c|``.

    The factor goes from the scale ``s`` at the centre ``c`` to 1 far away; ``alpha`` is the radius
    where it is half-way. In Rezende and Mohamed's letters ``beta = alpha (s - 1)``; here ``s`` and
    ``alpha`` are exponentials, softly bounded to 1e-3 ... 1e3, so that every parameter gives a
    bijection and ``s = 1`` is the identity.

    ``log|det| = (dim - 1) log g + log((1 - q^2) + s q^2)`` with ``q = alpha / (r + alpha)``.

    Args:
        dim: number of coordinates.
        context_dim: with a context ``c``, ``alpha`` and ``s`` are moved by a network of it.
        hidden_dims: widths of that network.

    Cost: O(dim) in both directions: the inverse is the root of a quadratic.

    When: to move mass towards or away from one place; with :class:`Planar` in comparisons.

    Reference: Rezende & Mohamed, Variational inference with normalizing flows, 2015,
    https://arxiv.org/abs/1505.05770

    Example:
        >>> layer = transforms.Radial(3)
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(layer(x), x), torch.allclose(layer.inv(layer(x)), x)
        (True, True)
    """

    def __init__(
        self, dim: int, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__(dim, context_dim)
        start = {
            "center": torch.zeros(dim),
            "log_alpha": torch.zeros(()),
            "log_scale": torch.zeros(()),
        }
        self.parameters_of = Parameters(start, context_dim, hidden_dims)

    def _shape(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        self.check(x, context)
        p = self.parameters_of(context)
        alpha = soft_clamp(p["log_alpha"], MAX_LOG_SCALE).exp()
        return p["center"], alpha, soft_clamp(p["log_scale"], MAX_LOG_SCALE).exp()

    def _factor(self, r: Tensor, alpha: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """The factor at a radius, and the log-determinant."""
        factor = (r + scale * alpha) / (r + alpha)
        q = alpha / (r + alpha)
        along = (1 - q) * (1 + q) + scale * q * q
        return factor, (self.dim - 1) * factor.log() + along.log()

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scale the distance to the centre."""
        center, alpha, scale = self._shape(x, context)
        away = x - center
        # Its gradient at 0 is 0, as torch has it: there the factor is stationary in no direction,
        # but multiplies zero.
        r = torch.linalg.vector_norm(away, dim=-1)
        factor, ladj = self._factor(r, alpha, scale)
        return center + factor.unsqueeze(-1) * away, ladj

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Solve for the radius, then scale back."""
        center, alpha, scale = self._shape(y, context)
        away = y - center
        reach = torch.linalg.vector_norm(away, dim=-1)
        # r^2 + (s alpha - R) r - alpha R = 0, by the form in which nothing cancels.
        linear = reach - scale * alpha
        root = torch.sqrt(linear * linear + 4 * alpha * reach)
        size = linear.abs() + root
        r = torch.where(linear > 0, 0.5 * size, 2 * alpha * reach / size)
        factor, ladj = self._factor(r, alpha, scale)
        return center + away / factor.unsqueeze(-1), -ladj
