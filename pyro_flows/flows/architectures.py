# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Named architectures: short recipes over layers. Every one starts as the identity."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_flows.distributions import Flow
from pyro_flows.flows.registry import register_flow
from pyro_flows.ops import alternating_masks
from pyro_flows.transforms import (
    Affine,
    Chain,
    Coupling,
    Elementwise,
    Layer,
    RationalQuadraticSpline,
    Shift,
    Univariate,
)


def couplings(
    dim: int, univariate: Univariate, context_dim: int, layers: int, hidden_dims: Sequence[int]
) -> list[Layer]:
    """A stack of couplings whose masks reach every coordinate; elementwise at ``dim=1``."""
    if dim == 1:
        return [Elementwise(1, univariate, context_dim, hidden_dims)]
    return [
        Coupling(dim, univariate, mask, context_dim, hidden_dims)
        for mask in alternating_masks(dim, layers)
    ]


@register_flow("nice")
def nice(
    dim: int, context_dim: int = 0, layers: int = 6, hidden_dims: Sequence[int] = (64, 64)
) -> Flow:
    """Additive couplings, volume preserving (Dinh et al. 2014)."""
    return Flow(couplings(dim, Shift(), context_dim, layers, hidden_dims))


@register_flow("realnvp")
def realnvp(
    dim: int, context_dim: int = 0, layers: int = 6, hidden_dims: Sequence[int] = (64, 64)
) -> Flow:
    """Affine couplings (Dinh et al. 2016)."""
    return Flow(couplings(dim, Affine(), context_dim, layers, hidden_dims))


@register_flow("nsf")
def nsf(
    dim: int,
    context_dim: int = 0,
    layers: int = 6,
    hidden_dims: Sequence[int] = (64, 64),
    bins: int = 8,
    bound: float = 5.0,
) -> Flow:
    """Rational-quadratic spline couplings (Durkan et al. 2019)."""
    univariate = RationalQuadraticSpline(bins, bound)
    return Flow(couplings(dim, univariate, context_dim, layers, hidden_dims))


@register_flow("default")
def default(
    dim: int, context_dim: int = 0, layers: int = 6, hidden_dims: Sequence[int] = (32, 32)
) -> Flow:
    """What AutoFlow uses."""
    return Flow(couplings(dim, Affine(), context_dim, layers, hidden_dims))
