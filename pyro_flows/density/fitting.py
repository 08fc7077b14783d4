# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Maximum likelihood by minibatches, stopped by rows held out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from pyro_flows.nn.dropout import WithDropout
from pyro_flows.training import Report, Schedule, Score, Words, train
from pyro_flows.training.checkpoint import Keeper
from pyro_flows.training.whole_step import Compile, Parts, WholeSteps

# Rows scored at once: enough to keep the processor busy, few enough to keep the memory small.
CHUNK = 4096

Part = Literal["all", "first", "rest"]
LogProb = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Rows:
    """Standardised rows ``(n, dim)`` and their context ``(n, context_dim)``, if there is any."""

    x: Tensor
    context: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: Any) -> Rows:
        return Rows(self.x[index], None if self.context is None else self.context[index])

    def tensors(self) -> tuple[Tensor, ...]:
        """Both, or the one there is."""
        return (self.x,) if self.context is None else (self.x, self.context)


@dataclass(frozen=True)
class Budget:
    """How to train, and for how long; see :class:`pyro_flows.density.FlowDensity`.

    Attributes:
        batch_size: rows a step.
        learning_rate: peak.
        weight_decay: of the matrices.
        max_epochs: passes over the data, over all cycles.
        num_steps: exactly so many steps, in one cycle.
        max_seconds: time limit.
        patience: looks at the held-out rows without a new best that end a cycle.
        part: which cycles: "all", "first" for the first two, "rest" for those after them.
        compile: as of :class:`~pyro_flows.training.whole_step.WholeSteps`.
    """

    batch_size: int = 512
    learning_rate: float = 0.015
    weight_decay: float = 0.0
    max_epochs: int = 1000
    num_steps: int | None = None
    max_seconds: float | None = None
    patience: int | None = None
    part: Part = "all"
    compile: Compile = False

    # Epochs of the first cycle; and no cycle shorter than this many steps teaches anything.
    FIRST_EPOCHS = 20
    FIRST_STEPS = 1000
    # The long cycles of a second flow begin anew, the next where the one before left off.
    DECAY = 0.25

    def schedule(self, rows: int) -> Schedule:
        """Cycles that double, until the budget is used up or a cycle gains nothing."""
        epoch = -(-rows // self.batch_size)
        return Schedule(
            cycles=self.cycles(rows),
            learning_rate=self.learning_rate,
            decay=self.DECAY if self.part == "rest" else 1.0,
            weight_decay=self.weight_decay,
            min_gain=0.0,
            min_gain_se=1.0,
            score_every=max(epoch, 50),
            patience=self.patience,
            horizon=max(epoch, 50),
            max_seconds=math.inf if self.max_seconds is None else self.max_seconds,
        )

    def cycles(self, rows: int) -> list[int]:
        """Steps of each cycle, for so many rows."""
        if self.num_steps is not None:
            return [self.num_steps]
        epoch = -(-rows // self.batch_size)
        left, steps, cycles = self.max_epochs * epoch, 0, []
        while left > 0:
            steps = 2 * steps or max(self.FIRST_EPOCHS * epoch, self.FIRST_STEPS)
            # A rest too short for the next cycle goes to this one.
            steps = left if left < 3 * steps else steps
            cycles.append(steps)
            left -= steps
        return {"all": cycles, "first": cycles[:2], "rest": cycles[2:]}[self.part]


def maximise_likelihood(
    model: nn.Module,
    rows: Rows,
    validation: Rows,
    budget: Budget,
    *,
    keeper: Keeper | None = None,
    progress: bool = True,
) -> Report:
    """Train ``model`` in place to a high mean ``log_prob`` of rows, and leave the best state.

    Random numbers (order of rows, dropout) come from torch's generator.

    Args:
        model: anything with ``log_prob(x, context)``.
        rows: to train on.
        validation: rows that no step is taken on; they say which state is best.
        budget: how long.
        keeper: keeps a checkpoint, and goes on from it.
        progress: show a bar.
    """
    batches, likelihood = Batches(rows, budget.batch_size), Likelihood(model)
    if keeper is not None:
        keeper.parts["batches"] = batches

    def gradient(cycle: int) -> tuple[Tensor, Tensor]:
        model.train()
        batch = next(batches)
        (objective,), (along,), value, masked = likelihood(batch.x, batch.context)
        objective.backward(along)
        return value, masked

    whole = LikelihoodSteps(likelihood, batches, budget)
    report = train(
        [p for p in model.parameters() if p.requires_grad],
        gradient,
        lambda: Score(score_rows(model, validation).double()),
        budget.schedule(len(rows)),
        buffers=list(model.buffers()),
        whole_step=whole,
        keeper=keeper,
        progress=progress,
        describe="FlowDensity",
        words=Words("log density", "validation rows"),
    )
    model.eval()
    report.compiled = whole.choice
    return report


@torch.no_grad()
def score_rows(model: nn.Module, rows: Rows) -> Tensor:
    """Log density per row, with dropout and the like switched off."""
    model.eval()
    if not len(rows):
        return rows.x.new_zeros(0)
    log_prob = cast("LogProb", model.log_prob)
    parts = [rows[start : start + CHUNK] for start in range(0, len(rows), CHUNK)]
    return torch.cat([log_prob(part.x, part.context) for part in parts])


class Likelihood(nn.Module):
    """The mean log density of a batch, of the rows where it is finite."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, context: Tensor | None = None) -> Parts:
        """What a step takes; see :class:`~pyro_flows.training.whole_step.WholeSteps`."""
        log_prob = cast("LogProb", self.model.log_prob)(x, context)
        finite = torch.isfinite(log_prob)
        objective = torch.where(finite, log_prob, torch.zeros_like(log_prob)).mean()
        return [objective], [-torch.ones_like(objective)], objective.detach(), (~finite).sum()


class LikelihoodSteps(WholeSteps):
    """Whole steps up the likelihood.

    Args:
        likelihood: of the model that is trained.
        batches: of the rows.
        budget: says whether to compile.
    """

    pays = 5000

    def __init__(self, likelihood: Likelihood, batches: Batches, budget: Budget) -> None:
        super().__init__(budget.compile)
        self.likelihood, self.batches, self.budget = likelihood, batches, budget

    def obstacle(self) -> str | None:
        """What is known beforehand; the rest is seen when a step is recorded."""
        parts = self.likelihood.modules()
        if any(isinstance(part, WithDropout) and part.dropout for part in parts):
            return "dropout draws random numbers"
        if self.compile == "auto" and self.budget.max_seconds is not None:
            return "compiling would use up the time there is"
        return None

    def module(self) -> nn.Module:
        """The likelihood, set to train."""
        return self.likelihood.train()

    def size(self, cycle: int) -> int:  # noqa: ARG002
        """Rows of a batch."""
        return self.batches.size

    def inputs(self, size: int) -> tuple[Tensor, ...]:  # noqa: ARG002
        """The next batch."""
        return next(self.batches).tensors()

    def example(self, size: int) -> tuple[Tensor, ...]:
        """Any rows."""
        rows = self.batches.rows
        return rows[torch.randperm(len(rows))[:size].to(rows.x.device)].tensors()


class Batches:
    """Minibatches without end: all rows in random order, then in another."""

    def __init__(self, rows: Rows, size: int) -> None:
        self.rows, self.size, self.at = rows, min(size, len(rows)), 0
        self.order = torch.zeros(0, dtype=torch.long)

    def __next__(self) -> Rows:
        if self.at + self.size > len(self.order):  # the odd rest waits for another order
            self.order, self.at = torch.randperm(len(self.rows)).to(self.rows.x.device), 0
        index = self.order[self.at : self.at + self.size]
        self.at += self.size
        return self.rows[index]

    def state(self) -> dict[str, Any]:
        """The order, and how far it was gone through."""
        return {"order": self.order, "at": self.at}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.order, self.at = state["order"], state["at"]
