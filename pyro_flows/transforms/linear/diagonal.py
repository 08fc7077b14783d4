# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Scale and shift of every coordinate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows.transforms.linear.affine import AffineMap, Tensors


class DiagonalAffine(AffineMap):
    """Shift and scale every coordinate: ``y = loc + exp(log_scale) x``.

    The trained log-scale is free, since columns of data may have any unit; what a context adds to
    it is softly bounded.

    Args:
        dim: number of coordinates.
        context_dim: width of the context; a network of it adds to ``loc`` and ``log_scale``.
        hidden_dims: widths of that network's hidden layers.

    Cost: one multiplication per coordinate in both directions.

    When to choose it: as the last layer of a stack, to take off location and scale. With a start
    from data it is :class:`ActNorm`; where coordinates are correlated take
    :class:`CholeskyAffine`.

    Example:
        >>> layer = transforms.DiagonalAffine(3, context_dim=2)
        >>> y, ladj = layer.forward_and_ladj(torch.ones(5, 3), torch.ones(2))
        >>> y.shape, ladj.shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(
        self, dim: int, context_dim: int = 0, hidden_dims: Sequence[int] = (64, 64)
    ) -> None:
        super().__init__(dim, {"log_scale": torch.zeros(dim)}, context_dim, hidden_dims)

    def _multiply(self, x: Tensor, tensors: Tensors) -> Tensor:
        return tensors["log_scale"].exp() * x

    def _divide(self, y: Tensor, tensors: Tensors) -> Tensor:
        return (-tensors["log_scale"]).exp() * y

    def _ladj(self, tensors: Tensors) -> Tensor:
        return tensors["log_scale"].sum(-1)
