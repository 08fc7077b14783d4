# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Between a coupling's flat halves and images: where values go, where parameters come from."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_flows.errors import ShapeError


class MaskedImage(nn.Module):
    """Lays a coupling's kept values out as an image, and an image out as its parameters.

    Where the mask moves whole channels, the kept channels are an image by themselves, and only
    the moved ones get parameters. Under any other mask (a checkerboard) the image has every
    place, with zeros at the moved ones and the mask as further channels; parameters are made for
    every place, and those of the kept ones dropped.

    Args:
        mask: bool, ``C * H * W`` of them, True where moved: the flattening of ``(C, H, W)``.
        shape: ``(C, H, W)``.
        num_features: numbers a conditioner is shown of one kept value.
        num_parameters: numbers it makes for one moved value.

    Attributes:
        in_channels: channels of the image that :meth:`image` makes.
        out_channels: channels of the image that :meth:`parameters_of` takes.

    Example:
        >>> places = MaskedImage(torch.arange(8) >= 4, (2, 2, 2), num_parameters=3)
        >>> places.image(torch.zeros(5, 4)).shape, places.out_channels
        (torch.Size([5, 1, 2, 2]), 3)
        >>> places.parameters_of(torch.zeros(5, 3, 2, 2)).shape
        torch.Size([5, 12])
    """

    mask: Tensor
    place: Tensor
    moved: Tensor

    def __init__(
        self,
        mask: Sequence[bool] | Tensor,
        shape: Sequence[int],
        num_features: int = 1,
        num_parameters: int = 1,
    ) -> None:
        super().__init__()
        moves = torch.as_tensor(mask, dtype=torch.bool, device="cpu")
        count = int(moves.sum())
        if len(shape) != 3 or moves.shape != (math.prod(shape),) or not 0 < count < len(moves):
            raise ShapeError(
                "MaskedImage expected a shape (C, H, W) and a mask of length C * H * W that keeps "
                f"and moves at least one value, but got shape {tuple(shape)} and a mask of shape "
                f"{tuple(moves.shape)} that moves {count}. "
                "Use ops.channel_mask(shape) or ops.checkerboard_mask(shape)."
            )
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.num_features, self.num_parameters = num_features, num_parameters
        channels = moves.view(self.shape[0], -1)
        self.by_channel = bool((channels == channels[:, :1]).all())
        if self.by_channel:
            self.channels = int((~channels[:, 0]).sum())
            self.in_channels = self.channels * num_features
            self.out_channels = (self.shape[0] - self.channels) * num_parameters
        else:
            self.channels = self.shape[0]
            self.in_channels = self.shape[0] * (num_features + 1)
            self.out_channels = self.shape[0] * num_parameters
        # Kept values count upwards from 1; place 0 holds a zero, for the moved ones.
        place = torch.where(moves, 0, (~moves).cumsum(0))
        device = torch.empty(0).device
        self.register_buffer("mask", moves.to(device))
        self.register_buffer("place", place.to(device))
        self.register_buffer("moved", moves.nonzero()[:, 0].to(device))

    def image(self, kept: Tensor) -> Tensor:
        """Kept features ``(n, kept * num_features)`` as an image ``(n, in_channels, H, W)``."""
        count = kept.shape[0]
        if not self.by_channel:
            values = kept.unflatten(-1, (-1, self.num_features))
            zero = values.new_zeros(count, 1, self.num_features)
            kept = torch.cat([zero, values], 1).index_select(1, self.place)
        features = kept.reshape(count, self.channels, *self.shape[1:], self.num_features)
        image = features.movedim(-1, 2).flatten(1, 2)
        if self.by_channel:
            return image
        mask = self.mask.view(1, *self.shape).to(image.dtype)
        return torch.cat([image, mask.expand(count, -1, -1, -1)], 1)

    def parameters_of(self, image: Tensor) -> Tensor:
        """An image ``(n, out_channels, H, W)`` as parameters ``(n, moved * num_parameters)``."""
        by_place = image.unflatten(1, (-1, self.num_parameters)).movedim(2, -1).flatten(1, 3)
        if not self.by_channel:
            by_place = by_place.index_select(1, self.moved)
        return by_place.flatten(1)
