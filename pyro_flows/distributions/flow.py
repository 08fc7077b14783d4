# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A flow as a Pyro distribution: a base pushed through layers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions import Transform

from pyro_flows.distributions.base import StandardNormal
from pyro_flows.errors import ContextError
from pyro_flows.transforms import Compose, Layer


class Flow(nn.Module):
    """Base distribution and layers; calling it gives a Pyro distribution.

    Args:
        layers: layers from base to data, all of one ``dim``.
        base: a module that makes the base distribution; the standard normal by default.

    Shapes: the distribution has event shape ``(dim,)`` and the batch shape of the context.

    A distribution shares the flow's parameters: make a new one (``flow()``) after they change.

    Example:
        >>> flow = distributions.Flow([transforms.AffineCoupling(3), transforms.CholeskyAffine(3)])
        >>> flow().rsample((7,)).shape, flow.log_prob(torch.zeros(5, 3)).shape
        (torch.Size([7, 3]), torch.Size([5]))
    """

    def __init__(self, layers: Sequence[Layer], base: nn.Module | None = None) -> None:
        super().__init__()
        self.transform = Compose(layers)
        self.base = base if base is not None else StandardNormal(self.transform.dim)

    @property
    def dim(self) -> int:
        """Size of the event."""
        return self.transform.dim

    @property
    def context_dim(self) -> int:
        """Size of the context's last axis, 0 for a plain flow."""
        return self.transform.context_dim

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        """Make the distribution, given a context of shape ``(*, context_dim)`` if it takes one."""
        if self.context_dim and context is None:
            raise ContextError(
                f"This flow expected a context of shape (..., {self.context_dim}), but got none. "
                "Call flow(context)."
            )
        return FlowDistribution(self.base(context), self.transform, context)

    def initialize(self, value: Tensor, context: Tensor | None = None) -> None:
        """Set what layers set from data (ActNorm), given values ``(n, dim)``; once, before training.

        Cost: one pass from data to base without gradients.
        """
        self.transform.initialize(value, context)

    def log_prob(self, value: Tensor, context: Tensor | None = None) -> Tensor:
        """Log density of ``value`` of shape ``(*, dim)``: short for ``flow(context).log_prob``."""
        return self(context).log_prob(value)


class FlowDistribution(dist.TorchDistribution):
    """What ``flow(context)`` returns: a Pyro distribution with one-pass sampling and scoring.

    Pyro calls ``rsample`` and then ``log_prob`` of that very value. This object keeps the last
    (value, log q) pair, so that the second call costs nothing; the pair is used only for the same
    tensor, unchanged in place, under the same gradient mode, and is lost on copying and pickling.
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = True

    def __init__(
        self,
        base: dist.TorchDistribution,
        transform: Compose,
        context: Tensor | None = None,
        batch_shape: torch.Size | None = None,
    ) -> None:
        if batch_shape is None:
            context_batch = () if context is None else context.shape[:-1]
            batch_shape = torch.broadcast_shapes(base.batch_shape, context_batch)
        self.base, self.transform, self.context = base.expand(batch_shape), transform, context
        self._memo: tuple[Tensor, int, bool, Tensor] | None = None
        super().__init__(batch_shape, torch.Size((transform.dim,)), validate_args=False)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Any:
        """The codomain of the last layer."""
        return self.transform.codomain

    @property
    def transforms(self) -> list[Transform]:
        """The layers as one transform in a list, as Pyro's ``TransformedDistribution`` has it."""
        return [self.transform.condition(self.context)]

    def rsample_and_log_prob(
        self, sample_shape: torch.Size | Sequence[int] = torch.Size()
    ) -> tuple[Tensor, Tensor]:
        """Draw and score in one forward pass.

        Returns:
            ``(value, log_prob)`` of shapes ``(*sample_shape, *batch_shape, dim)`` and without
            the last axis; both carry gradients.
        """
        x = self.base.rsample(torch.Size(sample_shape))
        value, ladj = self.transform.forward_and_ladj(x, self.context)
        return value, self.base.log_prob(x) - ladj

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:
        """Draw with gradients, shape ``(*sample_shape, *batch_shape, dim)``."""
        value, log_prob = self.rsample_and_log_prob(sample_shape)
        self._memo = (value, value._version, torch.is_grad_enabled(), log_prob)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density; one inverse pass, or none for the value that was just drawn here."""
        if self._memo is not None:
            kept, version, grad, log_prob = self._memo
            if value is kept and value._version == version and grad == torch.is_grad_enabled():
                return log_prob
        x, ladj = self.transform.inverse_and_ladj(value, self.context)
        return self.base.log_prob(x) + ladj

    def expand(
        self, batch_shape: torch.Size | Sequence[int], _instance: Any = None
    ) -> FlowDistribution:
        """The same flow with a larger batch shape."""
        return FlowDistribution(self.base, self.transform, self.context, torch.Size(batch_shape))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memo": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> FlowDistribution:
        new = copy.copy(self)  # goes through __getstate__, which drops the pair
        new.__dict__ = {key: copy.deepcopy(value, memo) for key, value in new.__dict__.items()}
        return new

    def __repr__(self) -> str:
        shapes = f"batch_shape: {tuple(self.batch_shape)}, event_shape: {tuple(self.event_shape)}"
        return f"FlowDistribution({shapes})"
