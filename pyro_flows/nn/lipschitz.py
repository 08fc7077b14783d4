# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A network that can't stretch distances by more than it is told."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_flows.nn.mlp import MLP
from pyro_flows.nn.sizes import hidden_widths
from pyro_flows.ops import spectral_norm_bound

# The steepest slope of x sigmoid(x) is 1.0998.
STEEPEST = 1.1

Affine = tuple[Tensor, Tensor]


class LipschitzMLP(nn.Module):
    """A fully connected network from R^dim to itself with Lipschitz constant below ``lipschitz``.

    Each weight ``W`` is used as ``k W / sqrt(k^2 + s^2)``, ``s`` an upper bound of its largest
    singular value and ``k`` the share of one layer, so that all ``W`` are allowed and a small one
    is used as it is. Nothing is kept from call to call: the bound is safe and deterministic, where
    power iteration changes with each call and starts below the norm.

    The activation is ``x sigmoid(x) / 1.1`` (LipSwish): slope at most 1, and smooth, with second
    derivatives that don't vanish, since log-determinants are trained through the first ones.
    The last layer starts at zero, and with it the output.

    Args:
        dim: width of input and output.
        context_dim: width of the context; a network of it moves all biases, which leaves the
            Lipschitz constant in ``x`` alone.
        hidden_dims: widths of the hidden layers.
        lipschitz: the bound, in the Euclidean norm.

    Shapes: ``(*, dim)`` and a context ``(*, context_dim)`` give ``(*, dim)``.

    Cost: one matrix product per layer and value; a few per layer and call for the bounds.

    Reference: Chen et al., Residual flows, 2019, https://arxiv.org/abs/1906.02735

    Example:
        >>> net = LipschitzMLP(3, hidden_dims=(16,), lipschitz=0.5)
        >>> _ = torch.nn.init.normal_(net.linears[-1].weight, std=100.0)
        >>> a, b = torch.randn(2, 100, 3)
        >>> bool(((net(a) - net(b)).norm(dim=-1) <= 0.5 * (a - b).norm(dim=-1)).all())
        True
    """

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        *,
        hidden_dims: Sequence[int] = (64, 64),
        lipschitz: float = 0.9,
    ) -> None:
        super().__init__()
        hidden_dims = hidden_widths("LipschitzMLP", hidden_dims)
        widths = [dim, *hidden_dims, dim]
        linears = [nn.Linear(a, b) for a, b in zip(widths[:-1], widths[1:], strict=True)]
        nn.init.zeros_(linears[-1].weight)
        nn.init.zeros_(linears[-1].bias)
        self.linears = nn.ModuleList(linears)
        self.context_net = MLP(context_dim, sum(widths[1:]), hidden_dims) if context_dim else None
        self.lipschitz = lipschitz

    def affines(self, context: Tensor | None = None) -> list[Affine]:
        """Normalised weight and bias of each layer, for several calls of :func:`push`."""
        share = self.lipschitz ** (1 / len(self.linears))
        # Attributes, not get_parameter, which refuses what functional_call puts in their place.
        linears = cast("list[nn.Linear]", list(self.linears))
        weights: list[Tensor] = [linear.weight for linear in linears]
        biases: list[Tensor] = [linear.bias for linear in linears]
        if self.context_net is not None and context is not None:
            moves = self.context_net(context).split([b.shape[0] for b in biases], -1)
            biases = [b + move for b, move in zip(biases, moves, strict=True)]
        affines = []
        for weight, bias in zip(weights, biases, strict=True):
            # k / sqrt(k^2 + s^2), by the form that no s overflows.
            stretch = spectral_norm_bound(weight) / share
            affines.append((weight / torch.hypot(torch.ones_like(stretch), stretch), bias))
        return affines

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Map ``(*, dim)`` to ``(*, dim)``."""
        return push(self.affines(context), x)[0]

    def extra_repr(self) -> str:
        """The bound, for ``print``."""
        return f"lipschitz={self.lipschitz}"


def push(
    affines: Sequence[Affine], x: Tensor, tangents: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The network's value at ``x``, and its derivatives along tangents.

    Written out rather than left to forward-mode autograd, so that gradients of every order,
    ``vmap`` and compilers find plain tensor operations.

    Args:
        affines: from :meth:`LipschitzMLP.affines`.
        x: shape ``(*, dim)``.
        tangents: shape ``(*, k, dim)``, a tangent a row; none by default.

    Returns:
        The value ``(*, dim)`` and the pushed tangents ``(*, k, dim)``.
    """
    rows = x.new_zeros((0, x.shape[-1])) if tangents is None else tangents
    for i, (weight, bias) in enumerate(affines):
        x, rows = F.linear(x, weight) + bias, F.linear(rows, weight)
        if i + 1 < len(affines):
            gate = torch.sigmoid(x)
            slope = gate * (1 + x * (1 - gate)) / STEEPEST
            x, rows = x * gate / STEEPEST, rows * slope.unsqueeze(-2)
    return x, rows
