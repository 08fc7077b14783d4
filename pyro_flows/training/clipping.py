# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Gradients kept to a size that the run itself has shown to be usual."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Clip:
    """Clip the gradient's norm at twice its running size; drop non-finite gradients.

    A fixed bound would mean another thing in every model. Nothing here waits for the device.
    """

    def __init__(self) -> None:
        self.size: Tensor | None = None

    def __call__(self, grads: Sequence[Tensor]) -> None:
        """Clip gradients in place."""
        norm = torch.nn.utils.get_total_norm(grads)
        size = torch.zeros_like(norm) if self.size is None else self.size
        factor, self.size = limit(norm, size)
        for grad in grads:
            grad.copy_(torch.where(torch.isfinite(norm), grad * factor, torch.zeros_like(grad)))


def limit(norm: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """What a gradient of this norm is to be multiplied by, and the running size after it.

    Args:
        norm: scalar; one that isn't finite leaves the size as it is.
        size: scalar; 0 at the start.
    """
    finite = torch.isfinite(norm)
    usable = torch.where(finite, norm, torch.zeros_like(norm))
    # A first gradient of zero (all particles masked) says nothing of the size.
    size = torch.where(size > 0, size, usable)
    # The size follows slowly, and one outlier moves it by a factor at most.
    limited = torch.minimum(usable, 4 * size.clamp_min(1e-30))
    size = torch.where(finite, size.lerp(limited, 0.05), size)
    return (2 * size / norm.clamp_min(1e-30)).clamp(max=1.0), size
