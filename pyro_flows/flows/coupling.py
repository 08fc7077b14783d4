# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Recipes by couplings: both directions cost one pass. Every one starts as the identity."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_flows.distributions import Flow
from pyro_flows.flows.registry import register_flow
from pyro_flows.flows.stacks import Linear, couplings
from pyro_flows.transforms import Affine, RationalQuadraticSpline, Shift


@register_flow(
    "nice",
    density="one pass",
    sampling="one pass",
    conditional=True,
    paper="Dinh et al., NICE",
    year=2014,
    link="https://arxiv.org/abs/1410.8516",
)
def nice(
    dim: int,
    context_dim: int = 0,
    *,
    layers: int = 6,
    hidden_dims: Sequence[int] = (64, 64),
    linear: Linear = None,
) -> Flow:
    """Additive couplings, volume preserving.

    Args:
        dim: number of coordinates; one is moved by a shift.
        context_dim: width of the context.
        layers: number of couplings.
        hidden_dims: widths of each conditioner's hidden layers.
        linear: a layer on the data side of each coupling: ``"plu"``, another name, or a function
            of ``dim``. It has the scales that shifts lack.

    Example:
        >>> flows.nice(3)().rsample((5,)).shape
        torch.Size([5, 3])
    """
    return Flow(couplings(dim, Shift(), context_dim, layers, hidden_dims, linear))


@register_flow(
    "realnvp",
    density="one pass",
    sampling="one pass",
    conditional=True,
    paper="Dinh et al., Density estimation using Real NVP",
    year=2016,
    link="https://arxiv.org/abs/1605.08803",
)
def realnvp(
    dim: int,
    context_dim: int = 0,
    *,
    layers: int = 6,
    hidden_dims: Sequence[int] = (64, 64),
    linear: Linear = None,
) -> Flow:
    """Affine couplings.

    Args:
        dim: number of coordinates; one is moved by an affine map.
        context_dim: width of the context.
        layers: number of couplings.
        hidden_dims: widths of each conditioner's hidden layers.
        linear: a layer on the data side of each coupling: ``"plu"``, another name, or a function
            of ``dim``.

    Example:
        >>> flows.realnvp(3, context_dim=2)(torch.zeros(5, 2)).rsample().shape
        torch.Size([5, 3])
    """
    return Flow(couplings(dim, Affine(), context_dim, layers, hidden_dims, linear))


@register_flow(
    "nsf",
    density="one pass",
    sampling="one pass",
    conditional=True,
    paper="Durkan et al., Neural spline flows",
    year=2019,
    link="https://arxiv.org/abs/1906.04032",
)
def nsf(
    dim: int,
    context_dim: int = 0,
    *,
    layers: int = 10,
    hidden_dims: Sequence[int] = (32, 32),
    bins: int = 8,
    bound: float = 5.0,
    linear: Linear = "plu",
) -> Flow:
    """Rational-quadratic spline couplings.

    Args:
        dim: number of coordinates; one is moved by a spline.
        context_dim: width of the context.
        layers: number of couplings.
        hidden_dims: widths of each conditioner's hidden layers.
        bins: bins of each spline.
        bound: half-width of its box, the identity outside.
        linear: a layer on the data side of each coupling: ``"plu"``, as the paper has it,
            another name, a function of ``dim``, or None.

    Example:
        >>> flow = flows.nsf(3, layers=4, bins=16)
        >>> flow.log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    univariate = RationalQuadraticSpline(bins, bound)
    return Flow(couplings(dim, univariate, context_dim, layers, hidden_dims, linear))
