# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Monotone splines of polynomials, of degree one, two and three, with linear tails."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_flows.ops.bins import (
    MAX_LOG_SLOPE,
    bin_of,
    bin_sizes,
    identity_outside,
    in_box,
    left_edges,
    pick,
)
from pyro_flows.ops.roots import monotone_inverse
from pyro_flows.ops.stable import soft_clamp

# Bound of the cubic's raw knot slopes: they keep away from the edge of the monotone region, where
# the slope inside a bin would fall to zero.
MAX_CUBIC_LOGIT = 3.5


def piecewise_linear(
    x: Tensor, params: Tensor, bound: float, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Apply an elementwise increasing piecewise linear map on ``[-bound, bound]``.

    Outside the box the map is the identity, continuous in value. All-zero parameters give the
    identity everywhere. At a knot the slope is that of the bin on its right.

    Args:
        x: values, shape ``(*, D)``.
        params: shape ``(*, D, 2 * bins)``: logits of the bin widths and of the bin heights.
        bound: half-width of the box, positive.
        inverse: apply the inverse map.

    Returns:
        ``(y, ladj)``, both of the broadcast shape ``(*, D)``; ``ladj`` is log|dy/dx| per element.

    Cost: one softmax over the bins and a gather, the same in both directions.

    Reference: Müller et al., Neural Importance Sampling, 2018, https://arxiv.org/abs/1808.03856

    Example:
        >>> x = torch.linspace(-4.0, 4.0, 5)
        >>> torch.allclose(piecewise_linear(x, torch.zeros(5, 8), bound=3.0)[0], x)
        True
    """
    bins = params.shape[-1] // 2
    inside, safe = in_box(x, bound)
    source, target = (bin_sizes(params[..., i : i + bins], 2 * bound) for i in (0, bins))
    if inverse:
        source, target = target, source
    left, bottom = left_edges(source, -bound), left_edges(target, -bound)
    index = bin_of(safe, left)
    w, x0, h, y0 = (pick(table, index) for table in (source, left, target, bottom))
    t = ((safe - x0) / w).clamp(0, 1)
    return identity_outside(x, inside, y0 + h * t, h.log() - w.log())


def quadratic_spline(
    x: Tensor, params: Tensor, bound: float, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Apply an elementwise increasing piecewise quadratic map on ``[-bound, bound]``.

    Its slope is piecewise linear, and 1 at the ends: outside the box the map is the identity,
    continuous in value and slope. All-zero parameters give the identity everywhere.

    Args:
        x: values, shape ``(*, D)``.
        params: shape ``(*, D, 2 * bins - 1)`` with two bins at least: logits of the bin widths,
            and log-slopes at the inner knots up to a common constant, which follows from the size
            of the box (slopes are softly bounded to 1e-3 ... 1e3).
        bound: half-width of the box, positive.
        inverse: apply the inverse map.

    Returns:
        ``(y, ladj)``, both of the broadcast shape ``(*, D)``; ``ladj`` is log|dy/dx| per element.

    Cost: one softmax over the bins and a gather, the same in both directions.

    Reference: Müller et al., Neural Importance Sampling, 2018, https://arxiv.org/abs/1808.03856

    Example:
        >>> x = torch.linspace(-4.0, 4.0, 5)
        >>> torch.allclose(quadratic_spline(x, torch.zeros(5, 7), bound=3.0)[0], x)
        True
    """
    bins = (params.shape[-1] + 1) // 2
    widths = bin_sizes(params[..., :bins], 2 * bound)
    # Half the bound: dividing by their mean can double the range.
    inner = soft_clamp(params[..., bins:], MAX_LOG_SLOPE / 2).exp()
    # Trapezoids fill the box: the ends' share is known, what is left scales the inner slopes.
    area = (inner * 0.5 * (widths[..., 1:] + widths[..., :-1])).sum(-1, keepdim=True)
    ends = 0.5 * (widths[..., :1] + widths[..., -1:])
    slopes = F.pad(inner * (2 * bound - ends) / area, (1, 1), value=1.0)
    heights = widths * 0.5 * (slopes[..., 1:] + slopes[..., :-1])
    left, bottom = left_edges(widths, -bound), left_edges(heights, -bound)

    inside, safe = in_box(x, bound)
    index = bin_of(safe, bottom if inverse else left)
    w, x0, h, y0 = (pick(table, index) for table in (widths, left, heights, bottom))
    d0, d1 = pick(slopes[..., :-1], index), pick(slopes[..., 1:], index)
    if inverse:
        # The square of the slope is linear in y.
        u = ((safe - y0) / h).clamp(0, 1)
        slope = (d0 * d0 * (1 - u) + d1 * d1 * u).sqrt()
        y, ladj = x0 + w * u * (d0 + d1) / (d0 + slope), -slope.log()
    else:
        t = ((safe - x0) / w).clamp(0, 1)
        slope = d0 * (1 - t) + d1 * t
        y, ladj = y0 + w * t * 0.5 * (d0 + slope), slope.log()
    return identity_outside(x, inside, y, ladj)


def cubic_spline(
    x: Tensor, params: Tensor, bound: float, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Apply an elementwise increasing cubic spline on ``[-bound, bound]``.

    Outside the box the map is the identity, continuous in value and slope. All-zero parameters
    give the identity everywhere. At an inner knot between bins of mean slopes ``s`` and ``s'`` the
    slope is ``1.5 sigmoid(raw + log 2)`` times their harmonic mean, and so below three times the
    smaller one, which makes the cubics increase. The first and the last bin are as high as wide:
    there a cubic can leave the box with slope 1.

    Args:
        x: values, shape ``(*, D)``.
        params: shape ``(*, D, 3 * bins - 3)`` with three bins at least: logits of the bin widths,
            logits of the heights of all but the outer bins, and what sets the inner slopes.
        bound: half-width of the box, positive.
        inverse: apply the inverse map.

    Returns:
        ``(y, ladj)``, both of the broadcast shape ``(*, D)``; ``ladj`` is log|dy/dx| per element.

    Cost: forwards one softmax over the bins and a gather; the inverse adds a root by
    :func:`monotone_inverse`, of one cubic per element.

    Reference: Durkan et al., Cubic-Spline Flows, 2019, https://arxiv.org/abs/1906.02145; the
    region of increasing cubics: Fritsch and Carlson 1980, https://doi.org/10.1137/0717021

    Example:
        >>> x = torch.linspace(-4.0, 4.0, 5)
        >>> torch.allclose(cubic_spline(x, torch.zeros(5, 12), bound=3.0)[0], x, atol=1e-6)
        True
    """
    bins = (params.shape[-1] + 3) // 3
    widths = bin_sizes(params[..., :bins], 2 * bound)
    inner = widths[..., 1:-1].sum(-1, keepdim=True)
    inner = bin_sizes(params[..., bins : 2 * bins - 2], inner)
    heights = torch.cat([widths[..., :1], inner, widths[..., -1:]], -1)
    means = heights / widths
    before, after = means[..., :-1], means[..., 1:]
    share = torch.sigmoid(soft_clamp(params[..., 2 * bins - 2 :], MAX_CUBIC_LOGIT) + math.log(2))
    slopes = F.pad(share * 3 * before * after / (before + after), (1, 1), value=1.0)
    left, bottom = left_edges(widths, -bound), left_edges(heights, -bound)

    inside, safe = in_box(x, bound)
    index = bin_of(safe, bottom if inverse else left)
    w, x0, h, y0 = (pick(table, index) for table in (widths, left, heights, bottom))
    s = h / w
    a, b = pick(slopes[..., :-1], index) / s, pick(slopes[..., 1:], index) / s
    if inverse:
        u = ((safe - y0) / h).clamp(0, 1)
        t, ladj = monotone_inverse(lambda t: _unit_cubic(t, a, b), u)
        y, ladj = x0 + w * t, ladj - s.log()
    else:
        u, ladj = _unit_cubic(((safe - x0) / w).clamp(0, 1), a, b)
        y, ladj = y0 + h * u, ladj + s.log()
    return identity_outside(x, inside, y, ladj)


def _unit_cubic(t: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The cubic through (0, 0) and (1, 1) with slopes ``a`` and ``b`` there; straight beyond.

    In the form of Bernstein, so that no term of the value is negative.
    """
    inner = t.clamp(0, 1)
    rest = 1 - inner
    value = inner * (a * rest * rest + (3 - b) * rest * inner + inner * inner)
    slope = a * rest * rest + 2 * (3 - a - b) * inner * rest + b * inner * inner
    return value + slope * (t - inner), slope.log()
