# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""One step of training: gradient, clip, Adam; by calls one after the other, or as one function."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_flows.training.clipping import Clip, limit
from pyro_flows.training.flat import Flat

BETAS, EPS = (0.9, 0.99), 1e-8

# Given a learning rate, takes a step; returns the objective and how many terms were masked.
Step = Callable[[float], tuple[Tensor, Tensor]]
# What a step changes: parameters, both moments, the running size of gradients, steps so far.
State = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def step_by_step(
    flat: Flat, gradient: Callable[[], tuple[Tensor, Tensor]], weight_decay: float
) -> Step:
    """Steps of a fresh optimiser.

    Args:
        flat: the parameters.
        gradient: leaves gradients on them, and returns the objective and what was masked.
        weight_decay: of the vectors whose kind is True.
    """
    clip, optimiser = Clip(), _optimiser(flat, weight_decay)

    def step(rate: float) -> tuple[Tensor, Tensor]:
        for group in optimiser.param_groups:
            group["lr"] = rate
        objective, masked = gradient()
        clip(flat.gather())
        optimiser.step()
        flat.write()
        return objective, masked

    return step


def fresh_state(vector: Tensor) -> State:
    """The state before the first step of :func:`updated`."""
    zero = vector.new_zeros(())
    return vector.clone(), torch.zeros_like(vector), torch.zeros_like(vector), zero, zero.clone()


def updated(state: State, gradient: Tensor, rate: Tensor) -> State:
    """What :func:`step_by_step` makes of a state and a gradient, as a function of tensors."""
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
