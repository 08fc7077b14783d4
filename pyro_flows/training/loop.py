# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The one training loop: cycles of steps, the best state kept, a stop that can be explained.

It knows parameters, a function that leaves gradients on them, and a function that scores the
state on held-out draws. What is trained, it doesn't know.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from pyro_flows.training.averaging import Average
from pyro_flows.training.flat import Flat
from pyro_flows.training.schedule import Schedule
from pyro_flows.training.score import Report, Score
from pyro_flows.training.steps import Step, step_by_step

# Steps between looks at the running objective: each look waits for the device.
LOOK = 50
# Short cycles at a lower learning rate: so many at most, where nothing is gained or the excess is
# no more than this many times what is good enough.
MOST_POLISHES, NEAR = 2, 3.0

WholeStep = Callable[[int, int, Flat], Step | None]

now = time.monotonic


@dataclass(frozen=True)
class Words:
    """What the numbers are called, in the bar and in the reason of a stop."""

    objective: str = "ELBO"
    heldout: str = "held-out draws"


def train(
    parameters: Sequence[Tensor],
    gradient: Callable[[int], tuple[Tensor, Tensor]],
    score: Callable[[], Score],
    schedule: Schedule,
    *,
    buffers: Sequence[Tensor] = (),
    whole_step: WholeStep | None = None,
    progress: bool = True,
    describe: str = "Train",
    words: Words = Words(),
) -> Report:
    """Train ``parameters`` in place and leave the best held-out state in them.

    Args:
        parameters: leaf tensors.
        gradient: given the number of the cycle, leaves ``.grad`` on the parameters and returns
            ``(objective, count)``: a scalar tensor, higher is better, and how many non-finite
            terms were masked, both on the device.
        score: the state on held-out draws.
        schedule: cycles and stops.
        buffers: tensors that belong to the state but are not trained, such as running means.
        whole_step: given the number of a cycle, its steps and the parameters, how to take all of
            a step at once, optimiser included, in place of ``gradient``; None where it can't.
        progress: show a bar on standard error.
        describe: the bar's label.
        words: what objective and held-out values are called.

    Returns:
        What happened. Ctrl-C ends training early; the best state is kept.
    """
    loop = _Loop(list(parameters), list(buffers), gradient, whole_step, score, schedule, words)
    with tqdm(total=sum(schedule.cycles), disable=not progress, desc=describe) as bar:
        try:
            loop.run(bar)
        except KeyboardInterrupt:
            loop.report.interrupted = True
            loop.report.stop_reason = "interrupted by the user; the best state so far was kept"
    return loop.finish()


