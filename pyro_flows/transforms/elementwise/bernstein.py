# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Bernstein polynomials."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pyro_flows.ops import bernstein_basis, linear_tails, soft_clamp
from pyro_flows.transforms.elementwise.options import require_within
from pyro_flows.transforms.elementwise.root_finding import Monotone, RootFinding

MAX_LOG_SLOPE = math.log(1e3)


@dataclass(frozen=True)
class Bernstein(RootFinding):
    """A Bernstein polynomial with increasing coefficients on ``[-bound, bound]``.

    ``y = sum_k theta_k b_k(t)``, ``t = (x + bound) / (2 bound)``, with Bernstein polynomials
    ``b_k`` of degree ``n`` and ``theta_(k+1) - theta_k = (2 bound / n) exp(r_k)``. So the slope is
    the weighted mean ``sum_k exp(r_k) b_k(t)`` of degree ``n - 1``: positive, smooth, and within
    1e-3 ... 1e3. Outside, the map goes on along its tangents. Zero parameters are the identity.

    Args:
        degree: degree of the polynomial. The resolution grows with its root only.
        bound: half-width of the box; values are best whitened first.

    Parameters per element: ``degree + 1``, the shift of the box's middle and the ``r_k``.

    Cost: a sum of ``degree`` terms forwards; a root (see :class:`RootFinding`) backwards.
    Choose it for smooth densities and few parameters; a spline for sharp detail.

    Reference: Ramasinghe et al., Robust normalizing flows using Bernstein-type polynomials, 2021,
    https://arxiv.org/abs/2102.03509

    Example:
        >>> layer = transforms.Elementwise(2, transforms.Bernstein(degree=8))
        >>> x = torch.randn(5, 2)
        >>> layer(x).shape, torch.allclose(layer(x), x, atol=1e-5)
        (torch.Size([5, 2]), True)
    """

    degree: int = 12
    bound: float = 5.0

    def __post_init__(self) -> None:
        # Binomials of a higher degree are no float32.
        require_within(self, degree=(1, 100), bound=(1e-3, 1e6))

    @property
    def num_parameters(self) -> int:
        """A shift, and the log-slopes between coefficients."""
        return self.degree + 1

    def function(self, params: Tensor) -> Monotone:
        """The polynomial at given parameters."""
        slopes = soft_clamp(params[..., 1:], MAX_LOG_SLOPE).exp()
        width = 2 * self.bound
        theta = F.pad((width / self.degree * slopes).cumsum(-1), (1, 0))
        middle = 0.5 * theta[..., -1:]
        theta = theta - middle + params[..., :1]

        def inside(x: Tensor) -> tuple[Tensor, Tensor]:
            t = (x + self.bound) / width
            value = (theta * bernstein_basis(t, self.degree)).sum(-1)
            return value, (slopes * bernstein_basis(t, self.degree - 1)).sum(-1).log()

        return lambda x: linear_tails(inside, x, -self.bound, self.bound)
