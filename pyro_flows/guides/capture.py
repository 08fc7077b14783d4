# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Record a tensor function once as a graph, so that Python's cost is not paid on every call."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from pyro_flows.ops.contractions import contracted
from pyro_flows.ops.record import record


def capture(function: Callable[[Tensor], Tensor], example: Tensor, *, with_grad: bool) -> Captured:
    """Record ``function``, and its gradient if asked for, for inputs of the example's shape.

    Args:
        function: maps ``(P, D)`` to ``(P,)``, each row by itself.
        example: an input; its values don't matter, its shape, dtype and device do.
        with_grad: return ``(values, gradients)`` in place of values.

    Returns:
        A callable of one tensor, with the graph that :func:`record` makes.
    """

    def with_gradient(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        value = function(z)
        if not value.requires_grad:  # flat wherever it is positive
            return value, torch.zeros_like(z)
        (grad,) = torch.autograd.grad(value.sum(), z, allow_unused=True)
        return value.detach(), torch.zeros_like(z) if grad is None else grad

    with torch.set_grad_enabled(with_grad):
        graph = contracted(record(with_gradient if with_grad else function, example))

    return Captured(graph)


class Captured:
    """A recorded function of one tensor.

    Attributes:
        graph: what was recorded.
        largest: bytes of the largest tensor that it makes.
    """

    def __init__(self, graph: fx.GraphModule) -> None:
        self.graph = graph
        made = (node.meta for node in graph.graph.nodes if node.op == "call_function")
        sizes = (math.prod(m["shape"]) * m["dtype"].itemsize for m in made if "shape" in m)
        self.largest = max(sizes, default=0)

    def __call__(self, z: Tensor) -> Any:
        """Run it; the gradient is part of the graph, so autograd has nothing to record."""
        with torch.no_grad():
            return self.graph(z)
