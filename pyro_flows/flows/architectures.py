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
    Coupling,
    Elementwise,
    Layer,
    RationalQuadraticSpline,
    Shift,
    Univariate,
)

# A chain of T states has T levels; a coupling for each would cost more than it helps.
MOST_LEVELS = 3


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
    dim: int,
    context_dim: int = 0,
    layers: int = 6,
    hidden_dims: Sequence[int] = (64,),
    levels: Sequence[int] | None = None,
) -> Flow:
    """Affine couplings, the last ones along the model's hierarchy; what AutoFlow uses.

    A coordinate that hangs on others in the prior (``levels``) is moved last, by a coupling that
    sees them: the funnel of a centred hierarchical model is one such coupling, log-scale linear in
    the scale above it.
    """
    univariate = Affine(log_scale_bound=4.0)
    stack = couplings(dim, univariate, context_dim, layers, hidden_dims)
    for level in _levels_below_the_top(levels or ()):
        mask = [other == level for other in levels or ()]
        stack.append(Coupling(dim, univariate, mask, context_dim, hidden_dims))
    return Flow(stack)


def _levels_below_the_top(levels: Sequence[int]) -> list[int]:
    """Levels worth a coupling each; none for long chains, such as time series."""
    below = sorted(set(levels) - {0})
    return below if 0 < len(below) <= MOST_LEVELS else []
