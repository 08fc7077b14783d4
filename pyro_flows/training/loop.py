# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The one training loop: cycles of steps, the best state kept, a stop that can be explained.

It knows parameters, a function that leaves gradients on them, and a function that scores the
state on held-out draws. What is trained, it doesn't know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

# Steps between looks at the running objective: each look waits for the device.
LOOK = 50


@dataclass(frozen=True)
class Schedule:
    """How long to train, and when it is enough.

    Training runs in cycles, each twice as long as the one before, with a learning rate that warms
    up and decays within the cycle. After each cycle the state is scored on held-out draws.

    Attributes:
        cycles: steps of each cycle.
        learning_rate: peak of the first cycle.
        min_gain: stop when a cycle gained less than this, or less than 2 standard errors.
        good_enough: stop when ``Score.excess`` is at most this.
    """

    cycles: Sequence[int] = (400, 800, 1600)
    learning_rate: float = 3e-2
    min_gain: float = 0.002
    good_enough: float = -math.inf

    def rate(self, step: int, steps: int) -> float:
        """Learning rate at a step of a cycle, as a share of the peak: warm-up, then cosine."""
        warm = min(1.0, (step + 1) / max(1, 0.05 * steps))
        return warm * (0.02 + 0.49 * (1 + math.cos(math.pi * step / steps)))


@dataclass(frozen=True)
class Score:
    """A state on held-out draws; the draws are the same for every state.

    Attributes:
        values: the objective per draw, higher is better, shape ``(S,)``.
        excess: an upper estimate of how far from perfect the state is, in the objective's unit;
            inf if there is none.
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
        """How much better the mean is than another state's, and the paired standard error."""
        both = self.finite & other.finite
        if int(both.sum()) < 2:
            gain = self.mean - other.mean
            return (0.0 if math.isnan(gain) else gain), 0.0
        difference = (self.values - other.values)[both]
        shares = self.finite.double().mean().log() - other.finite.double().mean().log()
        se = float(difference.std()) / math.sqrt(len(difference))
        return float(difference.mean() + shares), se


@dataclass
class Report:
    """What happened in training.

    Attributes:
        steps: optimiser steps made.
        stop_reason: why it ended, a sentence.
        interrupted: whether the user stopped it.
        rollbacks: times it went back to the best state after diverging.
        non_finite: particles masked out of gradients.
        history: arrays "step", "elbo" (objective in training), "heldout_step", "heldout_elbo",
            "heldout_se", "stage".
    """

    steps: int = 0
    stop_reason: str = ""
    interrupted: bool = False
    rollbacks: int = 0
    non_finite: int = 0
    history: dict[str, np.ndarray] = field(default_factory=dict)


