# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The rational-quadratic spline with its gradient written out: what training spends its time in.

Three fifths of the operations that autograd makes of it, and a third of those over all bins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyro_flows.ops.bins import MAX_LOG_SLOPE, MIN_BIN
from pyro_flows.ops.derivatives import are_batched, can_hide_gradient

Plain = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def can_be_written_out(x: Tensor, params: Tensor) -> bool:
    """Whether :func:`spline_written_out` takes these: alike, and under no transform."""
    alike = x.shape == params.shape[:-1] and x.dtype == params.dtype
    return alike and can_hide_gradient()


def spline_written_out(
    x: Tensor, params: Tensor, bound: float, *, inverse: bool, periodic: bool, plain: Plain
) -> tuple[Tensor, Tensor]:
    """The spline; outside its box the identity, unless it is periodic.

    Args:
        x: values, shape ``(*)``.
        params: shape ``(*, 3 * bins - 1)``, or ``(*, 3 * bins)`` if periodic.
        bound: half-width of the box.
        inverse: apply the inverse map.
        periodic: the box is the circle: nothing lies outside, and the ends have one slope.
        plain: the same map made of plain operations, of which second derivatives are taken.
    """
    y, ladj = _Spline.apply(x, params, bound, inverse, periodic, plain)
    return y, ladj


class _Spline(torch.autograd.Function):
    """:func:`spline_written_out`; it broadcasts nothing."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        params: Tensor,
        bound: float,
        inverse: bool,  # noqa: FBT001 (apply takes no keywords)
        periodic: bool,  # noqa: FBT001
        plain: Plain,
    ) -> tuple[Tensor, Tensor]:
        bins = params.shape[-1] // 3 if periodic else (params.shape[-1] + 1) // 3
        least, free = 2 * bound * MIN_BIN, 2 * bound * (1 - MIN_BIN * bins)
        # Bins first in memory, so that each operation runs over long rows.
        rows = params.movedim(-1, 0).contiguous()
        shares = rows[: 2 * bins].unflatten(0, (2, bins)).softmax(1)
        none = shares.new_zeros(2, 1, *x.shape)
        sums = torch.cat([none, shares[:, :-1].cumsum(1)], 1)  # of the shares to the left
        outside = None if periodic else ~(x.abs() < bound)
        at = x if outside is None else x.masked_fill(outside, 0.0)

        steps = torch.arange(1, bins, dtype=x.dtype, device=x.device).mul_(least).sub_(bound)
        edges = torch.add(steps.view(-1, *[1] * x.dim()), sums[int(inverse), 1:], alpha=free)
        index = (at >= edges).sum(0)
        both = index.expand(2, 1, *x.shape)
        share, before = shares.gather(1, both)[:, 0], sums.gather(1, both)[:, 0]
        w, h = sizes = (share * free).add_(least)
        x0, y0 = torch.add(index.to(x.dtype).mul_(least).sub_(bound), before, alpha=free)
        inner = rows[2 * bins :]
        end = inner[:1] if periodic else inner.new_zeros(1, *x.shape)
        knots = torch.cat([inner, end] if periodic else [end, inner, end])
        ends = torch.stack([index, index + 1])
        bent = knots.gather(0, ends).div_(MAX_LOG_SLOPE).tanh_()
        d0, d1 = slopes = (bent * MAX_LOG_SLOPE).exp_()

        s = h / w
        if inverse:
            t, rest = solved_in_bin(((at - y0) / h).clamp_(0, 1), s, d0, d1)
        else:
            t = ((at - x0) / w).clamp_(0, 1)
            rest = 1 - t
        # The slope is (s / low)^2 high, and y is y0 + h t down / low.
        curvature = (d0 + d1).sub_(s, alpha=2)
        low = torch.addcmul(s, curvature, t * rest)
        up, down = (d1 * t).addcmul_(s, rest), (d0 * rest).addcmul_(s, t)
        ratio = s / low
        slope = (up * t).addcmul_(down, rest).mul_(ratio).mul_(ratio)
        y = torch.addcmul(x0, t, w) if inverse else y0.addcmul(h * t, down / low)
        ladj = slope.log()
        if inverse:
            ladj = ladj.neg_()
        if outside is not None:
            y, ladj = torch.where(outside, x, y), ladj.masked_fill_(outside, 0.0)
        ctx.free, ctx.inverse, ctx.periodic, ctx.plain = free, inverse, periodic, plain
        ctx.save_for_backward(
            *(x, params, shares, share, before, ends, sizes, bent, slopes),
            *(s, t, rest, curvature, low, up, down, slope),
            *([] if outside is None else [outside]),
        )
        return y, ladj

    @staticmethod
    def backward(ctx: Any, *ahead: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() or are_batched(ahead):
            return *_differentiable(ctx, ahead), None, None, None, None
        return *_gradients(ctx, *ahead), None, None, None, None


def solved_in_bin(u: Tensor, s: Tensor, d0: Tensor, d1: Tensor) -> tuple[Tensor, Tensor]:
    """The place in its bin of what is mapped to ``u``, and the rest, both in ``[0, 1]``."""
    # Durkan's quadratic in the form t = 2su / (2su + r), 1 - t = r / (2su + r): its
    # discriminant is a sum of squares, and nothing cancels in r either.
    tilt = d0 * (1 - u) - d1 * u
    cross = 4 * u * (1 - u) * s * s
    size = tilt.abs() + torch.sqrt(tilt * tilt + cross)
    r = torch.where(tilt > 0, size, cross / size)
    t = 2 * s * u
    total = t + r
    return t / total, r / total


def _differentiable(ctx: Any, ahead: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The gradient of the plain operations, which can be differentiated again, or batched."""
    # Views, since the parameters may have been made of the values: each is to be one input.
    again, needed = torch.is_grad_enabled(), ctx.needs_input_grad[:2]
    with torch.enable_grad():
        given = [tensor.view_as(tensor) for tensor in ctx.saved_tensors[:2]]
        results = ctx.plain(*given)
    wanted = [tensor for tensor, need in zip(given, needed, strict=True) if need]
    found = iter(torch.autograd.grad(results, wanted, ahead, create_graph=again))
    return tuple(next(found) if need else None for need in needed)


