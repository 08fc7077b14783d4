# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The uniform base, for layers on a box or on circles."""

from __future__ import annotations

import math

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_flows.distributions.base import Base
from pyro_flows.errors import OptionError


class UniformBox(Base):
    """The uniform distribution on a box; by default on ``dim`` angles.

    ``log p(x) = -sum_i log(high - low)`` inside, ``-inf`` outside; both edges are inside, since
    an angle may round to either.

    Args:
        dim: number of coordinates.
        low: lower edge of every coordinate.
        high: upper edge.

    The base of flows on the circle (:func:`pyro_flows.flows.ncsf`), where it is the one
    distribution with no direction. Draws carry gradients (none, the edges being fixed).
    Cost: O(dim).

    Reference: Rezende et al., Normalizing flows on tori and spheres, 2020, arXiv:2002.02428.

    Example:
        >>> d = distributions.UniformBox(2, low=0.0, high=1.0)()
        >>> d.log_prob(torch.tensor([[0.5, 0.5], [0.5, 2.0]])).tolist()
        [0.0, -inf]
    """

    low: Tensor
    high: Tensor

    def __init__(self, dim: int, low: float = -math.pi, high: float = math.pi) -> None:
        super().__init__(dim)
        if not -math.inf < low < high < math.inf:
            raise OptionError(
                f"UniformBox expected finite low < high, but got low={low} and high={high}. "
                "Give the edges of the box."
            )
        self.register_buffer("low", torch.full((dim,), low))
        self.register_buffer("high", torch.full((dim,), high))

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """Return the distribution; the context is not used."""
        return _ClosedUniform(self.low, self.high, validate_args=False).to_event(1)


class _ClosedUniform(dist.Uniform):
    """The uniform distribution with both edges inside; NaN scores NaN."""

    def log_prob(self, value: Tensor) -> Tensor:
        inside = -(self.high - self.low).log()
        outside = (value < self.low) | (value > self.high)
        score = torch.where(outside, torch.full_like(inside, -torch.inf), inside)
        return torch.where(value.isnan(), value, score)
