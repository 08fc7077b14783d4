# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Layers of images: one map at every pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_flows.errors import ShapeError
from pyro_flows.transforms.base import Layer
from pyro_flows.transforms.linear.permutation import Permute
from pyro_flows.transforms.linear.plu import PLU


class Pixelwise(Layer):
    """Apply one layer to the channels of every pixel.

    An image is a flat vector, channel by channel, as a ``(channels, height, width)`` tensor
    flattened; so flows, compositions and distributions need not know that it is one.

    Args:
        layer: a layer of ``channels`` coordinates, for example ``ActNorm(channels)``; its context
            is the whole image's.
        shape: ``(channels, height, width)``; any number of axes after the channels.

    Cost: the layer's, at every pixel. The log-determinant is the sum over pixels.

    Example:
        >>> layer = transforms.Pixelwise(transforms.ActNorm(3), shape=(3, 8, 8))
        >>> images = torch.rand(5, 3, 8, 8)
        >>> y, ladj = layer.forward_and_ladj(images.flatten(1))
        >>> y.shape, ladj.shape
        (torch.Size([5, 192]), torch.Size([5]))
    """

    def __init__(self, layer: Layer, shape: Sequence[int]) -> None:
        shape = tuple(shape)
        if len(shape) < 2 or min(shape) < 1 or shape[0] != layer.dim:
            raise ShapeError(
                f"{type(self).__name__} expected a shape (channels, height, width) with "
                f"{layer.dim} channel(s), as its layer has coordinates, but got {shape}. Build "
                "the layer with dim equal to the number of channels."
            )
        super().__init__(torch.Size(shape).numel(), layer.context_dim)
        self.layer, self.shape = layer, shape

    @property
    def domain(self) -> Any:  # type: ignore[override]
        """The layer's domain, of every pixel."""
        return self.layer.domain

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        """The layer's codomain, of every pixel."""
        return self.layer.codomain

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map every pixel."""
        y, ladj = self.layer.forward_and_ladj(self._to_pixels(x, context), context)
        return self._from_pixels(y), ladj.sum(0)

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Invert every pixel."""
        x, ladj = self.layer.inverse_and_ladj(self._to_pixels(y, context), context)
        return self._from_pixels(x), ladj.sum(0)

    def initialize(self, y: Tensor, context: Tensor | None = None) -> None:
        """Set the layer from the pixels of images ``(n, dim)``."""
        pixels = self._to_pixels(y, context)
        if context is not None:
            context = context.expand(*pixels.shape[:-1], -1).reshape(-1, self.context_dim)
        self.layer.initialize(pixels.reshape(-1, self.layer.dim), context)

    def _to_pixels(self, x: Tensor, context: Tensor | None) -> Tensor:
        """``(pixels, *, channels)``: in front, pixels share the context's batch as samples do."""
        self.check(x, context)
        if context is not None:
            batch = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
            x = x.expand(*batch, self.dim)
        return x.unflatten(-1, (self.layer.dim, -1)).movedim(-1, 0)

    def _from_pixels(self, y: Tensor) -> Tensor:
        return y.movedim(0, -1).flatten(-2)

    def extra_repr(self) -> str:
        """Sizes, for ``print``."""
        return f"{super().extra_repr()}, shape={self.shape}"


class Conv1x1(Pixelwise):
    """The invertible 1x1 convolution: one matrix ``P L U`` on the channels of every pixel.

    ``y[:, i, j] = loc + P L U x[:, i, j]``; see :class:`PLU` for the matrix and
    :class:`Pixelwise` for how images lie in flat vectors. To start at a given matrix, use
    ``Pixelwise(PLU.from_matrix(matrix), shape)``.

    Args:
        shape: ``(channels, height, width)``.
        context_dim: width of the context; a network of it adds to ``loc`` and to the factors.
        hidden_dims: widths of that network's hidden layers.
        permutation: the order of ``P``, as :class:`PLU` takes it; by default the identity.

    Cost: O(channels^2) per pixel in both directions; the log-determinant is free.

    When to choose it: between the couplings of an image flow, so that all channels meet.

    Reference: Kingma & Dhariwal 2018 (Glow), https://arxiv.org/abs/1807.03039, section 3.2.

    Example:
        >>> layer = transforms.Conv1x1((3, 4, 4), permutation=transforms.Permute.random(3))
        >>> image = torch.rand(3, 4, 4)
        >>> torch.allclose(layer.inv(layer(image.flatten())), image.flatten())
        True
    """

    def __init__(
        self,
        shape: Sequence[int],
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        permutation: Permute | int | Sequence[int] | Tensor | None = None,
    ) -> None:
        super().__init__(PLU(shape[0], context_dim, hidden_dims, permutation), shape)
