# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Base distributions of a flow, as modules that make a Pyro distribution."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn


class StandardNormal(nn.Module):
    """The standard normal in ``dim`` dimensions; its buffers carry dtype and device.

    Example:
        >>> distributions.StandardNormal(3)().event_shape
        torch.Size([3])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """Return the distribution; the context is not used."""
        return dist.Normal(self.loc, self.scale, validate_args=False).to_event(1)
