# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The protocol of conditioners that can be walked: parameters of one generation after another.

An autoregressive inverse finds coordinates one generation at a time. A conditioner that offers
``walk`` computes for each only what is new, from what it kept of those before: activations of
hidden units, or an attention's keys and values. What it keeps lives in the walk, which lives for
one call.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


class Walk(Protocol):
    """One inversion under way. Ask for ``params``, tell the ``features``, in turns."""

    def params(self) -> Tensor:
        """Parameters of the next generation, ``(*batch_shape, size, num_parameters)``."""

    def feed(self, features: Tensor) -> None:
        """Tell what it turned out to be, ``(*batch_shape, size, num_features)``."""


@runtime_checkable
class Walkable(Protocol):
    """A conditioner that can be walked through its coordinates, sorted by generation.

    Within a generation, and so within what a walk gives and is told, coordinates are sorted by
    number.
    """

    #: The generation of each coordinate.
    generation: list[int]

    def walk(self, context: Tensor | None, batch_shape: torch.Size) -> Walk:
        """Begin, for values of a batch shape that the context's leading axes broadcast to."""


def in_generations(module: nn.Module, generation: Tensor) -> list[int]:
    """Keep on a module who comes when: its list ``generation`` and its buffer ``sequence``.

    Args:
        module: where to.
        generation: of each coordinate, from :func:`pyro_flows.ops.generations`.

    Returns:
        Where generations begin, and the end: ``sequence[starts[t]:starts[t + 1]]`` are the
        coordinates of generation ``t``.

    Example:
        >>> module = torch.nn.Module()
        >>> in_generations(module, torch.tensor([1, 0, 1])), module.sequence.tolist()
        ([0, 1, 3], [1, 0, 2])
    """
    sequence = generation.argsort(stable=True)
    module.__dict__["generation"] = generation.tolist()
    module.register_buffer("sequence", sequence.to(torch.empty(0).device))
    ends: list[int] = torch.bincount(generation).cumsum(0).tolist()
    return [0, *ends]
