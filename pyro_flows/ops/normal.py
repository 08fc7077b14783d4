# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The normal distribution function on the scale of logarithms, right far into the tails."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_flows.ops.derivatives import needs_plain_operations

HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
NEWTON_STEPS = 2
# Where the start of Newton's method changes from the direct quantile to the asymptotic one.
FAR = -50.0


def log_normal_cdf(z: Tensor) -> tuple[Tensor, Tensor]:
    """``log Phi(z)`` of the standard normal and its log-slope, to full precision at any ``z``.

    The slope is ``phi / Phi``. Far on the left its logarithm is about ``log |z|``, where
    ``log phi`` and ``log Phi`` both are about ``-z^2 / 2``: it isn't taken as their difference.

    Args:
        z: any shape.

    Returns:
        ``(log Phi, log(phi / Phi))`` of the shape of ``z``. (``torch.special.log_ndtr`` is the
        first, but has no rule for ``vmap``.) The second's own gradient is right to ``eps |z|``.

    Example:
        >>> value, log_slope = log_normal_cdf(torch.tensor([0.0, -1e6]))
        >>> torch.allclose(value, torch.tensor([-0.6931, -5e11]), rtol=1e-4)
        True
        >>> torch.allclose(log_slope[1].exp(), torch.tensor(1e6))
        True
    """
    left, right = z.clamp_max(0), z.clamp_min(0)
    log_ratio = (0.5 * torch.special.erfcx(-left / math.sqrt(2))).log()
    log_right = torch.log1p(-0.5 * torch.special.erfc(right / math.sqrt(2)))
    negative = z < 0
    value = torch.where(negative, log_ratio - 0.5 * left * left, log_right)
    rest = torch.where(negative, -log_ratio, -0.5 * right * right - log_right)
    return value, rest - HALF_LOG_TWO_PI


def normal_quantile_of_log(log_p: Tensor) -> Tensor:
    """Solve ``log Phi(z) = log_p``: the normal quantile of a probability given by its logarithm.

    For the lower half: above ``p = 1/2``, as ``p`` nears 1, its logarithm itself has lost the
    digits of ``1 - p``; there give the logarithm of ``1 - p``, and turn the sign of the result.

    Args:
        log_p: any shape, negative; as low as ``-1e30`` and beyond.

    Returns:
        A tensor of the shape of ``log_p``. The gradient is ``Phi / phi``, of any order (where
        operations are recorded, of the first three).

    Cost: one quantile and two steps of Newton's method on ``log Phi``, which is concave.

    Example:
        >>> z = torch.tensor([-0.5, -60.0])
        >>> torch.allclose(normal_quantile_of_log(log_normal_cdf(z)[0]), z)
        True
    """
    with torch.no_grad():
        goal = log_p.detach().clamp_max(-torch.finfo(log_p.dtype).eps)
        near = torch.special.ndtri(goal.clamp_min(FAR).exp())
        size = -2 * goal.clamp_max(FAR)
        z = torch.where(goal < FAR, -(size - (2 * math.pi * size).log()).sqrt(), near)
        for _ in range(NEWTON_STEPS):
            value, log_slope = log_normal_cdf(z)
            z = z - (value - goal) * (-log_slope).exp()
        slope = (-log_normal_cdf(z)[1]).exp()
    if not needs_plain_operations():
        quantile: Tensor = _Quantile.apply(log_p, z, slope)
        return quantile
    # The value stays z; what is added is 0, and carries the gradient: with a constant slope that
    # of first order, and from there that of the third.
    z = z + (log_p - log_p.detach()) * slope
    value, log_slope = log_normal_cdf(z)
    change = (log_p - log_p.detach()) - (value - value.detach())
    return z + change * (-log_slope).exp()


class _Quantile(torch.autograd.Function):
    """The quantile found, whose slope is a function of itself."""

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, z: Tensor, slope: Tensor) -> Tensor:
        z = z.clone()
        ctx.save_for_backward(z, slope)
        return z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        z, slope = ctx.saved_tensors
        if torch.is_grad_enabled():
            slope = (-log_normal_cdf(z)[1]).exp()
        return grad * slope, None, None
