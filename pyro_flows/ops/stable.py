# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Numerically safe versions of small functions."""

from __future__ import annotations

import torch
from torch import Tensor


def soft_clamp(x: Tensor, bound: float) -> Tensor:
    """Squash ``x`` smoothly into ``(-bound, bound)``: ``bound * tanh(x / bound)``.

    The slope at 0 is 1 and the gradient never vanishes to an exact zero before float
    saturation, unlike a hard clamp.

    Args:
        x: any shape.
        bound: the largest absolute value of the result, positive.

    Returns:
        A tensor of the shape of ``x``.

    Example:
        >>> soft_clamp(torch.tensor([0.0, 1e20]), 3.0)
        tensor([0., 3.])
    """
    return bound * torch.tanh(x / bound)
