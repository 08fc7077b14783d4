# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The recipe AutoFlow uses unless told otherwise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from pyro_flows.distributions import Flow
from pyro_flows.flows.registry import register_flow
from pyro_flows.flows.stacks import couplings, stack_sizes
from pyro_flows.nn import MLP, pseudo_huber
from pyro_flows.transforms import (
    Affine,
    Cayley,
    Coupling,
    Elementwise,
    RationalQuadraticSpline,
    SinhArcsinh,
    Univariate,
)

# A chain of T states has T levels; a coupling for each would cost more than it helps.
MOST_LEVELS = 3
# Soft bound of what conditioners see, in standard deviations. Log-scales that go on growing with
# an input of hundreds, as the mouth of a funnel has, send single draws to 1e80.
REACH = 10.0
# How fast the rotation learns, over dim, since a step moves dim entries of each row alike; and the
# most coordinates it is for: it takes O(dim^3) a step.
TURNING, LARGEST_ROTATION = 1.0, 400


@register_flow("default", density="one pass", sampling="one pass", conditional=True)
def default(
    dim: int,
    context_dim: int = 0,
    *,
    layers: int = 8,
    hidden_dims: Sequence[int] | None = None,
    levels: Sequence[int] | None = None,
) -> Flow:
    """Affine couplings, the last ones along the model's hierarchy, and a rotation; for AutoFlow.

    A coordinate that hangs on others in the prior (``levels``) is moved last, by a coupling that
    sees them: the funnel of a centred hierarchical model is one such coupling, log-scale linear in
    the scale above it. The rotation turns what the couplings make along some coordinates into the
    directions where it is needed; it is left out beyond 400. Without a context, what the couplings
    see is softly bounded at ten: values are best whitened first.

    A single coordinate has no other to be moved along: it gets a spline and a sinh-arcsinh, and an
    affine map if there is a context.

    Args:
        dim: number of coordinates.
        context_dim: width of the context.
        layers: number of couplings before those along the hierarchy.
        hidden_dims: widths of each conditioner's hidden layers; by default one of twice ``dim``,
            but from 64 to 256.
        levels: depth of each coordinate in a model's hierarchy.

    Example:
        >>> flows.default(3, levels=[0, 1, 1])().rsample((5,)).shape
        torch.Size([5, 3])
    """
    dim, context_dim, layers = stack_sizes(dim, context_dim, layers)
    widths = (min(max(2 * dim, 64), 256),) if hidden_dims is None else hidden_dims
    univariate = Affine(log_scale_bound=8.0)
    if dim == 1:
        parts: list[Univariate] = [RationalQuadraticSpline(bins=16, bound=6.0), SinhArcsinh()]
        parts += [univariate] if context_dim else []
        return Flow([Elementwise(1, part, context_dim, widths) for part in parts])
    reach = math.inf if context_dim else REACH  # a context may be in any unit
    stack = couplings(
        dim, univariate, context_dim, layers, widths, activation=pseudo_huber, reach=reach
    )
    conditioner = partial(MLP, hidden_dims=widths, activation=pseudo_huber, reach=reach)
    for level in _levels_below_the_top(levels or ()):
        mask = [other == level for other in levels or ()]
        stack.append(Coupling(dim, univariate, mask, context_dim, conditioner=conditioner))
    if dim <= LARGEST_ROTATION:
        stack.append(Cayley(dim, rate=TURNING / dim, shift=False))
    return Flow(stack)


def _levels_below_the_top(levels: Sequence[int]) -> list[int]:
    """Levels worth a coupling each; none for long chains, such as time series."""
    below = sorted(set(levels) - {0})
    return below if 0 < len(below) <= MOST_LEVELS else []
