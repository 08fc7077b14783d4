# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The average of a run's parameters: step-size noise goes, the optimum stays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


class Average:
    """The mean over the last fifth of a cycle, or a running one.

    Args:
        tensors: what changes from step to step; it is read, never written.
        steps: steps of the cycle.
        horizon: steps a running average reaches back: it forgets exponentially, and starts as a
            plain mean. None for the plain mean over the last fifth.

    Attributes:
        mean: the average; the first state, as long as there is none.
    """

    def __init__(self, tensors: Sequence[Tensor], steps: int, horizon: int | None = None) -> None:
        self.tensors = tensors
        self.mean = [tensor.detach().clone() for tensor in tensors]
        self.first = 0 if horizon else steps - max(1, steps // 5)
        self.horizon, self.count = horizon, 0

    def update(self, step: int) -> None:
        """Take in the tensors as they are after ``step``."""
        if step < self.first:
            return
        self.count += 1
        weight = 1.0 / (min(self.count, self.horizon) if self.horizon else self.count)
        for mean, tensor in zip(self.mean, self.tensors, strict=True):
            if mean.is_floating_point():
                mean.lerp_(tensor.detach(), weight)
            else:
                mean.copy_(tensor)

    def state(self) -> dict[str, Any]:
        """The average, and how many states are in it."""
        return {"mean": self.mean, "count": self.count}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        self.mean, self.count = state["mean"], state["count"]
