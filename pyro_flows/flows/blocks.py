# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The recipe by networks of block-triangular weights."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_flows.distributions import Flow
from pyro_flows.flows.registry import register_flow
from pyro_flows.flows.stacks import check_choice, stack_sizes
from pyro_flows.transforms import BlockAutoregressive, Layer, Permute


@register_flow(
    "bnaf",
    density="one pass",
    sampling="up to dim passes with roots",
    conditional=True,
    paper="De Cao et al., Block neural autoregressive flow",
    year=2019,
    link="https://arxiv.org/abs/1904.04676",
)
def bnaf(
    dim: int,
    context_dim: int = 0,
    *,
    layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    hidden_factors: Sequence[int] = (8, 8),
    fast: str = "density",
) -> Flow:
    """Block neural autoregressive layers, every other one with the order reversed.

    Args:
        dim: number of coordinates.
        context_dim: width of the context.
        layers: number of layers.
        hidden_dims: widths of each network of the context; without one there is none.
        hidden_factors: units for each coordinate, in each hidden layer.
        fast: the direction that takes one pass, ``"density"`` or ``"sampling"``; the other takes
            up to ``dim`` passes with roots.

    Example:
        >>> flows.bnaf(3).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    dim, context_dim, layers = stack_sizes(dim, context_dim, layers)
    check_choice("fast", fast, ("density", "sampling"))
    stack: list[Layer] = []
    for k in range(layers):
        block = BlockAutoregressive(dim, hidden_factors, context_dim, hidden_dims=hidden_dims)
        layer = block.inv if fast == "density" else block
        stack += [Permute(dim), layer, Permute(dim)] if k % 2 else [layer]
    return Flow(stack)
