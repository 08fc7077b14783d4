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

from pyro_flows.errors import CheckpointError
from pyro_flows.training.averaging import Average
from pyro_flows.training.checkpoint import Keeper
from pyro_flows.training.cycle import Cycle
from pyro_flows.training.flat import Flat
from pyro_flows.training.schedule import Schedule
from pyro_flows.training.score import Report, Score
from pyro_flows.training.steps import Step, StepByStep, WholeStep

# Steps between looks at the running objective: each look waits for the device.
LOOK = 50
# Short cycles at a lower learning rate: so many at most, where nothing is gained or the excess is
# no more than this many times what is good enough.
MOST_POLISHES, NEAR = 2, 3.0
# What is known of a report while training goes on.
REPORTED = ("steps", "stop_reason", "gaining", "rollbacks")
# By how much a held-out mean may differ where a run goes on: it is the same but for rounding.
SAME = 1e-4

now = time.monotonic


@dataclass(frozen=True)
class Words:
    """What the numbers are called, in the bar and in the reason of a stop.

    Example:
        >>> Words(objective="log likelihood").heldout
        'held-out draws'
    """

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
    keeper: Keeper | None = None,
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
        whole_step: takes steps in place of ``gradient``, where it can.
        keeper: keeps a checkpoint; training goes on from it if there is one, and ends in the same
            state, bit for bit, as without the interrupt.
        progress: show a bar on standard error.
        describe: the bar's label.
        words: what objective and held-out values are called.

    Returns:
        What happened. Ctrl-C ends training early; the best state is kept.

    Example:
        >>> x = torch.nn.Parameter(torch.tensor(3.0))
        >>> def gradient(cycle):
        ...     x.grad = 2 * x.detach()
        ...     return -(x.detach() ** 2), torch.tensor(0)
        >>> def score():
        ...     return Score((-(x.detach() ** 2)).expand(100))
        >>> report = train([x], gradient, score, Schedule(cycles=[300]), progress=False)
        >>> report.steps, abs(x.detach().item()) < 0.5
        (300, True)
    """
    loop = _Loop(list(parameters), list(buffers), gradient, whole_step, score, schedule, words)
    if keeper is not None:
        keeper.resume(loop)
    total, done = sum(schedule.cycles), loop.report.steps
    with tqdm(total=total, initial=done, disable=not progress, desc=describe) as bar:
        try:
            loop.run(bar, keeper)
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
        self.started = now()
        self.best_state = self._state()
        self.best = score()
        self.objective: list[Tensor] = []
        self.masked: list[Tensor] = []
        self.heldout: list[tuple[int, float, float]] = [(0, self.best.mean, self.best.se)]
        self.ahead = list(enumerate(schedule.cycles))
        self.peak, self.polishes = schedule.learning_rate, MOST_POLISHES
        self.cycle: Cycle | None = None

    @property
    def deadline(self) -> float:
        return self.started + self.schedule.max_seconds

    @property
    def left(self) -> int:
        """Steps that may still be taken."""
        return sum(self.schedule.cycles) - self.report.steps

    def run(self, bar: Any, keeper: Keeper | None = None) -> None:
        if self.report.stop_reason:  # it goes on from its end
            return
        if self.cycle is None and self.best.excess <= self.schedule.good_enough:
            self.report.stop_reason = "the start is as good as is asked for"
        while not self.report.stop_reason:
            if self.cycle is None:
                if not (self.ahead and self.left):
                    self.report.stop_reason = (
                        f"the budget of {self.report.steps} steps was used up"
                    )
                    break
                self.cycle = self._begun(*self.ahead.pop(0))
            diverged = self._diverges(self.cycle, bar, keeper)
            ended, self.cycle = self.cycle, None
            self._judge(ended, diverged=diverged)
        if keeper is not None:
            keeper.write(self)

    def _begun(self, number: int, steps: int) -> Cycle:
        """A cycle from the best state; the optimiser starts anew."""
        self._restore(self.best_state)
        steps, started = min(steps, self.left), now()
        take = self.whole_step(number, steps, self.flat) if self.whole_step is not None else None
        take = self._by_calls(number) if take is None else take
        average = Average(self.tensors, steps, self.schedule.horizon)
        return Cycle(number, steps, self.best, self.report.steps, started, take, average)

    def _by_calls(self, number: int) -> Step:
        return StepByStep(self.flat, lambda: self.gradient(number), self.schedule.weight_decay)

    def _diverges(self, cycle: Cycle, bar: Any, keeper: Keeper | None) -> bool:
        """Take the steps of a cycle; True if it diverged and was given up."""
        schedule, steps = self.schedule, cycle.steps
        for step in range(cycle.step, steps):
            # Of the time; 0 if it is unlimited. Compiling may have used up more than there was.
            share = min(1.0, (now() - cycle.started) / (self.deadline - cycle.started))
            rate = self.peak * schedule.rate(max(step, share * steps), steps)
            objective, masked = cycle.take(rate)
            self.objective.append(objective)
            self.masked.append(masked)
            self.report.steps += 1
            cycle.average.update(step)
            if (step + 1) % LOOK == 0 or step + 1 == steps:
                window = torch.stack(self.objective[-LOOK:])
                mean, noise = float(window.mean()), float(window.std(correction=0))
                bar.update(self.report.steps - bar.n)
                bar.set_postfix_str(f"{self.words.objective} {mean:.4g}")
                if not math.isfinite(mean) or mean < cycle.best_window - 10 - 5 * noise:
                    return True
                cycle.best_window = max(cycle.best_window, mean)
            if schedule.score_every and (step + 1) % schedule.score_every == 0:
                cycle.waited = 0 if self._average_is_better(cycle.average) else cycle.waited + 1
            if cycle.waited == schedule.patience or now() >= self.deadline:
                break
            cycle.step = step + 1
            if keeper is not None:
                keeper.look(self)
        self._keep_if_better()
        self._restore(cycle.average.mean)
        self._keep_if_better()
        return False

    def _judge(self, cycle: Cycle, *, diverged: bool) -> None:
        """Say what comes after a cycle: a reason to stop, or cycles ahead and their peak."""
        schedule, report = self.schedule, self.report
        report.gaining = False
        if now() >= self.deadline:
            report.stop_reason = "the time limit was reached"
            return
        if diverged:
            report.rollbacks += 1
            self.peak *= 0.3
            if report.rollbacks > 3:
                report.stop_reason = "training diverged four times; the best state was kept"
            elif not self.ahead:  # the only one left: once more, with what is left
                self.ahead.append((cycle.number, self.left))
            return
        self.peak *= schedule.decay
        if self.best.excess <= schedule.good_enough:
            report.stop_reason = "the gap to the log evidence is as small as is asked for"
            return
        gain, se = self.best.gain_over(cycle.before)
        idle = gain < max(schedule.min_gain, schedule.min_gain_se * se)
        report.gaining = not idle
        near = self.best.excess <= NEAR * schedule.good_enough
        if (idle or near) and schedule.polish is not None and self.polishes:
            self.polishes -= 1
            self.peak *= schedule.polish
            self.ahead.insert(0, (cycle.number, min(schedule.cycles[0], cycle.steps)))
        elif idle and cycle.number > 0:
            report.stop_reason = (
                f"the last {report.steps - cycle.done} steps gained {gain:.2g} nats on "
                f"{self.words.heldout}"
            )

    def _average_is_better(self, average: Average) -> bool:
        """Score the average inside a cycle; the cycle goes on from where it was."""
        current = self._state()
        self._restore(average.mean)
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

    def state(self) -> dict[str, Any]:
        """All that changes, for a checkpoint."""
        report, cycle = self.report, self.cycle
        return {
            "tensors": self.tensors,
            "best_state": self.best_state,
            "best": vars(self.best),
            "objective": torch.stack(self.objective) if self.objective else None,
            "masked": torch.stack(self.masked) if self.masked else None,
            "heldout": self.heldout,
            "report": {name: getattr(report, name) for name in REPORTED},
            "ahead": self.ahead,
            "peak": self.peak,
            "polishes": self.polishes,
            "seconds": now() - self.started,
            "whole_step": None if self.whole_step is None else self.whole_step.state(),
            "cycle": None if cycle is None else cycle.state(now()),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state` gave."""
        (_, there, _), here = state["heldout"][0], self.best.mean
        if not (there == here or abs(there - here) <= SAME * max(1.0, abs(there))):
            raise CheckpointError(
                f"before training its {self.words.objective} was {there:.8g} on "
                f"{self.words.heldout}, and is {here:.8g} here"
            )
        self._restore(state["tensors"])
        self.best_state, self.best = state["best_state"], Score(**state["best"])
        self.objective, self.masked = (
            [] if state[name] is None else list(state[name].unbind())
            for name in ("objective", "masked")
        )
        self.heldout, self.ahead = state["heldout"], state["ahead"]
        self.peak, self.polishes = state["peak"], state["polishes"]
        self.started = now() - state["seconds"]
        for name in REPORTED:
            setattr(self.report, name, state["report"][name])
        if self.whole_step is not None:
            self.whole_step.set_state(state["whole_step"])
        cycle = state["cycle"]
        if cycle is not None:
            number, whole = cycle["number"], self.whole_step if cycle["whole"] else None
            take = self._by_calls(number) if whole is None else whole.again(number, self.flat)
            average = Average(self.tensors, cycle["steps"], self.schedule.horizon)
            self.cycle = Cycle.of(cycle, take, average, now())

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
