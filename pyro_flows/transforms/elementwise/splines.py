# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Splines other than the rational-quadratic one, as univariates.

All act on a box ``[-bound, bound]`` and are the identity outside: values are best whitened first.
"""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

from torch import Tensor

from pyro_flows.errors import ShapeError
from pyro_flows.nn.sizes import is_size
from pyro_flows.ops import (
    cubic_spline,
    linear_rational_spline,
    piecewise_linear,
    quadratic_spline,
)
from pyro_flows.transforms.elementwise.univariate import Univariate


@dataclass(frozen=True)
class _Boxed(Univariate):
    bins: int = 8
    bound: float = 5.0

    least_bins: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_box(self, self.least_bins)


def check_box(spline: _Boxed, least_bins: int) -> None:
    """Raise unless a spline's ``bins`` and ``bound`` make sense."""
    # Bins have a smallest share of the box, a thousandth.
    counted = is_size(spline.bins, least_bins) and spline.bins <= 500
    if counted and isinstance(spline.bound, Real) and spline.bound > 0:
        return
    raise ShapeError(
        f"{type(spline).__name__} expected {least_bins} to 500 bins and a positive bound, but got "
        f"bins={spline.bins!r} and bound={spline.bound!r}. 8 bins and a bound of 5 suit whitened "
        "values."
    )


@dataclass(frozen=True)
class PiecewiseLinear(_Boxed):
    """Increasing piecewise linear map on ``[-bound, bound]``, the identity outside.

    ``y = y_k + (x - x_k) h_k / w_k`` in bin ``k`` of width ``w_k`` and height ``h_k``: a histogram
    with bins that move. The cheapest spline; its density has a jump at every knot, so it is not a
    choice for Hamiltonian Monte Carlo or for targets that are smooth.

    Args:
        bins: number of bins.
        bound: half-width of the box; values are best whitened first.

    Shapes: ``2 * bins`` parameters per element. Cost: one softmax and a gather, both ways alike.

    Raises:
        ShapeError: no bins, or a bound that isn't positive.

    Reference: Müller et al., Neural Importance Sampling, 2018, https://arxiv.org/abs/1808.03856

    Example:
        >>> layer = transforms.Coupling(3, transforms.PiecewiseLinear(bins=4))
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(layer(x), x, atol=1e-5)
        True
    """

    @property
    def num_parameters(self) -> int:
        """Widths and heights: ``2 bins``."""
        return 2 * self.bins

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the map."""
        return piecewise_linear(x, params, self.bound)

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the inverse, a map of the same kind."""
        return piecewise_linear(y, params, self.bound, inverse=True)


@dataclass(frozen=True)
class QuadraticSpline(_Boxed):
    """Increasing piecewise quadratic map on ``[-bound, bound]``, the identity outside.

    Its slope is the piecewise linear function through ``d_0 = 1, d_1, ..., d_bins = 1`` at the
    knots, scaled to fill the box; so the density is continuous everywhere. Close to
    :class:`RationalQuadraticSpline` in what it fits (Durkan et al. 2019, table 1), with two
    thirds of its parameters.

    Args:
        bins: number of bins, two at least.
        bound: half-width of the box; values are best whitened first.

    Shapes: ``2 * bins - 1`` parameters per element. Cost: one softmax and a gather; the inverse
    adds a square root.

    Raises:
        ShapeError: fewer than two bins, or a bound that isn't positive.

    Reference: Müller et al., Neural Importance Sampling, 2018, https://arxiv.org/abs/1808.03856

    Example:
        >>> layer = transforms.Coupling(3, transforms.QuadraticSpline(bins=4))
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(layer(x), x, atol=1e-5)
        True
    """

    least_bins: ClassVar[int] = 2

    @property
    def num_parameters(self) -> int:
        """Widths and inner slopes: ``2 bins - 1``."""
        return 2 * self.bins - 1

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the map."""
        return quadratic_spline(x, params, self.bound)

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Solve a quadratic per element."""
        return quadratic_spline(y, params, self.bound, inverse=True)


@dataclass(frozen=True)
class CubicSpline(_Boxed):
    """Increasing cubic spline on ``[-bound, bound]``, the identity outside.

    In each bin the cubic with given values and slopes at its ends; slopes at inner knots are
    free in the region where all cubics increase. Value and slope are continuous everywhere. What
    it offers over :class:`RationalQuadraticSpline` is polynomials; the inverse costs more.

    Args:
        bins: number of bins, three at least; the outer two only lead over to the identity.
        bound: half-width of the box; values are best whitened first.

    Shapes: ``3 * bins - 3`` parameters per element. Cost: forwards one softmax and a gather;
    backwards also a bracketed Newton iteration on one cubic per element, 4 to 8 cheap steps.

    Raises:
        ShapeError: fewer than three bins, or a bound that isn't positive.

    Reference: Durkan et al., Cubic-Spline Flows, 2019, https://arxiv.org/abs/1906.02145

    Example:
        >>> layer = transforms.Coupling(3, transforms.CubicSpline(bins=4))
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(layer(x), x, atol=1e-5)
        True
    """

    least_bins: ClassVar[int] = 3

    @property
    def num_parameters(self) -> int:
        """Widths, inner heights and inner slopes: ``3 bins - 3``."""
        return 3 * self.bins - 3

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the spline."""
        return cubic_spline(x, params, self.bound)

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Find the root of a cubic per element."""
        return cubic_spline(y, params, self.bound, inverse=True)


@dataclass(frozen=True)
class LinearRationalSpline(_Boxed):
    """Increasing linear rational spline on ``[-bound, bound]``, the identity outside.

    Two pieces ``(p + q x) / (r + s x)`` in each bin, which meet with one slope at a middle knot.
    Value and slope are continuous everywhere. Both directions are a quotient, without a root: the
    choice where sampling and scoring must cost the same and keep the same digits.

    Args:
        bins: number of bins.
        bound: half-width of the box; values are best whitened first.

    Shapes: ``4 * bins - 1`` parameters per element. Cost: one softmax and a gather, both ways
    alike.

    Raises:
        ShapeError: no bins, or a bound that isn't positive.

    Reference: Dolatabadi et al., Invertible Generative Modeling using Linear Rational Splines,
    2020, https://arxiv.org/abs/2001.05168

    Example:
        >>> layer = transforms.Coupling(3, transforms.LinearRationalSpline(bins=4))
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(layer(x), x, atol=1e-5)
        True
    """

    @property
    def num_parameters(self) -> int:
        """Widths, heights, middle knots and inner slopes: ``4 bins - 1``."""
        return 4 * self.bins - 1

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the spline."""
        return linear_rational_spline(x, params, self.bound)

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the inverse, a spline of the same kind."""
        return linear_rational_spline(y, params, self.bound, inverse=True)
