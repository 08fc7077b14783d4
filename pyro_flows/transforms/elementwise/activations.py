# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Activation functions of the real line onto itself, as univariates."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_flows.errors import ShapeError
from pyro_flows.ops import leaky_tanh, soft_clamp
from pyro_flows.transforms.elementwise.options import require_within
from pyro_flows.transforms.elementwise.univariate import Univariate


def _leak(x: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` above zero, ``x exp(log_slope)`` below."""
    ladj = torch.where(x < 0, log_slope, torch.zeros_like(log_slope))
    return x * ladj.exp(), ladj


@dataclass(frozen=True)
class LeakyReLU(Univariate):
    """``y = x`` above zero, ``slope * x`` below; fixed.

    Between linear layers it makes the simplest flow that isn't linear. The density has a jump at
    zero: not a choice for Hamiltonian Monte Carlo.

    Args:
        slope: positive.

    Shapes: no parameters. Cost: a comparison and a product in both directions.

    Raises:
        ShapeError: the slope isn't positive.

    Reference: Maas et al., Rectifier Nonlinearities Improve Neural Network Acoustic Models, 2013,
    https://ai.stanford.edu/~amaas/papers/relu_hybrid_icml2013_final.pdf

    Example:
        >>> layer = transforms.Elementwise(2, transforms.LeakyReLU(0.5))
        >>> layer(torch.tensor([-2.0, 2.0])).tolist()
        [-1.0, 2.0]
    """

    slope: float = 0.1

    num_parameters = 0

    def __post_init__(self) -> None:
        if not self.slope > 0:
            raise ShapeError(
                f"LeakyReLU expected a positive slope, but got {self.slope}. With a slope of zero "
                "or below it has no inverse."
            )

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Scale negative numbers."""
        return _leak(x, torch.full_like(x, math.log(self.slope)))

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Scale them back."""
        return _leak(y, torch.full_like(y, -math.log(self.slope)))


@dataclass(frozen=True)
class PReLU(Univariate):
    """``y = x`` above zero, ``exp(s) x`` below, with the log-slope ``s`` softly bounded.

    What :class:`LeakyReLU` is, with a slope that is learned, or decided by a conditioner. The
    cheapest univariate that bends; choose it where that counts, and a kink does no harm.

    Args:
        log_slope_bound: bound of ``|s|``.

    Shapes: one parameter per element. Cost: one exponential in both directions.

    Reference: He et al., Delving Deep into Rectifiers, 2015, https://arxiv.org/abs/1502.01852

    Example:
        >>> layer = transforms.Coupling(3, transforms.PReLU())
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(layer(x), x)
        True
    """

    log_slope_bound: float = 3.0

    num_parameters = 1

    def __post_init__(self) -> None:
        require_within(self, log_slope_bound=(1e-3, 50))

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Scale negative numbers."""
        return _leak(x, soft_clamp(params[..., 0], self.log_slope_bound))

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Scale them back."""
        return _leak(y, -soft_clamp(params[..., 0], self.log_slope_bound))


@dataclass(frozen=True)
class LeakyTanh(Univariate):
    """``y = tanh(x)`` where ``|x| <= limit``, a straight line with its slope there beyond; fixed.

    A soft squash that still reaches every number, smooth in value and slope: what lies far out is
    drawn in, by a factor of ``1 - tanh(limit)^2`` at most (0.01 at 3). A network's values pass
    through it before a layer that acts on a box.

    Args:
        limit: positive; where the straight lines begin.

    Shapes: no parameters. Cost: one hyperbolic function in both directions.

    Raises:
        ShapeError: the limit isn't in (0, 10]: beyond, the slope outside has no digits.

    Reference: as in flowjax, https://danielward27.github.io/flowjax

    Example:
        >>> layer = transforms.Elementwise(2, transforms.LeakyTanh(3.0))
        >>> y = layer(torch.tensor([1.0, 1e6]))
        >>> torch.allclose(layer.inv(y), torch.tensor([1.0, 1e6]))
        True
    """

    limit: float = 3.0

    num_parameters = 0

    def __post_init__(self) -> None:
        if not 0 < self.limit <= 10:
            raise ShapeError(
                f"LeakyTanh expected a limit in (0, 10], but got {self.limit}. Beyond 10 the "
                "slope outside is lost to rounding; use Tanh for a bounded range."
            )

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Squash."""
        return leaky_tanh(x, self.limit)

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Unsquash."""
        return leaky_tanh(y, self.limit, inverse=True)
