# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Recipes by autoregressive layers: one direction takes one pass, the other ``dim`` steps."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_flows.distributions import Flow
from pyro_flows.flows.registry import register_flow
from pyro_flows.flows.stacks import Linear, autoregressions
from pyro_flows.transforms import Affine, RationalQuadraticSpline


@register_flow(
    "maf",
    density="one pass",
    sampling="dim steps",
    conditional=True,
    paper="Papamakarios et al., Masked autoregressive flow",
    year=2017,
    link="https://arxiv.org/abs/1705.07057",
)
def maf(
    dim: int,
    context_dim: int = 0,
    *,
    layers: int = 5,
    hidden_dims: Sequence[int] = (64, 64),
    order: str = "reversed",
    linear: Linear = None,
) -> Flow:
    """Affine autoregressive layers, quick at scoring data.

    Args:
        dim: number of coordinates; one is moved by an affine map.
        context_dim: width of the context.
        layers: number of layers.
        hidden_dims: widths of each conditioner's hidden layers.
        order: ``"reversed"`` or ``"random"``, as layers follow one another.
        linear: a layer on the data side of each: ``"plu"``, another name, or a function of
            ``dim``.

    Example:
        >>> flow = flows.maf(3, layers=2)
        >>> flow.log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    univariate = Affine()
    stack = autoregressions(
        dim, univariate, context_dim, layers, hidden_dims, "density", order, linear
    )
    return Flow(stack)


@register_flow(
    "iaf",
    density="dim steps",
    sampling="one pass",
    conditional=True,
    paper="Kingma et al., Inverse autoregressive flow",
    year=2016,
    link="https://arxiv.org/abs/1606.04934",
)
def iaf(
    dim: int,
    context_dim: int = 0,
    *,
    layers: int = 5,
    hidden_dims: Sequence[int] = (64, 64),
    order: str = "reversed",
    linear: Linear = None,
) -> Flow:
    """Affine autoregressive layers, quick at sampling: for guides.

    Args:
        dim: number of coordinates; one is moved by an affine map.
        context_dim: width of the context.
        layers: number of layers.
        hidden_dims: widths of each conditioner's hidden layers.
        order: ``"reversed"`` or ``"random"``, as layers follow one another.
        linear: a layer on the data side of each: ``"plu"``, another name, or a function of
            ``dim``.

    Example:
        >>> flow = flows.iaf(3, layers=2)
        >>> flow().rsample((5,)).shape
        torch.Size([5, 3])
    """
    univariate = Affine()
    stack = autoregressions(
        dim, univariate, context_dim, layers, hidden_dims, "sampling", order, linear
    )
    return Flow(stack)


@register_flow(
    "nsf_ar",
    density="one pass",
    sampling="dim steps",
    conditional=True,
    paper="Durkan et al., Neural spline flows",
    year=2019,
    link="https://arxiv.org/abs/1906.04032",
)
def nsf_ar(
    dim: int,
    context_dim: int = 0,
    *,
    layers: int = 5,
    hidden_dims: Sequence[int] = (64, 64),
    bins: int = 8,
    bound: float = 5.0,
    fast: str = "density",
    order: str = "reversed",
    linear: Linear = None,
) -> Flow:
    """Rational-quadratic spline autoregressive layers.

    Args:
        dim: number of coordinates; one is moved by a spline.
        context_dim: width of the context.
        layers: number of layers.
        hidden_dims: widths of each conditioner's hidden layers.
        bins: bins of each spline.
        bound: half-width of its box, the identity outside.
        fast: the direction that takes one pass, ``"density"`` or ``"sampling"``; the other takes
            ``dim`` steps.
        order: ``"reversed"`` or ``"random"``, as layers follow one another.
        linear: a layer on the data side of each: ``"plu"``, as the paper has it, another name,
            or a function of ``dim``.

    Example:
        >>> flow = flows.nsf_ar(3, layers=2)
        >>> flow.log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    univariate = RationalQuadraticSpline(bins, bound)
    stack = autoregressions(dim, univariate, context_dim, layers, hidden_dims, fast, order, linear)
    return Flow(stack)
