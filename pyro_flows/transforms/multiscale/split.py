# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Part of the vector goes through more layers than the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_flows.errors import ShapeError
from pyro_flows.transforms.base import Layer
from pyro_flows.transforms.compose import Compose


class Split(Layer):
    """Apply a layer to the first coordinates, and hand the others to the base as they are.

    ``y[:k] = layer(x[:k])``, ``y[k:] = x[k:]`` with ``k = layer.dim``.

    Args:
        dim: number of all coordinates, more than the layer's.
        layer: a layer of real vectors, for the first ``layer.dim`` coordinates; of an image, its
            first channels.

    Raises:
        ShapeError: nothing is left to hand over, or the layer maps another space.

    Cost: the layer's, and one copy.

    When to choose it: for :class:`Multiscale` flows, which are made of it; by itself where some
    coordinates need more layers than others.

    Example:
        >>> layer = transforms.Split(5, transforms.AffineCoupling(3))
        >>> x = torch.randn(7, 5)
        >>> torch.equal(layer(x)[:, 3:], x[:, 3:])
        True
    """

    def __init__(self, dim: int, layer: Layer) -> None:
        super().__init__(dim, layer.context_dim)
        if layer.dim >= dim:
            raise ShapeError(
                f"Split expected a layer of fewer than dim={dim} coordinates, but got one of "
                f"{layer.dim}. Use the layer itself where nothing is split off."
            )
        if any(s is not constraints.real_vector for s in (layer.domain, layer.codomain)):
            raise ShapeError(
                f"Split expected a layer of real vectors, but got {type(layer).__name__} from "
                f"{layer.domain} to {layer.codomain}. Put maps of other spaces after it."
            )
        self.layer = layer

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the layer on the first coordinates."""
        self.check(x, context)
        y, ladj = self.layer.forward_and_ladj(x[..., : self.layer.dim], context)
        return self._join(y, x), ladj

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run its inverse on them."""
        self.check(y, context)
        x, ladj = self.layer.inverse_and_ladj(y[..., : self.layer.dim], context)
        return self._join(x, y), ladj

    def initialize(self, y: Tensor, context: Tensor | None = None) -> None:
        """Set the layer from the first coordinates of values ``(n, dim)``."""
        self.check(y, context)
        self.layer.initialize(y[..., : self.layer.dim], context)

    def _join(self, first: Tensor, whole: Tensor) -> Tensor:
        rest = whole[..., self.layer.dim :]
        return torch.cat([first, rest.expand(*first.shape[:-1], -1)], -1)


class Multiscale(Compose):
    """Stages of growing size: each takes what the one before made, and fresh base coordinates.

    The base's first ``d_1`` coordinates go through the first stage; its result and the next
    ``d_2 - d_1`` base coordinates through the second; and so on to the data. Seen from the data:
    after each stage's inverse the last coordinates are finished, and the first ones go on.

    For images the stages end in :class:`Squeeze`'s inverse, so that later ones work at a higher
    resolution: :func:`glow_stack` builds that. What is handed over is standard normal in the base;
    a coupling of the fresh coordinates at the start of a stage, conditioned on the others, makes
    its mean and scale depend on the coarser image.

    Args:
        stages: layers from base to data, each of more coordinates than the one before; all
            ``context_dim`` are equal or 0.

    Raises:
        ShapeError: a stage isn't larger than the one before.

    Cost: the stages', each on its own part only: with halves, all together at most twice the
    last one's.

    When to choose it: for images and other data with many coordinates, most of which are detail
    that needs few layers.

    Reference: Dinh et al., Density estimation using Real NVP, 2016, section 3.6,
    https://arxiv.org/abs/1605.08803.

    Example:
        >>> coarse, fine = transforms.AffineCoupling(3), transforms.AffineCoupling(5)
        >>> layer = transforms.Multiscale([coarse, fine])
        >>> y, ladj = layer.forward_and_ladj(torch.randn(7, 5))
        >>> y.shape, ladj.shape
        (torch.Size([7, 5]), torch.Size([7]))
    """

    def __init__(self, stages: Sequence[Layer]) -> None:
        dims = [stage.dim for stage in stages]
        if any(small >= large for small, large in zip(dims, dims[1:], strict=False)):
            raise ShapeError(
                "Multiscale expected stages from base to data, each of more coordinates than the "
                f"one before, but got dims {dims}. Put layers of one size into one stage by "
                "Compose."
            )
        if len(stages) < 2:
            super().__init__(stages)
            return
        *before, last = stages
        inner = Multiscale(before) if len(before) > 1 else before[0]
        super().__init__([Split(last.dim, inner), last])
