# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Univariates for angles: maps of the circle onto itself, given as ``[-pi, pi]``.

Density and slope at ``-pi`` are those at ``pi``: with a base that is uniform on the circle, so is
everything. Conditioners see an angle as its cosine and sine. An angle outside ``[-pi, pi]`` has
log-density -inf, as any value outside a support; :func:`pyro_flows.ops.wrap` brings it in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_flows.errors import ShapeError
from pyro_flows.nn.sizes import is_size
from pyro_flows.ops import moebius_mixture, periodic_rational_quadratic_spline, wrap
from pyro_flows.ops.bounded import confine, impossible_outside
from pyro_flows.transforms.elementwise.univariate import Univariate

#: Angles. One object, since the identity of constraints is what says that two spaces are the same.
CIRCLE = constraints.interval(-math.pi, math.pi)

# Start of the poles of a Moebius mixture: apart, so that components learn different things, and
# close enough to the middle for the mixture to be nearly the identity.
SPREAD = 0.15


@dataclass(frozen=True)
class _Circular(Univariate):
    """A map of the circle, then a rotation by the last parameter."""

    domain = CIRCLE
    codomain = CIRCLE
    num_features = 2

    def features(self, x: Tensor) -> Tensor:
        """Cosine and sine of the angles, shape ``(*, D, 2)``."""
        x = confine(x, ~x.isinf(), 0.0)  # no angle: it has no density, and must not make NaN
        return torch.stack([x.cos(), x.sin()], -1)

    def _move(self, x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Move along the circle, then rotate."""
        inside = (x >= -math.pi) & (x <= math.pi)
        y, ladj = self._move(confine(x, inside, 0.0), params[..., :-1], inverse=False)
        return impossible_outside(x, inside, wrap(y + wrap(params[..., -1])), ladj)

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Rotate back, then move back along the circle."""
        inside = (y >= -math.pi) & (y <= math.pi)
        angle = wrap(confine(y, inside, 0.0) - wrap(params[..., -1]))
        x, ladj = self._move(angle, params[..., :-1], inverse=True)
        return impossible_outside(y, inside, wrap(x), ladj)


@dataclass(frozen=True)
class CircularSpline(_Circular):
    """Rational-quadratic spline on the circle, then a rotation.

    ``y = spline(x) + rotation``, wrapped to ``[-pi, pi]``; the spline is that of
    :class:`RationalQuadraticSpline` with the slope at ``-pi`` equal to that at ``pi``, and free.

    For angles (torsions, wind, time of day), in couplings and autoregressive layers on tori.

    Args:
        bins: number of bins.

    Shapes: ``3 * bins + 1`` parameters per element; two features. Cost: one softmax and a gather;
    the inverse adds a square root.

    Raises:
        ShapeError: no bins.

    Reference: Rezende et al., Normalizing Flows on Tori and Spheres, 2020,
    https://arxiv.org/abs/2002.02428

    Example:
        >>> layer = transforms.Coupling(2, transforms.CircularSpline(bins=4))
        >>> angles = torch.tensor([[0.5, -3.0], [3.0, 3.1]])
        >>> torch.allclose(layer(angles), angles), layer.domain.check(angles).tolist()
        (True, [True, True])
    """

    bins: int = 8

    def __post_init__(self) -> None:
        if not (is_size(self.bins) and self.bins <= 500):
            raise ShapeError(
                f"CircularSpline expected between 1 and 500 bins, but got bins={self.bins!r}. "
                "8 suit most angles."
            )

    @property
    def num_parameters(self) -> int:
        """Widths, heights, slopes and the rotation: ``3 bins + 1``."""
        return 3 * self.bins + 1

    def _move(self, x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        return periodic_rational_quadratic_spline(x, params, inverse=inverse)


@dataclass(frozen=True)
class Moebius(_Circular):
    """Mean of Moebius maps of the circle, then a rotation.

    ``y = sum_k weight_k (x + 2 arg(1 - w_k exp(-ix))) + rotation``, wrapped to ``[-pi, pi]``, with
    poles ``w_k`` in the disc. Each pole gathers density at its angle, the more the closer it is to
    the circle. Infinitely smooth; the choice for a few smooth modes, where
    :class:`CircularSpline` is for sharp ones. It starts within 0.1 of the identity (exactly, with
    one component): poles start apart.

    Args:
        components: number of maps.

    Shapes: ``3 * components + 1`` parameters per element (3 for one component); two features.
    Cost: trigonometric functions per component; the inverse of several components is a bracketed
    Newton iteration, of 4 to 8 such evaluations.

    Raises:
        ShapeError: no components.

    Reference: Rezende et al., Normalizing Flows on Tori and Spheres, 2020,
    https://arxiv.org/abs/2002.02428

    Example:
        >>> layer = transforms.Elementwise(2, transforms.Moebius(components=3))
        >>> angles = torch.tensor([0.5, -3.0])
        >>> torch.allclose(layer.inv(layer(angles)), angles, atol=1e-5)
        True
    """

    components: int = 4

    def __post_init__(self) -> None:
        if not is_size(self.components):
            raise ShapeError(
                f"Moebius expected at least one component, but got {self.components!r}. "
                "One rotates and gathers; each more can add a mode."
            )

    @property
    def num_parameters(self) -> int:
        """Poles, weights of more than one, and the rotation."""
        return 3 * self.components + 1 if self.components > 1 else 3

    def _move(self, x: Tensor, params: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        count = self.components
        poles = params[..., : 2 * count].unflatten(-1, (count, 2))
        if count > 1:
            angle = torch.arange(count, dtype=x.dtype, device=x.device) * (2 * math.pi / count)
            poles = poles + SPREAD * torch.stack([angle.cos(), angle.sin()], -1)
        return moebius_mixture(x, poles, params[..., 2 * count :], inverse=inverse)
