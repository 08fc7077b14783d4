# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Recipes by autoregressive layers whose univariates are networks or polynomials."""

from __future__ import annotations

from collections.abc import Sequence

from pyro_flows.distributions import Flow
from pyro_flows.flows.registry import register_flow
from pyro_flows.flows.stacks import Linear, autoregressions
from pyro_flows.transforms import Bernstein, DeepSigmoidal, MonotonicNetwork, SumOfSquares


@register_flow(
    "naf",
    density="one pass",
    sampling="dim steps with roots",
    conditional=True,
    paper="Huang et al., Neural autoregressive flows",
    year=2018,
    link="https://arxiv.org/abs/1804.00779",
)
def naf(
    dim: int,
    context_dim: int = 0,
    *,
    layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    hidden: int = 8,
    depth: int = 1,
    fast: str = "density",
    order: str = "reversed",
    linear: Linear = None,
) -> Flow:
    """Autoregressive layers of deep sigmoidal networks.

    Args:
        dim: number of coordinates; one is moved by such a network.
        context_dim: width of the context.
        layers: number of layers.
        hidden_dims: widths of each conditioner's hidden layers.
        hidden: sigmoids in each layer of the network that moves a coordinate.
        depth: layers of that network; 2 or more make the paper's dense variant, which can be so
            flat that values of 1e3 are inverted to few digits.
        fast: the direction that takes one pass, ``"density"`` or ``"sampling"``; the other takes
            ``dim`` steps with roots.
        order: ``"reversed"`` or ``"random"``, as layers follow one another.
        linear: a layer on the data side of each: ``"plu"``, another name, or a function of
            ``dim``.

    Example:
        >>> flow = flows.naf(3, layers=2)
        >>> flow.log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    univariate = DeepSigmoidal(hidden, depth)
    stack = autoregressions(dim, univariate, context_dim, layers, hidden_dims, fast, order, linear)
    return Flow(stack)


@register_flow(
    "unaf",
    density="one pass",
    sampling="dim steps with roots",
    conditional=True,
    paper="Wehenkel and Louppe, Unconstrained monotonic neural networks",
    year=2019,
    link="https://arxiv.org/abs/1908.05164",
)
def unaf(
    dim: int,
    context_dim: int = 0,
    *,
    layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    hidden: int = 8,
    bound: float = 5.0,
    fast: str = "density",
    order: str = "reversed",
    linear: Linear = None,
) -> Flow:
    """Autoregressive layers of integrals of positive networks.

    Args:
        dim: number of coordinates; one is moved by such an integral.
        context_dim: width of the context.
        layers: number of layers.
        hidden_dims: widths of each conditioner's hidden layers.
        hidden: hidden units of the network that is integrated.
        bound: half-width of the box where it is; outside, the map is linear.
        fast: the direction that takes one pass, ``"density"`` or ``"sampling"``; the other takes
            ``dim`` steps with roots.
        order: ``"reversed"`` or ``"random"``, as layers follow one another.
        linear: a layer on the data side of each: ``"plu"``, another name, or a function of
            ``dim``.

    Example:
        >>> flow = flows.unaf(3, layers=2)
        >>> flow.log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    univariate = MonotonicNetwork(hidden, bound, nodes=max(48, int(10 * bound)))
    stack = autoregressions(dim, univariate, context_dim, layers, hidden_dims, fast, order, linear)
    return Flow(stack)


@register_flow(
    "sospf",
    density="one pass",
    sampling="dim steps with roots",
    conditional=True,
    paper="Jaini et al., Sum-of-squares polynomial flow",
    year=2019,
    link="https://arxiv.org/abs/1905.02325",
)
def sospf(
    dim: int,
    context_dim: int = 0,
    *,
    layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    polynomials: int = 3,
    degree: int = 3,
    bound: float = 5.0,
    fast: str = "density",
    order: str = "reversed",
    linear: Linear = None,
) -> Flow:
    """Autoregressive layers of sums of squares of polynomials.

    Args:
        dim: number of coordinates; one is moved by such a polynomial.
        context_dim: width of the context.
        layers: number of layers.
        hidden_dims: widths of each conditioner's hidden layers.
        polynomials: number of squares.
        degree: degree of each polynomial.
        bound: half-width of the box of the polynomials; outside, the map is linear.
        fast: the direction that takes one pass, ``"density"`` or ``"sampling"``; the other takes
            ``dim`` steps with roots.
        order: ``"reversed"`` or ``"random"``, as layers follow one another.
        linear: a layer on the data side of each: ``"plu"``, another name, or a function of
            ``dim``.

    Example:
        >>> flow = flows.sospf(3, layers=2)
        >>> flow.log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    univariate = SumOfSquares(polynomials, degree, bound)
    stack = autoregressions(dim, univariate, context_dim, layers, hidden_dims, fast, order, linear)
    return Flow(stack)


@register_flow(
    "bpf",
    density="one pass",
    sampling="dim steps with roots",
    conditional=True,
    paper="Ramasinghe et al., Robust normalizing flows using Bernstein-type polynomials",
    year=2021,
    link="https://arxiv.org/abs/2102.03509",
)
def bpf(
    dim: int,
    context_dim: int = 0,
    *,
    layers: int = 3,
    hidden_dims: Sequence[int] = (64, 64),
    degree: int = 16,
    bound: float = 5.0,
    fast: str = "density",
    order: str = "reversed",
    linear: Linear = None,
) -> Flow:
    """Autoregressive layers of Bernstein polynomials.

    Args:
        dim: number of coordinates; one is moved by such a polynomial.
        context_dim: width of the context.
        layers: number of layers.
        hidden_dims: widths of each conditioner's hidden layers.
        degree: degree of the polynomial.
        bound: half-width of its box; outside, the map is linear.
        fast: the direction that takes one pass, ``"density"`` or ``"sampling"``; the other takes
            ``dim`` steps with roots.
        order: ``"reversed"`` or ``"random"``, as layers follow one another.
        linear: a layer on the data side of each: ``"plu"``, another name, or a function of
            ``dim``.

    Example:
        >>> flow = flows.bpf(3, layers=2)
        >>> flow.log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    univariate = Bernstein(degree, bound)
    stack = autoregressions(dim, univariate, context_dim, layers, hidden_dims, fast, order, linear)
    return Flow(stack)
