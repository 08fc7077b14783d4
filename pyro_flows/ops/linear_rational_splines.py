# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Monotone linear rational splines with linear tails."""

from __future__ import annotations

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
from pyro_flows.ops.stable import soft_clamp

# The middle knot of a bin keeps this share of it on both sides.
MIN_SHARE = 0.025


def linear_rational_spline(
    x: Tensor, params: Tensor, bound: float, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Apply an elementwise monotone linear rational spline on ``[-bound, bound]``.

    Each bin holds two pieces ``(p + q x) / (r + s x)`` that meet at a middle knot with one slope.
    Outside the box the map is the identity, continuous in value and slope. All-zero parameters
    give the identity everywhere.

    Args:
        x: values, shape ``(*, D)``.
        params: shape ``(*, D, 4 * bins - 1)``: logits of the bin widths, logits of the bin
            heights, what places the middle knots, and log-slopes at the inner knots (softly
            bounded to 1e-3 ... 1e3).
        bound: half-width of the box, positive.
        inverse: apply the inverse map.

    Returns:
        ``(y, ladj)``, both of the broadcast shape ``(*, D)``; ``ladj`` is log|dy/dx| per element.

    Cost: one softmax over the bins and a gather, the same in both directions, without a root.

    Reference: Dolatabadi et al., Invertible Generative Modeling using Linear Rational Splines,
    2020, https://arxiv.org/abs/2001.05168

    Example:
        >>> x = torch.linspace(-4.0, 4.0, 5)
        >>> torch.allclose(linear_rational_spline(x, torch.zeros(5, 15), bound=3.0)[0], x)
        True
    """
    bins = (params.shape[-1] + 1) // 4
    widths = bin_sizes(params[..., :bins], 2 * bound)
    heights = bin_sizes(params[..., bins : 2 * bins], 2 * bound)
    shares = MIN_SHARE + (1 - 2 * MIN_SHARE) * params[..., 2 * bins : 3 * bins].sigmoid()
    roots = F.pad(
        (0.5 * soft_clamp(params[..., 3 * bins :], MAX_LOG_SLOPE)).exp(), (1, 1), value=1.0
    )
    left, bottom = left_edges(widths, -bound), left_edges(heights, -bound)

    inside, safe = in_box(x, bound)
    index = bin_of(safe, bottom if inverse else left)
    w, x0, h, y0 = (pick(table, index) for table in (widths, left, heights, bottom))
    share, r0, r1 = pick(shares, index), pick(roots[..., :-1], index), pick(roots[..., 1:], index)
    # Weights of the three knots. Those of the ends are 1 / sqrt(slope), which gives the middle
    # one the same slope on both sides.
    p0, p1 = 1 / r0, 1 / r1
    middle = (share * r0 + (1 - share) * r1) * w / h
    level = share * p1 / ((1 - share) * p0 + share * p1)
    place = ((safe - y0) / h if inverse else (safe - x0) / w).clamp(0, 1)
    upper = place >= (level if inverse else share)
    # The piece from (start, low) of the given length and height, in shares of the bin.
    start, low = (torch.where(upper, v, torch.zeros_like(v)) for v in (share, level))
    length, height = (torch.where(upper, 1 - v, v) for v in (share, level))
    first, last = torch.where(upper, middle, p0), torch.where(upper, p1, middle)
    if inverse:
        u = ((place - low) / height).clamp(0, 1)
        t = first * u / (last * (1 - u) + first * u)
        y = x0 + w * (start + length * t)
    else:
        t = ((place - start) / length).clamp(0, 1)
        y = y0 + h * (low + height * last * t / (first * (1 - t) + last * t))
    size = (h * height).log() - (w * length).log()
    ladj = size + first.log() + last.log() - 2 * (first * (1 - t) + last * t).log()
    return identity_outside(x, inside, y, -ladj if inverse else ladj)
