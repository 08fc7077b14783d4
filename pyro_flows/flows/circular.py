# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The recipe for angles."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_flows.distributions import Flow, UniformBox
from pyro_flows.flows.registry import register_flow
from pyro_flows.flows.stacks import autoregressions
from pyro_flows.transforms import CircularSpline


@register_flow(
    "ncsf",
    density="one pass",
    sampling="dim steps",
    conditional=True,
    space="angles in [-pi, pi]",
    paper="Rezende et al., Normalizing flows on tori and spheres",
    year=2020,
    link="https://arxiv.org/abs/2002.02428",
)
def ncsf(
    dim: int,
    context_dim: int = 0,
    *,
    layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    bins: int = 8,
    fast: str = "density",
    order: str = "reversed",
) -> Flow:
    """Circular spline autoregressive layers, for angles.

    The base is uniform; values are angles from ``-pi`` to ``pi``
    (:func:`pyro_flows.ops.wrap` brings others there).

    Args:
        dim: number of angles.
        context_dim: width of the context.
        layers: number of layers.
        hidden_dims: widths of each conditioner's hidden layers.
        bins: bins of each spline.
        fast: the direction that takes one pass, ``"density"`` or ``"sampling"``; the other takes
            ``dim`` steps.
        order: ``"reversed"`` or ``"random"``, as layers follow one another.

    Example:
        >>> angles = flows.ncsf(3)().sample((5,))
        >>> angles.shape, bool((angles.abs() <= torch.pi).all())
        (torch.Size([5, 3]), True)
    """
    univariate = CircularSpline(bins)
    stack = autoregressions(
        dim, univariate, context_dim, layers, hidden_dims, fast, order, linear=None
    )
    return Flow(stack, UniformBox(dim))
