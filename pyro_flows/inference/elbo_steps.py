# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""FlowVI's step as one compiled function, from draws to path gradient to Adam."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import cast

import torch
from torch import Tensor, nn

from pyro_flows.distributions import Flow, FlowDistribution, StandardNormal
from pyro_flows.inference.objectives import Objective, mirrored_noise
from pyro_flows.training.whole_step import Compile, Parts, WholeSteps


class ElboSteps(WholeSteps):
    """Whole steps up the ELBO.

    Args:
        objective: FlowVI's.
        compile: as of :class:`~pyro_flows.training.whole_step.WholeSteps`.
        particles: draws per step, by the number of the cycle.
    """

    small = 1000  # a quarter quicker with 128 draws, as quick with 512

    def __init__(
        self, objective: Objective, compile: Compile, particles: Callable[[int], int]
    ) -> None:
        super().__init__(compile)
        self.objective, self.particles = objective, particles

    def size(self, cycle: int) -> int:
        """Draws."""
        return self.particles(cycle)

    def obstacle(self) -> str | None:
        """What FlowVI may meet: other guides and bases, models that can't be recorded."""
        objective = self.objective
        if objective._inner is None:
            return "the guide is no AutoFlow"
        if not isinstance(objective._inner.base, StandardNormal):
            return "its base is no standard normal, as of a mixture of flows"
        if objective.log_joint.mode != "captured":
            return f"the log joint could not be recorded ({objective.log_joint.why})"
        if objective.log_joint.stochastic:
            return "the model draws random numbers of its own"
        if objective.edges:
            return "draws fall outside the support"
        return None

    def module(self) -> nn.Module:
        """The path gradient."""
        return _Path(self.objective)

    def inputs(self, size: int) -> tuple[Tensor, ...]:
        """Noise, and the count of gradients goes on."""
        self.objective.gradients += size
        return self.example(size)

    def example(self, size: int) -> tuple[Tensor, ...]:
        """Noise."""
        with torch.no_grad():
            return (mirrored_noise(self._base, size),)

    @cached_property
    def _base(self) -> FlowDistribution:
        return cast("Flow", self.objective._inner).base(None)


class _Path(nn.Module):
    """The objective's path gradient as a module, so that parameters can be given to it."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.flow = objective._inner
        self.objective = (objective,)  # not a part

    def forward(self, drawn: Tensor) -> Parts:
        flow = cast("Flow", self.flow)
        distribution: FlowDistribution = flow()
        weight = drawn.new_full((len(drawn),), 1.0 / len(drawn))
        return self.objective[0].path(distribution, drawn, weight)
