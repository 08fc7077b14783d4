# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Record a tensor function once as a graph, so that Python's cost is not paid on every call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx


def capture(
    function: Callable[[Tensor], Tensor], example: Tensor, *, with_grad: bool
) -> Callable[..., Any]:
    """Record ``function``, and its gradient if asked for, for inputs of the example's shape.

    Args:
        function: maps ``(P, D)`` to ``(P,)``, each row by itself.
        example: an input; its values don't matter, its shape, dtype and device do.
        with_grad: return ``(values, gradients)`` in place of values.

    Returns:
        A callable of one tensor. Random numbers drawn by ``function`` are drawn anew on each
        call. Python-side choices are frozen as they were on the example.
    """

    def with_gradient(z: Tensor) -> tuple[Tensor, Tensor]:
        z = z.detach().requires_grad_()
        value = function(z)
        (grad,) = torch.autograd.grad(value.sum(), z, allow_unused=True)
        return value.detach(), torch.zeros_like(z) if grad is None else grad

    def without_gradient(z: Tensor) -> Tensor:
        return function(z)

    with torch.set_grad_enabled(with_grad):
        graph = record(with_gradient if with_grad else without_gradient, example)

    def run(z: Tensor) -> Any:
        # The gradient is part of the graph; autograd has nothing to record.
        with torch.no_grad():
            return graph(z)

    return run


def record(function: Callable[..., Any], *example: Tensor) -> fx.GraphModule:
    """The operations of ``function`` on tensors of the example's shapes, as a graph.

    Cost: some 0.2 ms an operation.
    """
    # Without a context make_fx makes one for every operation, which takes half its time.
    with tracing(TracingContext(FakeTensorMode(allow_fallback_kernels=True))):
        graph = make_fx(function)(*example)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph
