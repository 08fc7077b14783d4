# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Maps of bounded spaces: what lies outside has no density, and does no harm."""

from __future__ import annotations

import torch
from torch import Tensor


def confine(x: Tensor, inside: Tensor, middle: float) -> Tensor:
    """``x`` with all that isn't inside sent to ``middle``, so that arithmetic on it is safe."""
    return torch.where(inside, x, torch.full_like(x, middle))


def impossible_outside(
    x: Tensor, inside: Tensor, y: Tensor, ladj: Tensor
) -> tuple[Tensor, Tensor]:
    """Give values outside a log-derivative of minus infinity, and NaN where ``x`` is NaN.

    Args:
        x: the values that were asked about.
        inside: bool, where they lie in the space.
        y: the map's values at ``confine(x, inside, ...)``; kept, since they are finite.
        ladj: its log-derivatives there.
    """
    outside = torch.full_like(ladj, -torch.inf)
    nan = x.isnan()
    return torch.where(nan, x, y), torch.where(nan, x, torch.where(inside, ladj, outside))
