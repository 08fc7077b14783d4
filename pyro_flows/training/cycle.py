# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A cycle of steps under way: all that has to be known to take the next one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pyro_flows.training.averaging import Average
from pyro_flows.training.score import Score
from pyro_flows.training.steps import Step, StepByStep


@dataclass
class Cycle:
    """Where a cycle is.

    Attributes:
        number: which one of the schedule.
        steps: its length.
        before: the best score when it began.
        done: steps of the run when it began.
        started: when it began, by the clock.
        take: takes a step.
        average: of its states.
        step: steps taken of it.
        best_window: the highest objective so far, over a few steps together.
        waited: scores inside it since the last new best.
    """

    number: int
    steps: int
    before: Score
    done: int
    started: float
    take: Step
    average: Average
    step: int = 0
    best_window: float = -math.inf
    waited: int = 0

    def state(self, now: float) -> dict[str, Any]:
        """All of it in plain containers; of the clock, the seconds it took."""
        return {
            **{name: getattr(self, name) for name in PLAIN},
            "before": vars(self.before),
            "seconds": now - self.started,
            "whole": not isinstance(self.take, StepByStep),
            "take": self.take.state(),
            "average": self.average.state(),
        }

    @classmethod
    def of(cls, state: dict[str, Any], take: Step, average: Average, now: float) -> Cycle:
        """What :meth:`state` gave, with steps and an average made for it; they go on, too."""
        take.set_state(state["take"])
        average.set_state(state["average"])
        plain = {name: state[name] for name in PLAIN}
        before, started = Score(**state["before"]), now - state["seconds"]
        return cls(**plain, before=before, started=started, take=take, average=average)


PLAIN = ("number", "steps", "done", "step", "best_window", "waited")
