# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Events with several axes around layers that map flat vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import biject_to, transform_to
from torch.distributions.transforms import ComposeTransform, ReshapeTransform, Transform

from pyro_flows.errors import ShapeError


class Shaped(constraints.Constraint):
    """A constraint on vectors, on tensors of ``event_shape`` whose flattening obeys it."""

    is_discrete = False

    def __init__(self, vector: Any, event_shape: torch.Size) -> None:
        super().__init__()
        self.vector, self.event_shape = vector, event_shape

    @property
    def event_dim(self) -> int:  # type: ignore[override]
        """Number of axes of an event."""
        return len(self.event_shape)

    def check(self, value: Tensor) -> Tensor:
        """Whether each event's flattening obeys the constraint."""
        return self.vector.check(flattened(value, self.event_shape))

    def __repr__(self) -> str:
        return f"Shaped({self.vector}, {tuple(self.event_shape)})"


@biject_to.register(Shaped)
def _biject_to_shaped(constraint: Shaped) -> Transform:
    flat = torch.Size((constraint.event_shape.numel(),))
    reshape = ReshapeTransform(flat, constraint.event_shape)
    return ComposeTransform([biject_to(constraint.vector), reshape])


@transform_to.register(Shaped)
def _transform_to_shaped(constraint: Shaped) -> Transform:
    flat = torch.Size((constraint.event_shape.numel(),))
    reshape = ReshapeTransform(flat, constraint.event_shape)
    return ComposeTransform([transform_to(constraint.vector), reshape])


def shaped(vector: Any, event_shape: torch.Size) -> Any:
    """The constraint on events whose flattening obeys ``vector``, as plain as it can be said."""
    if len(event_shape) == 1:
        return vector
    if vector is constraints.real_vector:
        return constraints.independent(constraints.real, len(event_shape))
    return Shaped(vector, event_shape)


def event_size(event_shape: Sequence[int] | None, dim: int) -> torch.Size:
    """The event shape, checked against the number of coordinates; ``(dim,)`` by default."""
    if event_shape is None:
        return torch.Size((dim,))
    if len(event_shape) == 0 or math.prod(event_shape) != dim:
        raise ShapeError(
            f"Flow expected an event_shape of {dim} elements, as its layers have coordinates, but "
            f"got {tuple(event_shape)}. Give for example (channels, height, width)."
        )
    return torch.Size(event_shape)


def flattened(value: Tensor, event_shape: torch.Size) -> Tensor:
    """Values ``(*, *event_shape)`` as vectors ``(*, dim)``."""
    if len(event_shape) == 1:
        return value  # layers check its width
    if value.shape[-len(event_shape) :] != event_shape:
        raise ShapeError(
            f"This flow expected values of shape (..., {', '.join(map(str, event_shape))}), but "
            f"got {tuple(value.shape)}. Its event_shape is {tuple(event_shape)}."
        )
    return value.flatten(-len(event_shape))


def unflattened(vector: Tensor, event_shape: torch.Size) -> Tensor:
    """Vectors ``(*, dim)`` as values ``(*, *event_shape)``."""
    return vector if len(event_shape) == 1 else vector.unflatten(-1, event_shape)
