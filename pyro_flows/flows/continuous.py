# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The recipe by a vector field."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_flows.distributions import Flow
from pyro_flows.flows.registry import register_flow
from pyro_flows.flows.stacks import check_choice, stack_sizes
from pyro_flows.transforms import ContinuousFlow


@register_flow(
    "ffjord",
    density="ODE steps of dim tangents",
    sampling="ODE steps of dim tangents, each solved",
    conditional=True,
    paper="Grathwohl et al., FFJORD",
    year=2018,
    link="https://arxiv.org/abs/1810.01367",
)
def ffjord(
    dim: int,
    context_dim: int = 0,
    *,
    layers: int = 1,
    hidden_dims: Sequence[int] = (64, 64),
    steps: int = 8,
    solver: str = "rk4",
    log_det: str = "exact",
    fast: str = "density",
) -> Flow:
    """Continuous layers: points flow along a field that a network makes.

    Args:
        dim: number of coordinates.
        context_dim: width of the context.
        layers: number of fields, one after the other.
        hidden_dims: widths of each field's hidden layers.
        steps: steps of the solver.
        solver: as of :class:`~pyro_flows.transforms.ContinuousFlow`.
        log_det: ``"exact"``, or ``"stochastic"`` for hundreds of coordinates.
        fast: the direction that only flows, ``"density"`` or ``"sampling"``; the other solves
            each step for where it came from, about 4 times the work. Flow matching
            (:meth:`~pyro_flows.transforms.ContinuousFlow.flow_matching_loss`) wants
            ``"sampling"``.

    Example:
        >>> flows.ffjord(2, hidden_dims=(16,)).log_prob(torch.zeros(5, 2)).shape
        torch.Size([5])
    """
    dim, context_dim, layers = stack_sizes(dim, context_dim, layers)
    check_choice("fast", fast, ("density", "sampling"))
    stack = [
        ContinuousFlow(
            dim, context_dim, hidden_dims=hidden_dims, steps=steps, solver=solver, log_det=log_det
        )
        for _ in range(layers)
    ]
    return Flow([layer.inv for layer in stack] if fast == "density" else stack)
