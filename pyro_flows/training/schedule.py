# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""How long to train, how fast, and when it is enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """How long to train, and when it is enough.

    Training runs in cycles, each twice as long as the one before, with a learning rate that warms
    up and decays within the cycle. After each cycle the state is scored on held-out draws.

    Where the data are finite, a cycle may overfit before it ends: ``score_every`` scores inside of
    it (the average, which takes a ``horizon``), and ``patience`` ends it.

    Attributes:
        cycles: steps of each cycle.
        learning_rate: peak of the first cycle.
        decay: peak of each further cycle, beside the one before.
        polish: a cycle that gains nothing, or after which little is left to gain, is followed by
            one as short as the first with this share of its peak, at most twice, before training
            goes on or stops; None for no such cycle. What is noise at one rate may be progress at
            a lower one.
        min_gain: stop when a cycle gained less than this, or less than 2 standard errors.
        good_enough: stop when ``Score.excess`` is at most this.
        min_gain_se: the number of standard errors, if not 2.
        score_every: also score inside cycles, every so many steps; None for not at all.
        patience: scores inside a cycle without a new best that end it; None for no end.
        horizon: at a cycle's end the average over its last fifth is scored too; or, with a
            horizon, the running average that reaches so many steps back.
        weight_decay: of matrices, decoupled from the gradient (AdamW).
        max_seconds: stop after so long. The learning rate of the cycle that is cut short decays
            by the clock, so that its end is as calm as another's.

    Example:
        >>> sum(Schedule(cycles=[400, 800]).cycles)
        1200
    """

    cycles: Sequence[int] = (400, 800, 1600)
    learning_rate: float = 3e-2
    decay: float = 1.0
    polish: float | None = None
    min_gain: float = 0.002
    good_enough: float = -math.inf
    min_gain_se: float = 2.0
    score_every: int | None = None
    patience: int | None = None
    horizon: int | None = None
    weight_decay: float = 0.0
    max_seconds: float = math.inf

    def rate(self, step: float, steps: int) -> float:
        """Learning rate at a step of a cycle, as a share of the peak: warm-up, then cosine."""
        warm = min(1.0, (step + 1) / max(1, 0.05 * steps))
        return warm * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))
