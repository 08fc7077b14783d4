# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Monotone rational-quadratic splines: with linear tails, and periodic on the circle."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_flows.ops.bins import (
    MAX_LOG_SLOPE,
    MIN_BIN,
    bin_of,
    bin_sizes,
    identity_outside,
    in_box,
    left_edges,
    pick,
)
from pyro_flows.ops.rational_quadratic import (
    can_be_written_out,
    solved_in_bin,
    spline_written_out,
)
from pyro_flows.ops.stable import soft_clamp

__all__ = [
    "MAX_LOG_SLOPE",
    "MIN_BIN",
    "periodic_rational_quadratic_spline",
    "rational_quadratic_spline",
]


def rational_quadratic_spline(
    x: Tensor, params: Tensor, bound: float, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Apply an elementwise monotone rational-quadratic spline on ``[-bound, bound]``.

    Outside the box the map is the identity with log-slope 0, continuous in value and slope.
    All-zero parameters give the identity everywhere.

    Args:
        x: values, shape ``(*, D)``.
        params: shape ``(*, D, 3 * bins - 1)``: logits of the bin widths, logits of the bin
            heights, and log-slopes at the inner knots (softly bounded to 1e-3 ... 1e3).
        bound: half-width of the box, positive.
        inverse: apply the inverse map.

    Returns:
        ``(y, ladj)``, both of the broadcast shape ``(*, D)``; ``ladj`` is log|dy/dx| per element.

    Cost: one softmax over the bins and a gather, the same in both directions.

    Reference: Durkan et al., Neural Spline Flows, 2019, https://arxiv.org/abs/1906.04032

    Example:
        >>> x = torch.linspace(-4.0, 4.0, 5)
        >>> y, ladj = rational_quadratic_spline(x, torch.zeros(5, 11), bound=3.0)
        >>> torch.allclose(y, x), ladj.abs().max().item() < 1e-6
        (True, True)
    """

    def plain(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        bins = (params.shape[-1] + 1) // 3
        log_slopes = F.pad(params[..., 2 * bins :], (1, 1))
        inside, safe = in_box(x, bound)
        y, ladj = _in_bins(safe, params, log_slopes, bound, inverse=inverse)
        return identity_outside(x, inside, y, ladj)

    if can_be_written_out(x, params):
        return spline_written_out(x, params, bound, inverse=inverse, periodic=False, plain=plain)
    return plain(x, params)


def periodic_rational_quadratic_spline(
    x: Tensor, params: Tensor, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Apply a rational-quadratic spline on the circle, in angles; its ends are a knot as others.

    The slope at ``-pi`` is that at ``pi``, and free; both stay where they are. All-zero
    parameters give the identity.

    Args:
        x: angles in ``[-pi, pi]``, shape ``(*, D)``.
        params: shape ``(*, D, 3 * bins)``: logits of the bin widths, logits of the bin heights,
            and log-slopes at the left edges of the bins (softly bounded to 1e-3 ... 1e3).
        inverse: apply the inverse map.

    Returns:
        ``(y, ladj)``, both of the broadcast shape ``(*, D)``, with ``y`` in ``[-pi, pi]``.

    Cost: as :func:`rational_quadratic_spline`.

    Reference: Rezende et al., Normalizing Flows on Tori and Spheres, 2020,
    https://arxiv.org/abs/2002.02428

    Example:
        >>> x = torch.tensor([-torch.pi, 0.5, torch.pi])
        >>> y, ladj = periodic_rational_quadratic_spline(x, torch.ones(3, 12))
        >>> torch.allclose(y[::2], x[::2]), torch.allclose(ladj[0], ladj[2])
        (True, True)
    """

    def plain(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        bins = params.shape[-1] // 3
        log_slopes = params[..., 2 * bins :]
        log_slopes = torch.cat([log_slopes, log_slopes[..., :1]], -1)
        return _in_bins(x, params, log_slopes, math.pi, inverse=inverse)

    if can_be_written_out(x, params):
        return spline_written_out(x, params, math.pi, inverse=inverse, periodic=True, plain=plain)
    return plain(x, params)


def _in_bins(
    x: Tensor, params: Tensor, log_slopes: Tensor, bound: float, *, inverse: bool
) -> tuple[Tensor, Tensor]:
    """The spline inside its box, given the ``bins + 1`` raw log-slopes at its knots."""
    bins = log_slopes.shape[-1] - 1
    widths, heights = (
        bin_sizes(params[..., i * bins : (i + 1) * bins], 2 * bound) for i in range(2)
    )
    left, bottom = left_edges(widths, -bound), left_edges(heights, -bound)
    index = bin_of(x, bottom if inverse else left)
    w, x0, h, y0 = (pick(table, index) for table in (widths, left, heights, bottom))
    # Bounded on both sides: a conditioner far from its data asks for slopes of any size. Picked
    # first: two knots matter, and bounding all of them took a quarter of the time.
    d0, d1 = (
        soft_clamp(pick(ends, index), MAX_LOG_SLOPE).exp()
        for ends in (log_slopes[..., :-1], log_slopes[..., 1:])
    )
    s = h / w
    curvature = d0 + d1 - 2 * s

    if inverse:
        t, rest = solved_in_bin(((x - y0) / h).clamp(0, 1), s, d0, d1)
        y = x0 + t * w
    else:
        t = ((x - x0) / w).clamp(0, 1)
        rest = 1 - t
        y = y0 + h * (s * t * t + d0 * t * rest) / (s + curvature * t * rest)

    denominator = s + curvature * t * rest
    numerator = d1 * t * t + 2 * s * t * rest + d0 * rest * rest
    ladj = 2 * (s.log() - denominator.log()) + numerator.log()
    return y, -ladj if inverse else ladj
