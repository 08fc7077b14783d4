# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Power-law tails with learnable indices."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_flows.ops import linear_tails, log_normal_cdf, normal_quantile_of_log
from pyro_flows.transforms.elementwise.options import require_within
from pyro_flows.transforms.elementwise.univariate import Univariate

# Slope 1 at 0.
SCALE = math.sqrt(math.pi / 2)
MIN_INDEX = 1e-3


@dataclass(frozen=True)
class TailTransform(Univariate):
    """Turn normal tails into power-law tails, of another index on each side.

    ``y = s c (erfc(|x| / sqrt 2)^(-h) - 1) / h``, ``s`` the sign of ``x``, ``c = sqrt(pi / 2)``,
    ``h`` the tail index of that side: with a normal base ``P(|y| > r)`` falls like
    ``r^(-1 / h)``, as a Student-t of ``1 / h`` degrees of freedom does. The lightest tails,
    ``h -> 0``, are exponential: the identity is not in the family. Beyond ``|x| = bound`` the map
    goes on along its tangents, so that it doesn't overflow.

    Args:
        start: tail index at zero parameters.
        heaviest: upper bound of the tail index; 1 is that of a Cauchy.
        bound: where the map becomes linear. A normal base gives more than 8 once in 1e15 draws.

    Parameters per element: 2, for the left and the right index.

    Cost: a few special functions forwards, a normal quantile backwards. Choose it as the last
    layer where data or posterior have power-law tails: a light-tailed flow can't make them.

    Reference: Hickling, Prangle, Flexible tails for normalizing flows, 2024,
    https://arxiv.org/abs/2406.16971

    Example:
        >>> layer = transforms.Elementwise(1, transforms.TailTransform(start=0.5))
        >>> x = torch.tensor([[1.0], [6.0]])
        >>> y = layer(x)
        >>> bool(y[1] > 1e3), torch.allclose(layer.inv(y), x, rtol=1e-4)
        (True, True)
    """

    start: float = 0.1
    heaviest: float = 1.0
    bound: float = 8.0

    num_parameters = 2

    def __post_init__(self) -> None:
        require_within(self, heaviest=(0.01, 2))
        # exp(heaviest bound^2 / 2), what the map reaches, is a float32.
        require_within(self, bound=(1, (150 / self.heaviest) ** 0.5))
        require_within(self, start=(1.01 * MIN_INDEX, 0.99 * self.heaviest))

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Survival of a normal, to the power ``-h``."""
        left, right = self._indices(params)

        def inside(x: Tensor) -> tuple[Tensor, Tensor]:
            return _forward(x, torch.where(x < 0, left, right))

        return linear_tails(inside, x, -self.bound, self.bound)

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """The normal quantile of the logarithm of the survival."""
        left, right = self._indices(params)
        end = torch.full_like(left, self.bound)
        low, high = _forward(-end, left)[0], _forward(end, right)[0]

        def inside(y: Tensor) -> tuple[Tensor, Tensor]:
            return _inverse(y, torch.where(y < 0, left, right))

        return linear_tails(inside, y, low, high)

    def _indices(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Left and right tail index, within ``(1e-3, heaviest)``."""
        share = (self.start - MIN_INDEX) / (self.heaviest - MIN_INDEX)
        raw = params + math.log(share / (1 - share))
        left, right = (MIN_INDEX + (self.heaviest - MIN_INDEX) * raw.sigmoid()).unbind(-1)
        return left, right


def _forward(x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    # Not abs and sign, whose gradients at 0 are 0.
    lower = torch.where(x < 0, x, -x)
    value, log_hazard = log_normal_cdf(lower)
    excess = -value - math.log(2)
    size = SCALE * torch.expm1(index * excess) / index
    log_slope = index * excess + log_hazard + math.log(SCALE)
    return torch.where(x < 0, -size, size), log_slope


def _inverse(y: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    size = torch.where(y < 0, -y, y)
    excess = torch.log1p(index * size / SCALE) / index
    lower = normal_quantile_of_log(-excess - math.log(2))
    log_slope = -index * excess - log_normal_cdf(lower)[1] - math.log(SCALE)
    return torch.where(y < 0, lower, -lower), log_slope