class _Loop:
    def __init__(
        self,
        parameters: list[Tensor],
        buffers: list[Tensor],
        gradient: Callable[[int], tuple[Tensor, Tensor]],
        whole_step: WholeStep | None,
        score: Callable[[], Score],
        schedule: Schedule,
        words: Words,
    ) -> None:
        self.parameters, self.gradient, self.score = parameters, gradient, score
        self.whole_step = whole_step
        # Biases and scales say where things are: weights alone are made smaller.
        weights = (lambda p: p.dim() > 1) if schedule.weight_decay else (lambda _: False)
        self.flat = Flat(parameters, weights)
        self.tensors = self.flat.vectors + buffers
        self._forget_gradients()
        self.schedule, self.report, self.words = schedule, Report(), words
        self.deadline = now() + schedule.max_seconds
        self.best_state = self._state()
        self.best = score()
        self.objective: list[Tensor] = []
        self.masked: list[Tensor] = []
        self.heldout: list[tuple[int, float, float]] = [(0, self.best.mean, self.best.se)]

    def run(self, bar: Any) -> None:
        schedule, peak, left = self.schedule, self.schedule.learning_rate, MOST_POLISHES
        if self.best.excess <= schedule.good_enough:
            self.report.stop_reason = "the start is as good as is asked for"
            return
        cycles, budget = list(enumerate(schedule.cycles)), sum(schedule.cycles)
        while cycles and self.report.steps < budget:
            cycle, steps = cycles.pop(0)
            steps = min(steps, budget - self.report.steps)
            before, done = self.best, self.report.steps
            diverged = self._cycle(cycle, steps, peak, bar)
            self.report.gaining = False
            if now() >= self.deadline:
                self.report.stop_reason = "the time limit was reached"
                return
            if diverged:
                self.report.rollbacks += 1
                peak *= 0.3
                if self.report.rollbacks > 3:
                    self.report.stop_reason = (
                        "training diverged four times; the best state was kept"
                    )
                    return
                if not cycles:  # the only one left: once more, with what is left
                    cycles.append((cycle, budget - self.report.steps))
                continue
            peak *= schedule.decay
            if self.best.excess <= schedule.good_enough:
                self.report.stop_reason = "the gap to the log evidence is as small as is asked for"
                return
            gain, se = self.best.gain_over(before)
            idle = gain < max(schedule.min_gain, schedule.min_gain_se * se)
            self.report.gaining = not idle
            near = self.best.excess <= NEAR * schedule.good_enough
            if (idle or near) and schedule.polish is not None and left:
                left -= 1
                peak *= schedule.polish
                cycles.insert(0, (cycle, min(schedule.cycles[0], steps)))
                continue
            if idle and cycle > 0:
                self.report.stop_reason = (
                    f"the last {self.report.steps - done} steps gained {gain:.2g} nats on "
                    f"{self.words.heldout}"
                )
                return
        self.report.stop_reason = f"the budget of {self.report.steps} steps was used up"

    def _cycle(self, cycle: int, steps: int, peak: float, bar: Any) -> bool:
        """One cycle from the best state; True if it diverged and was given up."""
        self._restore(self.best_state)
        schedule, started = self.schedule, now()
        take = self._steps(cycle, steps)
        average = Average(self.tensors, steps, schedule.horizon)
        best_window, waited = -math.inf, 0
        for step in range(steps):
            # Of the time; 0 if it is unlimited. Compiling may have used up more than there was.
            share = min(1.0, (now() - started) / (self.deadline - started))
            rate = peak * schedule.rate(max(step, share * steps), steps)
            objective, masked = take(rate)
            self.objective.append(objective)
            self.masked.append(masked)
            self.report.steps += 1
            average.update(step)
            if (step + 1) % LOOK == 0 or step + 1 == steps:
                window = torch.stack(self.objective[-LOOK:])
                mean, noise = float(window.mean()), float(window.std(correction=0))
                bar.update(min(LOOK, step + 1 - (step // LOOK) * LOOK))
                bar.set_postfix_str(f"{self.words.objective} {mean:.4g}")
                if not math.isfinite(mean) or mean < best_window - 10 - 5 * noise:
                    return True
                best_window = max(best_window, mean)
            if schedule.score_every and (step + 1) % schedule.score_every == 0:
                waited = 0 if self._average_is_better(average) else waited + 1
            if waited == schedule.patience or now() >= self.deadline:
                break
        self._keep_if_better()
        self._restore(average.state)
        self._keep_if_better()
        return False

    def _steps(self, cycle: int, steps: int) -> Step:
        """How steps are taken in a cycle: the optimiser starts anew."""
        whole = self.whole_step(cycle, steps, self.flat) if self.whole_step is not None else None
        if whole is not None:
            return whole
        return step_by_step(self.flat, lambda: self.gradient(cycle), self.schedule.weight_decay)

    def _average_is_better(self, average: Average) -> bool:
        """Score the average inside a cycle; the cycle goes on from where it was."""
        current = self._state()
        self._restore(average.state)
        better = self._keep_if_better()
        self._restore(current)
        return better

    def _keep_if_better(self) -> bool:
        self.flat.write()
        score = self.score()
        self.heldout.append((self.report.steps, score.mean, score.se))
        better = score.gain_over(self.best)[0] > 0
        if better:
            self.best, self.best_state = score, self._state()
        return better

    def finish(self) -> Report:
        if self.report.interrupted:
            self._keep_if_better()
        # Never worse than the start, beyond chance, on draws that no step was taken on; but for
        # what was given up, a little each time, to draw inside the support.
        self._restore(self.best_state)
        self._forget_gradients()
        objective = (
            torch.stack(self.objective).cpu().double()
            if self.objective
            else torch.zeros(0, device="cpu")
        )
        self.report.non_finite = int(torch.stack(self.masked).sum()) if self.masked else 0
        steps, means, ses = zip(*self.heldout, strict=True)
        self.report.history = {
            "step": np.arange(1, len(objective) + 1),
            "elbo": objective.numpy(),
            "heldout_step": np.array(steps),
            "heldout_elbo": np.array(means),
            "heldout_se": np.array(ses),
        }
        return self.report

    def _forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def _state(self) -> list[Tensor]:
        return [tensor.detach().clone() for tensor in self.tensors]

    def _restore(self, state: list[Tensor]) -> None:
        with torch.no_grad():
            for tensor, value in zip(self.tensors, state, strict=True):
                tensor.copy_(value)
        self.flat.write()
