# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The masked perceptron: parameters for each coordinate from those it depends on, in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_flows.errors import ShapeError
from pyro_flows.nn.dropout import WithDropout
from pyro_flows.nn.masked_walk import MaskedWalk
from pyro_flows.nn.mlp import MLP, SHORTCUT
from pyro_flows.nn.sizes import hidden_widths
from pyro_flows.nn.walk import Walk, in_generations
from pyro_flows.ops import autoregressive_masks, generations


class MaskedLinear(nn.Module):
    """A linear map with some weights held at zero, plus a dense one of the context.

    Args:
        mask: ``(out, in)``; the weight is multiplied by it, so it may scale too.
        context_dim: width of the context, which every output sees.
        bias: whether there is one.
        zero: start at zero; otherwise as torch starts a dense layer of as many inputs as each
            output really has.

    Shapes: ``(*, in), (*, context_dim) -> (*, out)``, broadcast over the leading axes.

    Example:
        >>> linear = MaskedLinear(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        >>> linear(torch.ones(5, 2)).shape
        torch.Size([5, 2])
    """

    mask: Tensor

    def __init__(
        self, mask: Tensor, context_dim: int = 0, *, bias: bool = True, zero: bool = False
    ) -> None:
        super().__init__()
        blank = torch.empty(0)
        self.register_buffer("mask", mask.to(blank))
        self.register_parameter("context_weight", None)
        self.register_parameter("bias", None)
        fan_in = ((mask != 0).sum(1, keepdim=True) + context_dim).clamp_min(1).to(blank)
        size = fan_in.rsqrt() * (0 if zero else 1)
        out_dim, in_dim = mask.shape
        self.weight = nn.Parameter(size * (2 * torch.rand(out_dim, in_dim) - 1))
        if context_dim:
            self.context_weight = nn.Parameter(size * (2 * torch.rand(out_dim, context_dim) - 1))
        if bias:
            self.bias = nn.Parameter(size[:, 0] * (2 * torch.rand(out_dim) - 1))

    def masked_weight(self) -> Tensor:
        """The weight as it acts."""
        return self.weight * self.mask

    def constant(self, context: Tensor | None) -> Tensor:
        """What bias and context add."""
        if self.context_weight is None or context is None:
            return self.weight.new_zeros(len(self.weight)) if self.bias is None else self.bias
        return F.linear(context, self.context_weight, self.bias)

    def given(self, context: Tensor | None) -> Callable[[Tensor], Tensor]:
        """The map of ``x`` alone: the weight masked and the context added up, once."""
        weight = self.masked_weight()
        if self.context_weight is None or context is None:
            return lambda x: F.linear(x, weight, self.bias)
        shift = F.linear(context, self.context_weight, self.bias)
        return lambda x: F.linear(x, weight) + shift

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``(*, in)`` to ``(*, out)``."""
        return self.given(context)(x)

    def extra_repr(self) -> str:
        """Widths in words, for ``print``."""
        return f"in_dim={self.mask.shape[1]}, out_dim={self.mask.shape[0]}"


class MaskedMLP(WithDropout):
    """Parameters of each coordinate from the coordinates it depends on, and from the context.

    A perceptron whose weights are masked so that the parameters of coordinate ``i`` see coordinate
    ``j`` only where ``adjacency[i, j]``; all of them, and all hidden units, see the context. Like
    :class:`MLP` it has a linear shortcut, its outputs start at zero, and are divided by the number
    of units each of them sees, so that one learning rate serves all.

    Args:
        adjacency: bool ``(D, D)`` without cycles; see :func:`pyro_flows.ops.order_adjacency`.
        num_parameters: numbers made for each coordinate.
        num_features: numbers shown of each coordinate.
        context_dim: width of the context.
        hidden_dims: widths of the hidden layers, any: with fewer units than there are different
            dependencies, some of these are served by smaller ones, and all by the shortcut.
        activation: elementwise nonlinearity.
        residual: add to each hidden layer the one before; all must then have one width.

    Shapes: ``(*, D, num_features), (*, context_dim) -> (*, D, num_parameters)``.

    Cost: that of an :class:`MLP`, plus one product of weights and masks. A :meth:`walk` computes
    each unit once, in as many steps as the graph is deep.

    Reference: MADE, Germain et al. 2015, arXiv:1502.03509.

    Example:
        >>> net = MaskedMLP(order_adjacency(3), 2, hidden_dims=(16, 16))
        >>> net(torch.ones(7, 3, 1)).shape
        torch.Size([7, 3, 2])
    """

    sequence: Tensor
    generation: list[int]

    def __init__(
        self,
        adjacency: Tensor,
        num_parameters: int,
        *,
        num_features: int = 1,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        activation: Callable[[Tensor], Tensor] = torch.tanh,
        residual: bool = False,
    ) -> None:
        super().__init__()
        hidden_dims = hidden_widths("MaskedMLP", hidden_dims)
        if residual and len(set(hidden_dims)) > 1:
            raise ShapeError(
                "MaskedMLP expected hidden layers of one width where residual=True, but got "
                f"hidden_dims={hidden_dims}. Give equal widths, or residual=False."
            )
        self.activation, self.residual = activation, residual
        generation = generations(adjacency)
        self.starts = in_generations(self, generation)
        self.shape = (len(generation), num_parameters)
        self.hidden = nn.ModuleList()
        self.plain: MLP | None = None
        self.shortcut: MaskedLinear | None = None
        self.known: list[list[int]] = []
        if adjacency.any():
            self._build(adjacency, generation, num_features, context_dim, hidden_dims)
        else:
            self.plain = MLP(context_dim, self.shape[0] * num_parameters, hidden_dims, activation)

    def _build(
        self,
        adjacency: Tensor,
        generation: Tensor,
        num_features: int,
        context_dim: int,
        hidden_dims: Sequence[int],
    ) -> None:
        inputs = adjacency.to("cpu", torch.bool).repeat_interleave(num_features, 1)
        # For the masks a context is one more input, seen by all; its own weights are dense.
        seen = F.pad(inputs, (0, min(context_dim, 1)), value=True)
        masks, units = autoregressive_masks(seen, generation, hidden_dims)
        masks[0] = masks[0][:, : inputs.shape[1]]
        contexts = [context_dim] + [0] * len(hidden_dims)
        layers = [MaskedLinear(mask, c) for mask, c in zip(masks[:-1], contexts, strict=False)]
        self.hidden = nn.ModuleList(layers)
        last = masks[-1].repeat_interleave(self.shape[1], 0).double()
        if hidden_dims:
            last = last / last.sum(1, keepdim=True).clamp_min(1)
            direct = SHORTCUT * inputs.repeat_interleave(self.shape[1], 0).double()
            self.shortcut = MaskedLinear(direct, context_dim, bias=False, zero=True)
        self.last = MaskedLinear(last, contexts[-1], zero=True)
        times = torch.arange(len(self.starts), device="cpu")
        # For each layer, how many of its units the outputs of each generation may read.
        self.known = [torch.searchsorted(of, times, right=True).tolist() for of in units]

    def forward(self, features: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters of all coordinates at once."""
        return self.given(context)(features)

    def given(self, context: Tensor | None) -> Callable[[Tensor], Tensor]:
        """The map of features alone, for several passes: what they share is computed once."""
        if self.plain is not None:
            return partial(self._constant, self.plain, context)
        hidden = [cast(MaskedLinear, linear).given(context) for linear in self.hidden]
        last = self.last.given(context)
        shortcut = None if self.shortcut is None else self.shortcut.given(context)

        def net(features: Tensor) -> Tensor:
            x = features.flatten(-2)
            h = x
            for k, linear in enumerate(hidden):
                new = self.drop(self.activation(linear(h)))
                h = h + new if self.residual and k else new
            y = last(h) if shortcut is None else last(h) + shortcut(x)
            return y.unflatten(-1, self.shape)

        return net

    def _constant(self, plain: MLP, context: Tensor | None, features: Tensor) -> Tensor:
        flat: Tensor = plain(features[..., 0, :0] if context is None else context)
        return flat.unflatten(-1, self.shape)

    def walk(self, context: Tensor | None, batch_shape: torch.Size) -> Walk:
        """Begin to go through the coordinates; see :class:`pyro_flows.nn.walk.Walkable`."""
        return MaskedWalk(self, context, batch_shape)

    def extra_repr(self) -> str:
        """Sizes in words, for ``print``."""
        return f"dim={self.shape[0]}, num_parameters={self.shape[1]}, depth={len(self.starts) - 1}"
