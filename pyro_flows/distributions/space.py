# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Whether a base's draws may fall where the layers have no density."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_flows.transforms.base import is_real

# Ends of a box in float16 are as far from its ends in float64.
ROUNDING = 1e-3


def spread(base: dist.TorchDistribution, *, read: bool = False) -> tuple[float, float] | None:
    """Ends between which every coordinate of the draws may fall; None where they aren't known.

    Args:
        base: a distribution.
        read: also ends that are tensors, which waits for their device.

    Of transformed distributions that don't say, the support isn't known: torch takes that of the
    last transform alone. Von Mises' says all numbers, and its draws are angles.
    """
    while isinstance(base, torch.distributions.Independent):
        base = base.base_dist
    of_transform: Any = torch.distributions.TransformedDistribution.support
    if isinstance(base, torch.distributions.VonMises) or type(base).support is of_transform:
        return None
    try:
        support = base.support
    except NotImplementedError:  # torch's own, of a distribution without one
        return None
    return ends(support, read=read)


def ends(constraint: Any, *, read: bool = False) -> tuple[float, float] | None:
    """Ends of an interval, of numbers or of vectors; infinite where it has none."""
    if is_real(constraint):
        return -math.inf, math.inf
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    low = getattr(constraint, "lower_bound", None)
    high = getattr(constraint, "upper_bound", None)
    tensors = [end for end in (low, high) if isinstance(end, Tensor)]
    if (low is None and high is None) or any(not read or end.is_meta for end in tensors):
        return None
    return (
        -math.inf if low is None else float(low.min() if isinstance(low, Tensor) else low),
        math.inf if high is None else float(high.max() if isinstance(high, Tensor) else high),
    )


def holds(domain: tuple[float, float], inner: tuple[float, float]) -> bool:
    """Whether an interval holds another, but for what rounding adds."""
    slack = [ROUNDING * max(1.0, abs(end)) if math.isfinite(end) else 0.0 for end in domain]
    return domain[0] - slack[0] <= inner[0] and inner[1] <= domain[1] + slack[1]
