# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""How recipes stack layers: masks and orders that let all meet, linear layers between."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from functools import partial

import torch
from torch import Tensor

from pyro_flows.errors import OptionError
from pyro_flows.nn import MLP
from pyro_flows.nn.sizes import check_sizes, is_size
from pyro_flows.ops import alternating_masks
from pyro_flows.transforms import (
    PLU,
    ActNorm,
    Autoregressive,
    CholeskyAffine,
    Coupling,
    Elementwise,
    Householder,
    Layer,
    Permute,
    Univariate,
)

#: What ``linear=`` takes: one of these names, a function of ``dim`` that makes a layer, or None.
Linear = str | Callable[[int], Layer] | None
Activation = Callable[[Tensor], Tensor]
LINEAR: dict[str, Callable[[int], Layer]] = {
    "actnorm": ActNorm,
    "cholesky": CholeskyAffine,
    "householder": Householder,
    "plu": PLU,
    "reverse": Permute,
}


def couplings(
    dim: int,
    univariate: Univariate,
    context_dim: int,
    layers: int,
    hidden_dims: Sequence[int],
    linear: Linear = None,
    activation: Activation = torch.tanh,
    reach: float = math.inf,
) -> list[Layer]:
    """A stack of couplings whose masks reach every coordinate; elementwise at ``dim=1``."""
    dim, context_dim, layers = stack_sizes(dim, context_dim, layers)
    if dim == 1:
        return [Elementwise(1, univariate, context_dim, hidden_dims)]
    conditioner = partial(MLP, hidden_dims=hidden_dims, activation=activation, reach=reach)
    stack = [
        Coupling(dim, univariate, mask, context_dim, conditioner=conditioner)
        for mask in alternating_masks(dim, layers)
    ]
    return interleave(stack, linear)


def autoregressions(
    dim: int,
    univariate: Univariate,
    context_dim: int,
    layers: int,
    hidden_dims: Sequence[int],
    fast: str,
    order: str,
    linear: Linear,
) -> list[Layer]:
    """A stack of autoregressive layers of different orders; elementwise at ``dim=1``.

    Args:
        dim: number of coordinates.
        univariate: what moves each.
        context_dim: width of the context.
        layers: number of layers.
        hidden_dims: widths of each conditioner's hidden layers.
        fast: which direction takes one pass: ``"density"``, from data to base (as MAF), or
            ``"sampling"`` (as IAF).
        order: ``"reversed"``: every other layer goes backwards; ``"random"``: each has an order
            of its own, from its number as seed.
        linear: layers between, as :func:`interleave` takes them.
    """
    dim, context_dim, layers = stack_sizes(dim, context_dim, layers)
    check_choice("fast", fast, ("density", "sampling"))
    check_choice("order", order, ("reversed", "random"))
    stack: list[Layer] = [
        Autoregressive(
            dim,
            univariate,
            order=order if order == "random" or k % 2 else "natural",
            context_dim=context_dim,
            hidden_dims=hidden_dims,
            seed=k,
        )
        for k in range(layers)
    ]
    if dim == 1:
        stack = [Elementwise(1, univariate, context_dim, hidden_dims)]
    if fast == "density":
        stack = [layer.inv for layer in stack]
    return stack if dim == 1 else interleave(stack, linear)


def interleave(stack: Sequence[Layer], linear: Linear) -> list[Layer]:
    """A fresh linear layer on the data side of each layer; none if ``linear`` is None.

    Args:
        stack: layers from base to data.
        linear: a name (``"plu"``, ``"cholesky"``, ``"householder"``, ``"reverse"``,
            ``"actnorm"``), or a function of ``dim`` that makes a layer.
    """
    if linear is None:
        return list(stack)
    if not (isinstance(linear, str) or callable(linear)):
        raise OptionError(
            f"This flow expected linear to be one of {', '.join(LINEAR)}, a function of dim, or "
            f"None, but got {linear!r}."
        )
    if isinstance(linear, str):
        check_choice("linear", linear, LINEAR)
        linear = LINEAR[linear]
    return [part for layer in stack for part in (layer, linear(layer.dim))]


def stack_sizes(dim: int, context_dim: int, layers: int) -> tuple[int, int, int]:
    """These sizes as integers of Python; layers may be 0.

    Raises:
        ShapeError: no value has such a size.
        OptionError: no stack has so many layers.
    """
    check_sizes("This flow", dim, context_dim)
    if not is_size(layers, least=0):
        raise OptionError(
            f"This flow expected layers to be an integer >= 1, but got {layers!r}. Leave it out "
            "for the default."
        )
    return int(dim), int(context_dim), int(layers)


def check_choice(option: str, value: str, choices: Collection[str]) -> None:
    """Raise OptionError unless ``value`` is one of the choices."""
    if value not in choices:
        raise OptionError(
            f"This flow expected {option} to be one of {', '.join(choices)}, but got {value!r}."
        )
