# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""States judged on held-out draws or rows, and what happened in training."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

# Of states that are as good inside the support, the one that draws more often there is better: the
# log of that share counts for so much more. Enough that a tail which reaches into the support is
# left, and little beside what is lost by leaving it.
INSIDE = 0.1
# As good are states that differ by no more than this, nats, or than noise.
AS_GOOD = 1e-3


@dataclass(frozen=True)
class Score:
    """A state on held-out draws; the draws are the same for every state.

    Attributes:
        values: the objective per draw, higher is better, shape ``(S,)``.
        excess: an upper estimate of how far from perfect the state is, in the objective's unit;
            inf if there is none.

    Example:
        >>> Score(torch.tensor([1.0, 2.0])).mean
        1.5
    """

    values: Tensor
    excess: float = math.inf

    @property
    def finite(self) -> Tensor:
        """Which draws count: one outside the support has no value, but doesn't hide the rest."""
        return torch.isfinite(self.values)

    @property
    def mean(self) -> float:
        """Mean over finite draws plus the log of their share; -inf if there are none."""
        finite = self.finite
        if not bool(finite.any()):
            return -math.inf
        return float(self.values[finite].mean() + finite.double().mean().log())

    @property
    def se(self) -> float:
        """Standard error of the mean; inf below two finite draws."""
        inside = self.values[self.finite]
        return float(inside.std()) / math.sqrt(len(inside)) if len(inside) > 1 else math.inf

    def gain_over(self, other: Score) -> tuple[float, float]:
        """How much better the mean is than another state's, and the paired standard error.

        Of states that are as good, the one with more draws inside the support gains by that.
        """
        both = self.finite & other.finite
        if int(both.sum()) < 2:
            gain = self.mean - other.mean
            return (0.0 if math.isnan(gain) else gain), 0.0
        difference = (self.values - other.values)[both]
        shares = self.finite.double().mean().log() - other.finite.double().mean().log()
        se = float(difference.std()) / math.sqrt(len(difference))
        gain = float(difference.mean() + shares)
        as_good = abs(gain) <= max(2 * se, AS_GOOD)
        return (gain + INSIDE * float(shares) if as_good else gain), se


@dataclass
class Report:
    """What happened in training.

    Attributes:
        steps: optimiser steps made.
        stop_reason: why it ended, a sentence.
        interrupted: whether the user stopped it.
        gaining: whether it was still gaining when its steps were used up.
        rollbacks: times it went back to the best state after diverging.
        non_finite: particles masked out of gradients.
        compiled: whether steps were compiled, and why not, in words.
        settings: by name, what was asked for that isn't the default.
        history: arrays "step", "elbo" (objective in training), "heldout_step", "heldout_elbo",
            "heldout_se".

    Example:
        >>> Report(steps=3, stop_reason="the budget of 3 steps was used up").rollbacks
        0
    """

    steps: int = 0
    stop_reason: str = ""
    interrupted: bool = False
    gaining: bool = False
    rollbacks: int = 0
    non_finite: int = 0
    compiled: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    history: dict[str, np.ndarray] = field(default_factory=dict)
