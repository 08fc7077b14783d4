# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The convolutional conditioner of image couplings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn import functional

from pyro_flows.errors import ShapeError
from pyro_flows.nn.image import MaskedImage
from pyro_flows.nn.mlp import SHORTCUT
from pyro_flows.nn.sizes import is_size


class ConvNet(nn.Module):
    """A residual convolutional network with a linear shortcut, whose output starts at zero.

    The kept values, laid out as an image, go through a 3x3 convolution and residual blocks
    ``h <- h + conv1x1(act(conv3x3(act(h))))``; then ``y = conv1x1(h) / hidden_channels +
    0.2 conv3x3(image)``, both zeroed at the start, as in :class:`MLP`. A context adds a linear
    map of it to every place, at the entry and in the shortcut.

    Args:
        mask: what the coupling moves, ``C * H * W`` bools; whole channels (quicker) or any other,
            such as a checkerboard: see :class:`MaskedImage`.
        num_parameters: ``univariate.num_parameters``.
        shape: ``(C, H, W)`` of the image that the coupling's flat vector stands for.
        num_features: ``univariate.num_features``.
        context_dim: width of the context, 0 for none.
        hidden_channels: channels of the residual stream.
        blocks: number of residual blocks; each sees one pixel further.
        activation: elementwise nonlinearity, smooth by default so that log densities are too.

    Shapes: ``(*, kept * num_features + context_dim) -> (*, moved * num_parameters)``. Cost:
    ``blocks + 2`` 3x3 and ``blocks + 1`` 1x1 convolutions.

    Example:
        >>> shape = (4, 8, 8)
        >>> mask = channel_mask(shape)
        >>> net = ConvNet(mask, 2, shape, context_dim=3)
        >>> layer = transforms.Coupling(
        ...     256, transforms.Affine(), mask, context_dim=3, conditioner=net
        ... )
        >>> layer.forward_and_ladj(torch.ones(7, 256), torch.ones(3))[0].shape
        torch.Size([7, 256])
    """

    def __init__(
        self,
        mask: Sequence[bool] | Tensor,
        num_parameters: int,
        shape: Sequence[int],
        *,
        num_features: int = 1,
        context_dim: int = 0,
        hidden_channels: int = 32,
        blocks: int = 2,
        activation: Callable[[Tensor], Tensor] = functional.silu,
    ) -> None:
        super().__init__()
        if not (is_size(hidden_channels) and is_size(blocks, least=0)):
            raise ShapeError(
                "ConvNet expected integers hidden_channels >= 1 and blocks >= 0, but got "
                f"hidden_channels={hidden_channels!r} and blocks={blocks!r}. Give 32 channels."
            )
        self.places = MaskedImage(mask, shape, num_features, num_parameters)
        self.context_dim, self.hidden_channels = context_dim, hidden_channels
        self.activation = activation
        channels, out = self.places.in_channels, self.places.out_channels
        self.entry = nn.Conv2d(channels, hidden_channels, 3, padding=1)
        self.blocks = nn.ModuleList(_Block(hidden_channels, activation) for _ in range(blocks))
        self.last = nn.Conv2d(hidden_channels, out, 1)
        self.shortcut = nn.Conv2d(channels, out, 3, padding=1, bias=False)
        zeroed = [self.last.weight, self.last.bias, self.shortcut.weight]
        if context_dim:
            self.context_entry = nn.Linear(context_dim, hidden_channels, bias=False)
            self.context_shortcut = nn.Linear(context_dim, out, bias=False)
            zeroed.append(self.context_shortcut.weight)
        for weight in zeroed:
            if weight is not None:
                nn.init.zeros_(weight)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, kept * num_features + context_dim)`` to ``(*, moved * num_parameters)``."""
        batch = x.shape[:-1]
        flat = x.reshape(batch.numel(), x.shape[-1])
        kept, context = flat.split([x.shape[-1] - self.context_dim, self.context_dim], -1)
        image = self.places.image(kept)
        h, direct = self.entry(image), self.shortcut(image)
        if self.context_dim:
            h = h + self.context_entry(context)[..., None, None]
            direct = direct + self.context_shortcut(context)[..., None, None]
        for block in self.blocks:
            h = block(h)
        y = self.last(self.activation(h)) / self.hidden_channels + SHORTCUT * direct
        params = self.places.parameters_of(y)
        return params.reshape(*batch, params.shape[-1])


class _Block(nn.Module):
    def __init__(self, channels: int, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 1)
        self.activation = activation

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(self.activation(self.first(self.activation(h))))
