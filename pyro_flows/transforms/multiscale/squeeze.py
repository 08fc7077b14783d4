# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Space to depth: neighbouring pixels become channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from pyro_flows.errors import ShapeError
from pyro_flows.nn.sizes import image_shape
from pyro_flows.transforms.base import Layer


class Squeeze(Layer):
    """Turn every square of ``factor x factor`` pixels into one pixel with more channels.

    ``y[(a f + b) C + c, i, j] = x[c, i f + a, j f + b]`` with ``f = factor``: a fixed permutation,
    log-determinant 0. An image is a flat vector, the flattening of ``(C, H, W)``; the result is
    that of ``out_shape = (C f^2, H / f, W / f)``. The first ``C`` new channels are the image at
    every ``f``-th pixel.

    Layers go from base to data, so at the data's end of a flow stands ``Squeeze(shape).inv``.

    Args:
        shape: ``(C, H, W)``.
        factor: side of the squares; must divide ``H`` and ``W``.

    Raises:
        ShapeError: it doesn't, or the shape is no image's.

    Cost: one copy in both directions.

    When to choose it: before couplings that halve the channels of an image, and between the
    resolutions of a :class:`Multiscale` flow.

    Reference: Dinh et al., Density estimation using Real NVP, 2016, section 3.6,
    https://arxiv.org/abs/1605.08803.

    Example:
        >>> layer = transforms.Squeeze((3, 8, 6))
        >>> layer.out_shape, layer(torch.rand(5, 3 * 8 * 6)).shape
        ((12, 4, 3), torch.Size([5, 144]))
        >>> transforms.Squeeze((1, 2, 4))(torch.arange(8.0)).view(4, 1, 2).tolist()
        [[[0.0, 2.0]], [[1.0, 3.0]], [[4.0, 6.0]], [[5.0, 7.0]]]
    """

    def __init__(self, shape: Sequence[int], factor: int = 2) -> None:
        channels, height, width = image_shape("Squeeze", shape)
        if factor < 1 or height % factor or width % factor:
            raise ShapeError(
                f"Squeeze expected a height and width that factor={factor} divides, but got shape "
                f"{(channels, height, width)}. Pad the images, or choose another factor."
            )
        super().__init__(math.prod(shape))
        self.shape, self.factor = (channels, height, width), factor
        self.out_shape = (channels * factor**2, height // factor, width // factor)

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Space to depth."""
        self.check(x, context)
        channels, f, (_, rows, columns) = self.shape[0], self.factor, self.out_shape
        pixels = x.reshape(*x.shape[:-1], channels, rows, f, columns, f)
        y = pixels.movedim((-3, -1, -5), (-5, -4, -3)).reshape(x.shape)
        return y, x.new_zeros(x.shape[:-1])

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Depth to space."""
        self.check(y, context)
        channels, f, (_, rows, columns) = self.shape[0], self.factor, self.out_shape
        pixels = y.reshape(*y.shape[:-1], f, f, channels, rows, columns)
        x = pixels.movedim((-5, -4, -3), (-3, -1, -5)).reshape(y.shape)
        return x, y.new_zeros(y.shape[:-1])

    def extra_repr(self) -> str:
        """Shapes in words, for ``print``."""
        return f"shape={self.shape}, out_shape={self.out_shape}"
