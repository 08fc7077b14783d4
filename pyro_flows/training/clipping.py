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
        finite = torch.isfinite(norm)
        usable = torch.where(finite, norm, torch.zeros_like(norm))
        if self.size is None:
            self.size = usable
        # A first gradient of zero (all particles masked) says nothing of the size.
        self.size = torch.where(self.size > 0, self.size, usable)
        # The size follows slowly, and one outlier moves it by a factor at most.
        limited = torch.minimum(usable, 4 * self.size.clamp_min(1e-30))
        self.size = torch.where(finite, self.size.lerp(limited, 0.05), self.size)
        factor = (2 * self.size / norm.clamp_min(1e-30)).clamp(max=1.0)
        for grad in grads:
            grad.copy_(torch.where(finite, grad * factor, torch.zeros_like(grad)))
