# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What all contenders in torch are timed by."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from contender import Contender
from targets import LEARNING_RATE
from torch import Tensor


def maximum_likelihood(
    log_prob: Callable[[Tensor], Tensor],
    parameters: Iterable[Tensor],
    x: Tensor,
    before: Callable[[], None] = lambda: None,
) -> Contender:
    """Steps of Adam on a fixed batch; ``before`` is called ahead of each."""
    parameters = list(parameters)
    optimiser = torch.optim.Adam(parameters, lr=LEARNING_RATE)
    losses: list[Tensor] = []

    def steps(n: int) -> None:
        for _ in range(n):
            before()
            loss = -log_prob(x).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses[:] = [loss.detach()]

    return Contender(steps, lambda: {"loss": losses[0].item()}, {"parameters": count(parameters)})


def drawing(draw: Callable[[], Tensor]) -> Contender:
    """Repeated draws, without gradients."""

    @torch.no_grad()
    def steps(n: int) -> None:
        for _ in range(n):
            draw()

    return Contender(steps)


def count(parameters: Iterable[Tensor]) -> int:
    """How many numbers are trained."""
    return sum(p.numel() for p in parameters if p.requires_grad)
