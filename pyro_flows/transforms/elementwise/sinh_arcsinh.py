# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Skewness and tail weight by two numbers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_flows.ops import linear_tails, soft_clamp
from pyro_flows.transforms.elementwise.options import require_within
from pyro_flows.transforms.elementwise.univariate import Univariate

MAX_SKEW = 2.0
MAX_LOG_TAIL = math.log(4.0)


@dataclass(frozen=True)
class SinhArcsinh(Univariate):
    """The sinh-arcsinh transform: skewness and tail weight.

    ``y = sinh(t asinh(x) + s)``, which grows like ``|x|^t``: ``t > 1`` makes tails heavier than
    those of what comes in, ``t < 1`` lighter, ``s`` skews; ``1/4 < t < 4``, ``|s| < 2``. Beyond
    ``|x| = bound`` the map goes on along its tangents, so that it overflows in neither direction.
    Zero parameters are the identity.

    Args:
        bound: where the map becomes linear; far beyond what a normal base ever gives.

    Parameters per element: 2, ``s`` and ``log t``.

    Cost: a few elementary functions in both directions. Choose it for the moderate skewness and
    tails that most data have; for power-law tails take :class:`TailTransform`.

    Reference: Jones, Pewsey, Sinh-arcsinh distributions, Biometrika 2009,
    https://doi.org/10.1093/biomet/asp053

    Example:
        >>> layer = transforms.Elementwise(2, transforms.SinhArcsinh())
        >>> x = torch.randn(5, 2)
        >>> torch.allclose(layer(x), x, atol=1e-5)
        True
    """

    bound: float = 100.0

    num_parameters = 2

    def __post_init__(self) -> None:
        # Its fourth power, times a few, is a float32.
        require_within(self, bound=(1, 1e4))

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Power and skew on the scale of asinh."""
        skew, log_tail = _bounded(params)

        def inside(x: Tensor) -> tuple[Tensor, Tensor]:
            return _sinh_of_asinh(x, skew, log_tail)

        return linear_tails(inside, x, -self.bound, self.bound)

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """The same map with ``1 / t`` and ``-s / t``."""
        skew, log_tail = _bounded(params)
        end = torch.full_like(skew, self.bound)
        low, _ = _sinh_of_asinh(-end, skew, log_tail)
        high, _ = _sinh_of_asinh(end, skew, log_tail)

        def inside(y: Tensor) -> tuple[Tensor, Tensor]:
            return _sinh_of_asinh(y, -skew * (-log_tail).exp(), -log_tail)

        return linear_tails(inside, y, low, high)


def _bounded(params: Tensor) -> tuple[Tensor, Tensor]:
    skew, log_tail = params.unbind(-1)
    return soft_clamp(skew, MAX_SKEW), soft_clamp(log_tail, MAX_LOG_TAIL)


def _sinh_of_asinh(x: Tensor, skew: Tensor, log_tail: Tensor) -> tuple[Tensor, Tensor]:
    u = log_tail.exp() * x.asinh() + skew
    log_cosh = torch.logaddexp(u, -u) - math.log(2)
    return u.sinh(), log_tail + log_cosh - 0.5 * torch.log1p(x * x)
