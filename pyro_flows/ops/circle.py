# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Maps of the circle, as angles in ``[-pi, pi]``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_flows.ops.roots import monotone_inverse

# The poles' largest radius: slopes stay between 1/199 and 199.
MAX_RADIUS = 0.99


def wrap(angle: Tensor) -> Tensor:
    """The same angle in ``[-pi, pi]``, to the last digit where it lies there already.

    Example:
        >>> torch.allclose(wrap(torch.tensor([0.5, 7.0])), torch.tensor([0.5, 7.0 - 2 * torch.pi]))
        True
    """
    turn = 2 * math.pi
    # Of angles beyond many turns by the exact remainder; the product of a large number of turns
    # and the rounded turn would be off by more than a turn.
    far = torch.remainder(angle, turn)
    angle = torch.where(angle.abs() < 8 * turn, angle, far)
    angle = angle - turn * (angle / turn).round()
    # Rounding may leave it beyond the end by one digit.
    return angle - turn * ((angle > math.pi).to(angle) - (angle < -math.pi).to(angle))


def moebius_mixture(
    x: Tensor, poles: Tensor, logits: Tensor, *, inverse: bool = False
) -> tuple[Tensor, Tensor]:
    """Move angles by the weighted mean of Moebius maps of the disc, ``(z - w) / (1 - conj(w) z)``.

    Written on the line as ``x + 2 arg(1 - w exp(-ix))``, an increasing function that gains a full
    turn over a full turn; the mean is taken there. The log-slope of one map is
    ``log(1 - |w|^2) - 2 log|1 - w exp(-ix)|``, largest at the pole's angle.

    Args:
        x: angles, shape ``(*)``.
        poles: raw ``w``, shape ``(*, components, 2)``, any numbers; softly bounded to the disc of
            radius 0.99.
        logits: of the weights, shape ``(*, components)``.
        inverse: apply the inverse map.

    Returns:
        ``(y, ladj)`` of the shape of ``x``; ``y`` on the line, not wrapped.

    Cost: a few trigonometric functions per component. The inverse of one component is the map of
    the opposite pole; of more, a root by :func:`monotone_inverse`.

    Reference: Rezende et al., Normalizing Flows on Tori and Spheres, 2020,
    https://arxiv.org/abs/2002.02428

    Example:
        >>> x, poles, logits = torch.linspace(-3, 3, 5), torch.randn(5, 4, 2), torch.zeros(5, 4)
        >>> y, ladj = moebius_mixture(x, poles, logits)
        >>> torch.allclose(moebius_mixture(y, poles, logits, inverse=True)[0], x, atol=1e-4)
        True
    """
    # Not the sum of squares: that of 1e20 is no float32.
    a, b = poles.unbind(-1)
    size = torch.hypot(torch.hypot(a, torch.ones_like(a)), b)
    w = MAX_RADIUS * poles / size.unsqueeze(-1)
    log_gap = ((1 - MAX_RADIUS**2) + (MAX_RADIUS / size) ** 2).log()  # log(1 - |w|^2)
    if poles.shape[-2] == 1:
        y, ladj = _moebius(x, -w if inverse else w, log_gap)
        return y.squeeze(-1), ladj.squeeze(-1)
    weights = logits.softmax(-1)

    def forward(angle: Tensor) -> tuple[Tensor, Tensor]:
        y, ladj = _moebius(angle, w, log_gap)
        return (weights * y).sum(-1), (weights * ladj.exp()).sum(-1).log()

    return monotone_inverse(forward, x) if inverse else forward(x)


def _moebius(x: Tensor, w: Tensor, log_gap: Tensor) -> tuple[Tensor, Tensor]:
    """All components at ``x``, on the line, and their log-slopes: both ``(*, components)``."""
    cos, sin = x.cos().unsqueeze(-1), x.sin().unsqueeze(-1)
    a, b = w.unbind(-1)
    # 1 - w exp(-ix), whose real part is positive.
    real, imaginary = 1 - a * cos - b * sin, a * sin - b * cos
    y = x.unsqueeze(-1) + 2 * torch.atan2(imaginary, real)
    return y, log_gap - (real * real + imaginary * imaginary).log()
