# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Base distributions of a flow: modules that make a Pyro distribution."""

from __future__ import annotations

from abc import abstractmethod

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_flows.errors import ContextError, ShapeError


class Base(nn.Module):
    """What a flow starts from; its parameters and buffers carry dtype and device.

    Any module that returns a Pyro distribution with event shape ``(dim,)`` can be a flow's base;
    this class gives it sizes and checks.

    Args:
        dim: size of the event.
        context_dim: size of the context that moves the base itself; 0 for a base that ignores the
            flow's context.

    Example:
        >>> class Wide(distributions.Base):
        ...     def forward(self, context=None):
        ...         scale = torch.full((self.dim,), 3.0)
        ...         return dist.Normal(0.0, scale).to_event(1)
        >>> flow = distributions.Flow([transforms.AffineCoupling(2)], Wide(2))
        >>> flow().rsample((5,)).shape
        torch.Size([5, 2])
    """

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__()
        if dim < 1 or context_dim < 0:
            raise ShapeError(
                f"{type(self).__name__} expected dim >= 1 and context_dim >= 0, but got dim={dim} "
                f"and context_dim={context_dim}. Give the size of the last axis of your values."
            )
        self.dim, self.context_dim = dim, context_dim

    @abstractmethod
    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """Make the distribution: event shape ``(dim,)``, the context's batch shape or none."""

    def initialize(self, value: Tensor, context: Tensor | None = None) -> None:
        """Set what is set from data, if anything, given values ``(n, dim)`` of the base space."""

    def own_context(self, context: Tensor | None) -> Tensor | None:
        """The context if this base takes one, checked; None if not."""
        if self.context_dim == 0:
            return None
        if context is None or context.dim() == 0 or context.shape[-1] != self.context_dim:
            got = "none" if context is None else str(tuple(context.shape))
            raise ContextError(
                f"{type(self).__name__} expected a context of shape (..., {self.context_dim}), "
                f"but got {got}. The last axis must have size {self.context_dim}."
            )
        return context

    def extra_repr(self) -> str:
        """Sizes in words, for ``print``."""
        context = f", context_dim={self.context_dim}" if self.context_dim else ""
        return f"dim={self.dim}{context}"


class StandardNormal(Base):
    """The standard normal in ``dim`` dimensions; its buffers carry dtype and device.

    ``p(x) = prod_i N(x_i; 0, 1)``. The base of every flow that isn't given another. Draws carry
    gradients. Cost: O(dim).

    Example:
        >>> distributions.StandardNormal(3)().event_shape
        torch.Size([3])
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.register_buffer("loc", torch.zeros(dim))
        self.register_buffer("scale", torch.ones(dim))

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """Return the distribution; the context is not used."""
        return dist.Normal(self.loc, self.scale, validate_args=False).to_event(1)
