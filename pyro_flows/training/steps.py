# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""One step of training: gradient, clip, Adam; by calls one after the other, or as one function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from pyro_flows.training.clipping import Clip, limit
from pyro_flows.training.flat import Flat

BETAS, EPS = (0.9, 0.99), 1e-8

# What a step changes: parameters, both moments, the running size of gradients, steps so far.
State = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Step(Protocol):
    """Takes steps of one optimiser."""

    def __call__(self, rate: float) -> tuple[Tensor, Tensor]:
        """Take one at this learning rate; returns the objective and how many terms were masked."""
        ...

    def state(self) -> Any:
        """The optimiser's; the parameters are not part of it."""
        ...

    def set_state(self, state: Any) -> None:
        """Go on from what :meth:`state` gave."""
        ...


class WholeStep(Protocol):
    """Takes all of a step at once, optimiser included, where it can."""

    def __call__(self, cycle: int, steps: int, flat: Flat) -> Step | None:
        """The step of a cycle, given its number, its steps and the parameters; or none."""
        ...

    def again(self, cycle: int, flat: Flat) -> Step:
        """The same where the cycle goes on after an interrupt."""
        ...

    def state(self) -> Any:
        """What was decided so far."""
        ...

    def set_state(self, state: Any) -> None:
        """Go on from what :meth:`state` gave."""
        ...


class StepByStep:
    """Steps of a fresh optimiser, by calls.

    Args:
        flat: the parameters.
        gradient: leaves gradients on them, and returns the objective and what was masked.
        weight_decay: of the vectors whose kind is True.
    """

    def __init__(
        self, flat: Flat, gradient: Callable[[], tuple[Tensor, Tensor]], weight_decay: float
    ) -> None:
        self.flat, self.gradient = flat, gradient
        self.clip, self.optimiser = Clip(), _optimiser(flat, weight_decay)

    def __call__(self, rate: float) -> tuple[Tensor, Tensor]:
        """Take a step."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        objective, masked = self.gradient()
        self.clip(self.flat.gather())
        self.optimiser.step()
        self.flat.write()
        return objective, masked

    def state(self) -> dict[str, Any]:
        """Moments, and the running size of gradients."""
        return {"moments": self.optimiser.state_dict()["state"], "size": self.clip.size}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on with those."""
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state["moments"], "param_groups": groups})
        self.clip.size = state["size"]


def fresh_state(vector: Tensor) -> State:
    """The state before the first step of :func:`updated`."""
    zero = vector.new_zeros(())
    return vector.clone(), torch.zeros_like(vector), torch.zeros_like(vector), zero, zero.clone()


def updated(state: State, gradient: Tensor, rate: Tensor) -> State:
    """What :class:`StepByStep` makes of a state and a gradient, as a function of tensors."""
    vector, mean, square, size, count = state
    norm = torch.linalg.vector_norm(gradient)
    factor, size = limit(norm, size)
    gradient = torch.where(torch.isfinite(norm), gradient * factor, torch.zeros_like(gradient))
    mean = mean.lerp(gradient, 1 - BETAS[0])
    square = BETAS[1] * square + (1 - BETAS[1]) * gradient * gradient
    count = count + 1
    width = (square / (1 - BETAS[1] ** count)).sqrt() + EPS
    return vector - rate / (1 - BETAS[0] ** count) * mean / width, mean, square, size, count


def _optimiser(flat: Flat, weight_decay: float) -> torch.optim.Optimizer:
    vectors = flat.vectors
    options: dict[str, Any] = {"betas": BETAS, "eps": EPS, "fused": _can_fuse(vectors)}
    if not weight_decay:
        return torch.optim.Adam(vectors, **options)
    groups = [
        {"params": [vector], "weight_decay": weight_decay if is_weight else 0.0}
        for vector, is_weight in zip(vectors, flat.kinds, strict=True)
    ]
    return torch.optim.AdamW(groups, **options)


def _can_fuse(parameters: Sequence[Tensor]) -> bool:
    kinds = {(p.device.type, p.dtype) for p in parameters}
    return len(kinds) == 1 and kinds <= set(_fusable())


def _fusable() -> Iterator[tuple[str, torch.dtype]]:
    for device in ("cpu", "cuda"):
        for dtype in (torch.float32, torch.float64):
            yield device, dtype
