# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Inverses without a formula: roots of monotone functions, and fixed points."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_flows.ops.derivatives import needs_plain_operations, to_second_order
from pyro_flows.ops.tracing import is_recording

# Evaluations: the most where values may be looked at, and the fixed number elsewhere.
MOST = 200
RECORDED = 28

Monotone = Callable[[Tensor], tuple[Tensor, Tensor]]


def monotone_inverse(function: Monotone, y: Tensor) -> tuple[Tensor, Tensor]:
    """Solve ``f(x) = y`` element by element, for an increasing ``f`` onto the real line.

    Newton's method inside a bracket that starts at the whole line and shrinks with every
    evaluation. Where Newton leaves the bracket or slows down, an open end is looked for in growing
    strides. A closed bracket is closed in on from the near side, since the root may be next to
    ``x`` with rounding in the way, and soon halved, on a logarithmic scale while it spans decades.
    So it converges for any increasing ``f`` and any ``y`` that is reached, in few evaluations
    where ``f`` is smooth.

    Args:
        function: ``x -> (f(x), log f'(x))``, elementwise; ``f`` increasing.
        y: values, any shape; ``f(x)`` must have the same one.

    Returns:
        ``(x, ladj)`` of the shape of ``y``: the root, and ``-log f'(x)``, the inverse's
        log-derivative. Gradients by ``y`` and by all that ``function`` closes over are those of
        the implicit function theorem, not of the iterations, and right to second order. NaN stays
        NaN.

    Cost: typically 4 to 10 evaluations without gradient, two with. It stops when all elements have
    converged to the last digits; where operations are recorded (see :func:`is_recording`) it makes
    28 evaluations, always, and three with gradient.

    Reference: Press et al., Numerical Recipes, section 9.4 (``rtsafe``).

    Example:
        >>> def cubic(x):
        ...     return x + x**3, torch.log1p(3 * x * x)
        >>> x, ladj = monotone_inverse(cubic, torch.tensor([0.0, 2.0, -1e6]))
        >>> torch.allclose(cubic(x)[0], torch.tensor([0.0, 2.0, -1e6]))
        True
    """
    with torch.no_grad():
        x = _bracketed_newton(function, y.detach())
    if not (torch.is_grad_enabled() or is_recording()):
        return x, -function(x)[1]
    # (What is recorded is the same with and without gradients, as torch.jit.trace checks.)
    value, log_slope = function(x)
    x = _moved(x, y, value, log_slope.detach())
    value, log_slope = function(x)
    if needs_plain_operations():
        x = _moved(x, y, value, log_slope)
        return x, -function(x)[1]
    results = x, -log_slope
    x, ladj = to_second_order(x, results, y - value, lambda v: v * _inverse_slope(log_slope))
    return x, ladj


def _moved(x: Tensor, y: Tensor, value: Tensor, log_slope: Tensor) -> Tensor:
    """A root, with the gradient of a step of Newton's method from it.

    The value stays ``x`` to the last digit; what is added is 0, and carries the gradient alone.
    From a constant ``x`` the gradient is right to first order, from such an ``x`` to third.
    """
    correction = (y - y.detach()) - (value - value.detach())
    return x + correction * _inverse_slope(log_slope)


def _inverse_slope(log_slope: Tensor) -> Tensor:
    # (0 times infinity would be NaN.)
    most = math.log(0.9 * torch.finfo(log_slope.dtype).max)
    return (-log_slope).clamp_max(most).exp()


def _bracketed_newton(function: Monotone, y: Tensor) -> Tensor:
    eps, inf = torch.finfo(y.dtype).eps, torch.full_like(y, torch.inf)
    x, low, high, stride = y, -inf, inf, torch.ones_like(y)
    # The first step of Newton's method too may lead too far to come back, from where f is flat.
    last_step = 1e4 * (1 + y.abs())
    # About as close as rounding in f can tell: the next step may well not be shorter.
    rounding = 64 * eps * y.abs().clamp_min(1)
    recording = is_recording()
    for _ in range(RECORDED if recording else MOST):
        value, log_slope = function(x)
        excess = value - y
        low, high = torch.where(excess <= 0, x, low), torch.where(excess >= 0, x, high)
        step = excess * (-log_slope).exp()
        newton, distance, close = x - step, step.abs(), excess.abs() <= rounding
        # Comparisons with NaN are false: a step that is not a number is not taken.
        good = (newton > low) & (newton < high) & (close | (distance < 0.5 * last_step))
        middle, gallop = _middle(low, high), x - excess.sign() * stride
        reach = 8 * stride * step
        near = torch.where(reach.abs() < (middle - x).abs(), x - reach, middle)
        other = torch.where(torch.where(excess < 0, high, low).isinf(), gallop, near)
        new = torch.where(good, newton, other)
        stride = torch.where(good, stride, 8 * stride)
        last_step = (new - x).abs()
        # No number is left between the brackets, or the next one is where x already was.
        settled = close | (last_step <= 2 * eps * x.abs()) | (low >= high)
        x = torch.where((excess == 0) | (settled & ~good), x, new)
        if not recording and bool((settled | ~y.isfinite()).all()):
            break
    return torch.where(y.isfinite(), x, y)


def _middle(low: Tensor, high: Tensor) -> Tensor:
    """Half-way: arithmetic in a narrow bracket, on the scale of asinh in one of many decades."""
    plain = 0.5 * low + 0.5 * high
    wide = torch.sinh(0.5 * torch.asinh(low) + 0.5 * torch.asinh(high))
    return torch.where(high - low > 1 + torch.minimum(low.abs(), high.abs()), wide, plain)


def fixed_point(
    step: Callable[[Tensor], Tensor], start: Tensor, most: int, tolerance: float | None = None
) -> Tensor:
    """Iterate ``x <- step(x)`` until no element moves, at most ``most`` times.

    Args:
        step: the map; of the shape of ``start``.
        start: where to begin, any shape.
        most: the bound; where operations are recorded (see :func:`is_recording`) all are made.
        tolerance: an element has settled if it moved by no more than this times ``max(1, |x|)``;
            4 eps of the dtype by default.

    Returns:
        The last iterate. Gradients run through the iterations that were made.

    Cost: one evaluation a pass, and one look at the result, which waits for the device.

    Example:
        >>> fixed_point(torch.cos, torch.tensor(0.5), most=200)
        tensor(0.7391)
    """
    tolerance = 4 * torch.finfo(start.dtype).eps if tolerance is None else tolerance
    recording, x = is_recording(), start
    for _ in range(most):
        new = step(x)
        if not recording:
            moved = (new - x).detach().abs() > tolerance * new.detach().abs().clamp_min(1)
            if not bool(moved.any()):
                return new
        x = new
    return x