def train(
    parameters: Sequence[Tensor],
    gradient: Callable[[int], tuple[Tensor, Tensor]],
    score: Callable[[], Score],
    schedule: Schedule,
    *,
    progress: bool = True,
    describe: str = "Train",
) -> Report:
    """Train ``parameters`` in place and leave the best held-out state in them.

    Args:
        parameters: leaf tensors.
        gradient: given the number of the cycle, leaves ``.grad`` on the parameters and returns
            ``(objective, count)``: a scalar tensor, higher is better, and how many non-finite
            terms were masked, both on the device.
        score: the state on held-out draws.
        schedule: cycles and stops.
        progress: show a bar on standard error.
        describe: the bar's label.

    Returns:
        What happened. Ctrl-C ends training early; the best state is kept.
    """
    loop = _Loop(list(parameters), gradient, score, schedule)
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
        gradient: Callable[[int], tuple[Tensor, Tensor]],
        score: Callable[[], Score],
        schedule: Schedule,
    ) -> None:
        self.parameters, self.gradient, self.score = parameters, gradient, score
        self.schedule, self.report = schedule, Report()
        self.best_state = self._state()
        self.best = score()
        self.first = self.best
        self.objective: list[Tensor] = []
        self.masked: list[Tensor] = []
        self.heldout: list[tuple[int, float, float]] = [(0, self.best.mean, self.best.se)]

    def run(self, bar: Any) -> None:
        peak = self.schedule.learning_rate
        for cycle, steps in enumerate(self.schedule.cycles):
            before = self.best
            diverged = self._cycle(cycle, steps, peak, bar)
            gain, se = self.best.gain_over(before)
            if diverged:
                self.report.rollbacks += 1
                peak *= 0.3
                if self.report.rollbacks > 3:
                    self.report.stop_reason = (
                        "training diverged four times; the best state was kept"
                    )
                    return
                continue
            if self.best.excess <= self.schedule.good_enough:
                self.report.stop_reason = "the gap to the log evidence is as small as is asked for"
                return
            if cycle > 0 and gain < max(self.schedule.min_gain, 2 * se):
                self.report.stop_reason = (
                    f"the last {steps} steps gained {gain:.2g} nats on held-out draws"
                )
                return
        self.report.stop_reason = f"the budget of {self.report.steps} steps was used up"

    def _cycle(self, cycle: int, steps: int, peak: float, bar: Any) -> bool:
        """One cycle from the best state; True if it diverged and was given up."""
        self._restore(self.best_state)
        optimiser = torch.optim.Adam(
            self.parameters, lr=peak, betas=(0.9, 0.99), fused=_can_fuse(self.parameters)
        )
        clip = _Clip()
        # The tail of the cycle, averaged: step-size noise goes, the optimum stays.
        tail, average, averaged = max(1, steps // 5), self._state(), 0
        best_window = -math.inf
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = peak * self.schedule.rate(step, steps)
            optimiser.zero_grad(set_to_none=True)
            objective, masked = self.gradient(cycle)
            clip(self.parameters)
            optimiser.step()
            self.objective.append(objective)
            self.masked.append(masked)
            self.report.steps += 1
            if steps - step <= tail:
                averaged += 1
                for mean, parameter in zip(average, self.parameters, strict=True):
                    mean.lerp_(parameter.detach(), 1.0 / averaged)
            if (step + 1) % LOOK == 0 or step + 1 == steps:
                window = torch.stack(self.objective[-LOOK:])
                now, noise = float(window.mean()), float(window.std(correction=0))
                bar.update(min(LOOK, step + 1 - (step // LOOK) * LOOK))
                bar.set_postfix_str(f"ELBO {now:.4g}")
                if not math.isfinite(now) or now < best_window - 10 - 5 * noise:
                    return True
                best_window = max(best_window, now)
        self._keep_if_better(cycle)
        self._restore(average)
        self._keep_if_better(cycle)
        return False

    def _keep_if_better(self, cycle: int) -> None:
        score = self.score()
        self.heldout.append((self.report.steps, score.mean, score.se))
        if score.gain_over(self.best)[0] > 0:
            self.best, self.best_state = score, self._state()

    def finish(self) -> Report:
        if self.report.interrupted:
            self._keep_if_better(0)
        # Never worse than the start, beyond chance, on draws that no step was taken on.
        self._restore(self.best_state)
        for parameter in self.parameters:
            parameter.grad = None
        objective = (
            torch.stack(self.objective).cpu().double() if self.objective else torch.zeros(0)
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

    def _state(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]

    def _restore(self, state: list[Tensor]) -> None:
        with torch.no_grad():
            for parameter, value in zip(self.parameters, state, strict=True):
                parameter.copy_(value)


class _Clip:
    """Clip the gradient's norm at twice its running size; drop non-finite gradients.

    A fixed bound would mean another thing in every model. Nothing here waits for the device.
    """

    def __init__(self) -> None:
        self.size: Tensor | None = None

    def __call__(self, parameters: Sequence[Tensor]) -> None:
        grads = [p.grad for p in parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(grads)
        finite = torch.isfinite(norm)
        usable = torch.where(finite, norm, torch.zeros_like(norm))
        if self.size is None:
            self.size = usable
        # A first gradient of zero (all particles masked) says nothing of the size.
        self.size = torch.where(self.size > 0, self.size, usable)
        # The size follows slowly, and one outlier moves it by a factor at most.
        limited = torch.minimum(usable, 4 * self.size.clamp_min(1e-30))
        self.size = torch.where(finite, self.size.lerp(limited, 0.05), self.size)
        factor = (2 * self.size / norm.clamp_min(1e-30)).clamp(max=1.0)
        for grad in grads:
            grad.copy_(torch.where(finite, grad * factor, torch.zeros_like(grad)))


def _can_fuse(parameters: Sequence[Tensor]) -> bool:
    kinds = {(p.device.type, p.dtype) for p in parameters}
    return len(kinds) == 1 and kinds <= set(_fusable())


def _fusable() -> Iterator[tuple[str, torch.dtype]]:
    for device in ("cpu", "cuda"):
        for dtype in (torch.float32, torch.float64):
            yield device, dtype
