# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Recipes by contractive residual layers: no order and no split of coordinates."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_flows.distributions import Flow
from pyro_flows.flows.registry import register_flow
from pyro_flows.flows.stacks import stack_sizes
from pyro_flows.transforms import ContractiveResidual, Layer


@register_flow(
    "iresnet",
    density="one pass of dim tangents",
    sampling="fixed point",
    conditional=True,
    paper="Behrmann et al., Invertible residual networks",
    year=2019,
    link="https://arxiv.org/abs/1811.00995",
)
def iresnet(
    dim: int,
    context_dim: int = 0,
    *,
    layers: int = 8,
    hidden_dims: Sequence[int] = (64, 64),
    lipschitz: float = 0.9,
) -> Flow:
    """Contractive residual layers with exact determinants.

    Args:
        dim: number of coordinates.
        context_dim: width of the context.
        layers: number of layers.
        hidden_dims: widths of each network's hidden layers.
        lipschitz: bound of each network's Lipschitz constant, below 1.

    Example:
        >>> flows.iresnet(3, layers=2).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    return Flow(_stack(dim, context_dim, layers, hidden_dims, lipschitz, "exact"))


@register_flow(
    "residual",
    density="about 20 passes, an estimate",
    sampling="fixed point, an estimate",
    conditional=True,
    paper="Chen et al., Residual flows",
    year=2019,
    link="https://arxiv.org/abs/1906.02735",
)
def residual(
    dim: int,
    context_dim: int = 0,
    *,
    layers: int = 8,
    hidden_dims: Sequence[int] = (64, 64),
    lipschitz: float = 0.9,
    log_det: str = "stochastic",
) -> Flow:
    """Contractive residual layers with unbiased estimates of determinants, for many coordinates.

    Two calls of ``log_prob`` differ, by draws of torch's global generator; their mean is right.

    Args:
        dim: number of coordinates.
        context_dim: width of the context.
        layers: number of layers.
        hidden_dims: widths of each network's hidden layers.
        lipschitz: bound of each network's Lipschitz constant, below 1.
        log_det: ``"stochastic"`` or ``"exact"``.

    Example:
        >>> flows.residual(3, layers=2).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    return Flow(_stack(dim, context_dim, layers, hidden_dims, lipschitz, log_det))


def _stack(
    dim: int,
    context_dim: int,
    layers: int,
    hidden_dims: Sequence[int],
    lipschitz: float,
    log_det: str,
) -> list[Layer]:
    """Layers whose cheap direction is from data to base."""
    dim, context_dim, layers = stack_sizes(dim, context_dim, layers)
    return [
        ContractiveResidual(
            dim, context_dim, hidden_dims=hidden_dims, lipschitz=lipschitz, log_det=log_det
        ).inv
        for _ in range(layers)
    ]