def _gradients(ctx: Any, by_y: Tensor, by_ladj: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """By the input and the parameters."""
    _, _, shares, share, before, ends, (w, h), bent, slopes, *rest_saved = ctx.saved_tensors
    s, t, rest, curvature, low, up, down, slope, *outside = rest_saved
    beyond = by_y
    if outside:
        by_y, by_ladj = (g.masked_fill(outside[0], 0.0) for g in (by_y, by_ladj))
    doubled, across = by_ladj + by_ladj, t * rest
    per_high = (s / low).square_().div_(slope)  # 1 / high
    bend = ((up - down) * per_high).sub_(curvature * (rest - t) / low).div_(w)  # half of it
    if ctx.inverse:
        # The result keeps y: its derivatives are those of the map, divided by the slope.
        by_place = by_y
        by_x = by_y.addcmul(doubled, bend, value=-1).div_(slope)
        by_y, by_ladj, doubled = -by_x, -by_ladj, -doubled
    else:
        by_x = (by_y * slope).addcmul_(doubled, bend)
        by_place = -by_x
    if outside:
        by_x = torch.where(outside[0], beyond, by_x)
    if not ctx.needs_input_grad[1]:
        return by_x, None

    scale = (by_y * h * across).div_(low).div_(low)
    lower, higher = doubled * across / low, by_ladj * per_high
    right, left = t * t, rest * rest
    by_slopes = torch.stack(
        [
            (scale * up).mul_(rest).addcmul_(higher, left).sub_(lower),
            (scale * down).mul_(t).neg_().addcmul_(higher, right).sub_(lower),
        ]
    )
    by_s = (slopes[1] * right).sub_(slopes[0] * left).mul_(scale)
    inverses = s.reciprocal().sub_((left + right) / low).addcmul_(per_high, across)
    by_s = by_s.addcmul_(doubled, inverses).div_(w)
    by_size = torch.stack(
        [(by_place * t).addcmul_(by_s, s, value=-1), (by_y * t * down).div_(low).add_(by_s)]
    )
    by_low = torch.stack([by_place, by_y])
    by_knots = (1 - bent * bent).mul_(by_slopes).mul_(slopes)
    return by_x, _by_params(ctx, by_size, by_low, by_knots, shares, share, before, ends)


def _by_params(
    ctx: Any,
    by_size: Tensor,
    by_low: Tensor,
    by_knots: Tensor,
    shares: Tensor,
    share: Tensor,
    before: Tensor,
    ends: Tensor,
) -> Tensor:
    """What comes of the size and the left end of the bin, and of the log-slopes at its ends."""
    bins, index = shares.shape[1], ends[0]
    # The gradient of a softmax, of which one share and the sum of those before it were used.
    mean = (by_size * share).addcmul_(by_low, before).mul_(-ctx.free)
    place = torch.arange(bins, device=index.device).view(-1, *[1] * index.dim())
    passed = (place < index).to(mean.dtype)
    by_share = torch.addcmul(mean[:, None], passed, by_low[:, None], value=ctx.free)
    chosen = torch.add(mean, by_size, alpha=ctx.free)
    by_share.scatter_(1, index.expand(2, 1, *index.shape), chosen[:, None])
    by_share = by_share.mul_(shares).flatten(0, 1)
    knots = shares.new_zeros(bins + 1, *index.shape).scatter_(0, ends, by_knots)
    if ctx.periodic:
        rows = torch.cat([by_share, knots[:1] + knots[-1:], knots[1:-1]])
    else:
        rows = torch.cat([by_share, knots[1:-1]])
    return rows.movedim(0, -1)
