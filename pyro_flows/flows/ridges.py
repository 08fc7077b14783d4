# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Recipes by simple residual layers, quick at sampling: small flows for guides."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_flows.distributions import Flow
from pyro_flows.flows.registry import register_flow
from pyro_flows.flows.stacks import stack_sizes
from pyro_flows.transforms import Planar, Radial, Sylvester


@register_flow(
    "planar",
    density="one pass with roots",
    sampling="one pass",
    conditional=True,
    paper="Rezende and Mohamed, Variational inference with normalizing flows",
    year=2015,
    link="https://arxiv.org/abs/1505.05770",
)
def planar(
    dim: int, context_dim: int = 0, *, layers: int = 16, hidden_dims: Sequence[int] = (64, 64)
) -> Flow:
    """Planar layers: squeezes along one direction each.

    Args:
        dim: number of coordinates.
        context_dim: width of the context.
        layers: number of layers.
        hidden_dims: widths of each network of the context; without one there is none.

    Example:
        >>> flows.planar(3)().rsample((5,)).shape
        torch.Size([5, 3])
    """
    dim, context_dim, layers = stack_sizes(dim, context_dim, layers)
    return Flow([Planar(dim, context_dim, hidden_dims) for _ in range(layers)])


@register_flow(
    "radial",
    density="one pass",
    sampling="one pass",
    conditional=True,
    paper="Rezende and Mohamed, Variational inference with normalizing flows",
    year=2015,
    link="https://arxiv.org/abs/1505.05770",
)
def radial(
    dim: int, context_dim: int = 0, *, layers: int = 16, hidden_dims: Sequence[int] = (64, 64)
) -> Flow:
    """Radial layers: squeezes towards one place each.

    Args:
        dim: number of coordinates.
        context_dim: width of the context.
        layers: number of layers.
        hidden_dims: widths of each network of the context; without one there is none.

    Example:
        >>> flows.radial(3)().rsample((5,)).shape
        torch.Size([5, 3])
    """
    dim, context_dim, layers = stack_sizes(dim, context_dim, layers)
    return Flow([Radial(dim, context_dim, hidden_dims) for _ in range(layers)])


@register_flow(
    "sylvester",
    density="one pass with roots",
    sampling="one pass",
    conditional=True,
    paper="van den Berg et al., Sylvester normalizing flows",
    year=2018,
    link="https://arxiv.org/abs/1803.05649",
)
def sylvester(
    dim: int,
    context_dim: int = 0,
    *,
    layers: int = 8,
    hidden_dims: Sequence[int] = (64, 64),
    rank: int | None = None,
) -> Flow:
    """Sylvester layers: squeezes along several directions at once.

    Args:
        dim: number of coordinates.
        context_dim: width of the context.
        layers: number of layers.
        hidden_dims: widths of each network of the context; without one there is none.
        rank: directions a layer, ``min(dim, 4)`` by default.

    Example:
        >>> flows.sylvester(3, context_dim=2)(torch.zeros(5, 2)).rsample().shape
        torch.Size([5, 3])
    """
    dim, context_dim, layers = stack_sizes(dim, context_dim, layers)
    stack = [
        Sylvester(dim, context_dim, rank=rank, hidden_dims=hidden_dims) for _ in range(layers)
    ]
    return Flow(stack)
