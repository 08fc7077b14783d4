# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A network that says in which direction, and how fast, a point moves at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_flows.nn.mlp import MLP, SHORTCUT


class VectorField(nn.Module):
    """``f(t, z, context)``: an MLP of all three with tanh units, zero at the start.

    Args:
        dim: width of ``z`` and of the result.
        context_dim: width of the context.
        hidden_dims: widths of the hidden layers.

    Shapes: ``z`` of ``(*, dim)``, ``t`` a number or of shape ``(*, 1)``, and a context
    ``(*, context_dim)`` give ``(*, dim)``.

    Cost: one pass of the MLP; :meth:`push` one more for each tangent.

    Example:
        >>> field = VectorField(3, context_dim=2, hidden_dims=(16,))
        >>> field(0.5, torch.ones(5, 3), torch.ones(5, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self, dim: int, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__()
        self.dim = dim
        self.net = MLP(dim + 1 + context_dim, dim, hidden_dims)

    def _inputs(self, t: float | Tensor, z: Tensor, context: Tensor | None) -> Tensor:
        time = t + torch.zeros_like(z[..., :1])
        return torch.cat([z, time] if context is None else [z, time, context], -1)

    def forward(self, t: float | Tensor, z: Tensor, context: Tensor | None = None) -> Tensor:
        """The velocity at ``z``."""
        velocity: Tensor = self.net(self._inputs(t, z, context))
        return velocity

    def push(
        self, t: float | Tensor, z: Tensor, context: Tensor | None, tangents: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The velocity, and its derivatives along ``tangents``, shape ``(*, k, dim)``, a row each.

        Written out rather than left to forward-mode autograd, so that gradients of every order,
        ``vmap`` and compilers find plain tensor operations.
        """
        *hidden, last = cast("list[nn.Linear]", list(self.net.linears))
        x = self._inputs(t, z, context)
        h, rows = x, F.pad(tangents, (0, x.shape[-1] - self.dim))
        for linear in hidden:
            h = torch.tanh(linear(h))
            rows = F.linear(rows, linear.weight)
            rows = rows * (1 - h * h).unsqueeze(-2)
        width = h.shape[-1]
        value, rows = last(h) / width, F.linear(rows, last.weight) / width
        if self.net.shortcut is not None:
            weight = self.net.shortcut.weight
            value = value + SHORTCUT * self.net.shortcut(x)
            rows = rows + SHORTCUT * F.linear(tangents, weight[:, : self.dim])
        return value, rows
