# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Monotone rational-quadratic splines with linear tails."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_BIN = 1e-3
MIN_SLOPE = 1e-3
# softplus(SLOPE_SHIFT) + MIN_SLOPE == 1, so that zero parameters mean slope one: the identity.
SLOPE_SHIFT = math.log(math.expm1(1.0 - MIN_SLOPE))


def rational_quadratic_spline(
    x: Tensor, params: Tensor, bound: float, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Apply an elementwise monotone rational-quadratic spline on ``[-bound, bound]``.

    Outside the box the map is the identity with log-slope 0, continuous in value and slope.
    All-zero parameters give the identity everywhere.

    Args:
        x: values, shape ``(*, D)``.
        params: shape ``(*, D, 3 * bins - 1)``: logits of the bin widths, logits of the bin
            heights, and raw slopes at the inner knots.
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
    bins = (params.shape[-1] + 1) // 3
    widths, left = _bins(params[..., :bins], bound)
    heights, bottom = _bins(params[..., bins : 2 * bins], bound)
    slopes = MIN_SLOPE + F.softplus(params[..., 2 * bins :] + SLOPE_SHIFT)
    slopes = F.pad(slopes, (1, 1), value=1.0)

    # Points outside are sent to the middle, so that the branch which `where` discards has
    # finite values and finite gradients.
    inside = (x > -bound) & (x < bound)
    safe = torch.where(inside, x, torch.zeros_like(x))
    knots = bottom if inverse else left
    index = (safe.unsqueeze(-1) >= knots[..., 1:]).sum(-1, keepdim=True)

    def pick(table: Tensor) -> Tensor:
        return table.expand(*index.shape[:-1], table.shape[-1]).gather(-1, index).squeeze(-1)

    w, x0, h, y0 = pick(widths), pick(left), pick(heights), pick(bottom)
    d0, d1 = pick(slopes[..., :-1]), pick(slopes[..., 1:])
    s = h / w
    curvature = d0 + d1 - 2 * s

    if inverse:
        # The root in [0, 1] of a t^2 + b t + c = 0, in the form that does not cancel.
        dy = safe - y0
        a = h * (s - d0) + dy * curvature
        b = h * d0 - dy * curvature
        c = -s * dy
        t = 2 * c / (-b - torch.sqrt((b * b - 4 * a * c).clamp_min(0)))
        t = t.clamp(0, 1)
        y = x0 + t * w
    else:
        t = ((safe - x0) / w).clamp(0, 1)
        y = y0 + h * (s * t * t + d0 * t * (1 - t)) / (s + curvature * t * (1 - t))

    denominator = s + curvature * t * (1 - t)
    numerator = d1 * t * t + 2 * s * t * (1 - t) + d0 * (1 - t) ** 2
    ladj = 2 * (s.log() - denominator.log()) + numerator.log()
    if inverse:
        ladj = -ladj
    return torch.where(inside, y, x), torch.where(inside, ladj, torch.zeros_like(ladj))


def _bins(logits: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Sizes of the bins and their left edges, from unnormalised log sizes."""
    bins = logits.shape[-1]
    sizes = 2 * bound * (MIN_BIN + (1 - MIN_BIN * bins) * logits.softmax(-1))
    edges = F.pad(sizes.cumsum(-1)[..., :-1], (1, 0)) - bound
    return sizes, edges
