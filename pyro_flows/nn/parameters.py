# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Parameters of a layer: trained directly, or moved by a context."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from pyro_flows.nn.mlp import MLP
from pyro_flows.ops import soft_clamp


class Parameters(nn.Module):
    """Named tensors, each a trained start plus, with a context, what a network makes of it.

    What lets one class of layer serve plain and conditional use: the layer asks for its tensors
    and broadcasts over their leading axes.

    Args:
        start: name -> initial value, of the tensor's shape.
        context_dim: width of the context; 0 for none.
        hidden_dims: widths of the network's hidden layers. Its output starts at zero.
        bounds: name -> soft bound of what a context adds to that tensor. A scale that is the
            exponential of an unbounded network diverges in training.

    Shapes: ``forward(None)`` gives each tensor as it is; ``forward(context)`` with a context
    ``(*, context_dim)`` gives them with the context's leading axes in front. Cost: none, or one
    pass of the network.

    Example:
        >>> parameters = Parameters({"loc": torch.zeros(3)}, context_dim=2)
        >>> parameters(torch.ones(5, 2))["loc"].shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        start: Mapping[str, Tensor],
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        bounds: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.start = nn.ParameterDict({k: nn.Parameter(v.clone()) for k, v in start.items()})
        self.shapes = {name: tuple(value.shape) for name, value in start.items()}
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.bounds = dict(bounds or {})
        self.net = MLP(context_dim, sum(self.sizes), hidden_dims) if context_dim else None

    def forward(self, context: Tensor | None = None) -> dict[str, Tensor]:
        """Tensors by name."""
        start = {name: self.start[name] for name in self.shapes}
        if self.net is None or context is None:
            return start
        moves = self.net(context).split(self.sizes, dim=-1)
        batch = context.shape[:-1]
        return {
            name: start[name] + self._bounded(name, move).reshape((*batch, *shape))
            for (name, shape), move in zip(self.shapes.items(), moves, strict=True)
        }

    def _bounded(self, name: str, move: Tensor) -> Tensor:
        return soft_clamp(move, self.bounds[name]) if name in self.bounds else move
