# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Transformer conditioners: every coordinate, or every pixel, is a token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pyro_flows.errors import ShapeError
from pyro_flows.nn.image import MaskedImage
from pyro_flows.nn.mlp import SHORTCUT


class Encoder(nn.Module):
    """Transformer encoder blocks: ``h <- h + attend(norm(h))``, ``h <- h + mlp(norm(h))``.

    Args:
        width: width of a token.
        heads: attention heads; must divide ``width``.
        blocks: number of blocks.

    Shapes: ``(*, tokens, width) -> (*, tokens, width)``, normalised over the width. Cost:
    quadratic in the number of tokens.

    Reference: Vaswani et al. 2017, arXiv:1706.03762; normalised first: Xiong et al. 2020,
    arXiv:2002.04745.

    Example:
        >>> Encoder(width=8, heads=2)(torch.randn(5, 3, 8)).shape
        torch.Size([5, 3, 8])
    """

    def __init__(self, width: int, *, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ShapeError(
                f"Encoder expected a width that its heads divide, but got width={width} and "
                f"heads={heads}. Choose for example width={max(heads, 1) * 8}."
            )
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)

    def forward(self, h: Tensor) -> Tensor:
        """Let the tokens see each other."""
        for block in self.blocks:
            h = block(h)
        return self.norm(h)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        # No bias for keys: it would move all logits of a query alike, and get no gradient.
        self.queries, self.keys = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.values, self.out = nn.Linear(width, width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, h: Tensor) -> Tensor:
        h = h + self._attend(self.norm_1(h))
        return h + self.down(functional.gelu(self.up(self.norm_2(h))))

    def _attend(self, h: Tensor) -> Tensor:
        # By hand, since torch's fused kernel has no batching rule and no second derivative.
        queries, keys, values = (
            linear(h).unflatten(-1, (self.heads, -1)).transpose(-2, -3)
            for linear in (self.queries, self.keys, self.values)
        )
        logits = queries @ keys.transpose(-1, -2) / queries.shape[-1] ** 0.5
        return self.out((logits.softmax(-1) @ values).transpose(-2, -3).flatten(-2))


class SelfAttention(nn.Module):
    """A transformer over coordinates, whose output starts at zero.

    Every kept coordinate is a token that carries its value, every moved one a token that asks;
    each has its own embedding. After the encoder ``y = linear(token) / width`` for the moved
    tokens, plus 0.2 times a linear shortcut from all inputs, both zeroed at the start, as in
    :class:`MLP`. A context is one further token.

    Choose it where coordinates are many and interact in pairs or sets: the network's size doesn't
    grow with the square of their number.

    Args:
        mask: what the coupling moves, ``dim`` bools.
        num_parameters: ``univariate.num_parameters``.
        num_features: ``univariate.num_features``.
        context_dim: width of the context, 0 for none.
        width: width of a token.
        heads: attention heads; must divide ``width``.
        blocks: number of encoder blocks.

    Shapes: ``(*, kept * num_features + context_dim) -> (*, moved * num_parameters)``. Cost:
    quadratic in ``dim``.

    Example:
        >>> mask = [False, True, False, True]
        >>> net = SelfAttention(mask, num_parameters=2)
        >>> layer = transforms.Coupling(4, transforms.Affine(), mask, conditioner=net)
        >>> layer(torch.ones(7, 4)).shape
        torch.Size([7, 4])
    """

    def __init__(
        self,
        mask: Sequence[bool] | Tensor,
        num_parameters: int,
        *,
        num_features: int = 1,
        context_dim: int = 0,
        width: int = 32,
        heads: int = 4,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        moves = torch.as_tensor(mask, dtype=torch.bool, device="cpu")
        moved = int(moves.sum())
        kept = len(moves) - moved
        self.kept, self.moved = kept, moved
        self.num_features, self.context_dim = num_features, context_dim
        self.value = nn.Parameter(torch.randn(kept, num_features, width))
        self.place = nn.Parameter(torch.randn(kept + moved, width))
        self.encoder = Encoder(width, heads=heads, blocks=blocks)
        self.last = nn.Linear(width, num_parameters)
        in_dim = kept * num_features + context_dim
        self.shortcut = nn.Linear(in_dim, moved * num_parameters, bias=False)
        for zeroed in (self.last.weight, self.last.bias, self.shortcut.weight):
            nn.init.zeros_(zeroed)
        self.context = nn.Linear(context_dim, width) if context_dim else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, kept * num_features + context_dim)`` to ``(*, moved * num_parameters)``."""
        sizes = [self.kept * self.num_features, self.context_dim]
        kept, context = x.split(sizes, -1)
        features = kept.unflatten(-1, (self.kept, self.num_features))
        carry = (features.unsqueeze(-1) * self.value).sum(-2)
        ask = carry.new_zeros(*x.shape[:-1], self.moved, carry.shape[-1])
        h = torch.cat([carry, ask], -2) + self.place
        if self.context is not None:
            h = torch.cat([h, self.context(context).unsqueeze(-2)], -2)
        moved = self.encoder(h)[..., self.kept : self.kept + self.moved, :]
        y = self.last(moved).flatten(-2) / moved.shape[-1]
        return y + SHORTCUT * self.shortcut(x)


class PixelAttention(nn.Module):
    """A transformer over the pixels of an image, whose output starts at zero.

    A token is one place of the image with all its channels: after squeezing by ``f`` a patch of
    ``f x f`` pixels. Otherwise as :class:`SelfAttention`, with weights shared by all places and an
    embedding of each.

    Args:
        mask: what the coupling moves, ``C * H * W`` bools; whole channels or any other.
        num_parameters: ``univariate.num_parameters``.
        shape: ``(C, H, W)`` of the image that the coupling's flat vector stands for.
        num_features: ``univariate.num_features``.
        context_dim: width of the context, 0 for none.
        width: width of a token.
        heads: attention heads; must divide ``width``.
        blocks: number of encoder blocks.

    Shapes: ``(*, kept * num_features + context_dim) -> (*, moved * num_parameters)``. Cost:
    quadratic in ``H * W``.

    Reference: Kolesnikov et al., Jet, 2024, arXiv:2412.15129.

    Example:
        >>> shape = (4, 4, 4)
        >>> net = PixelAttention(checkerboard_mask(shape), 2, shape)
        >>> net(torch.ones(7, 32)).shape
        torch.Size([7, 64])
    """

    def __init__(
        self,
        mask: Sequence[bool] | Tensor,
        num_parameters: int,
        shape: Sequence[int],
        *,
        num_features: int = 1,
        context_dim: int = 0,
        width: int = 64,
        heads: int = 4,
        blocks: int = 2,
    ) -> None:
        super().__init__()
        self.places = MaskedImage(mask, shape, num_features, num_parameters)
        self.context_dim = context_dim
        channels, out = self.places.in_channels, self.places.out_channels
        self.entry = nn.Linear(channels, width, bias=False)  # the place has a bias of its own
        self.place = nn.Parameter(torch.randn(shape[1] * shape[2], width))
        self.encoder = Encoder(width, heads=heads, blocks=blocks)
        self.last = nn.Linear(width, out)
        self.shortcut = nn.Linear(channels + context_dim, out, bias=False)
        for zeroed in (self.last.weight, self.last.bias, self.shortcut.weight):
            nn.init.zeros_(zeroed)
        self.context = nn.Linear(context_dim, width) if context_dim else None

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(*, kept * num_features + context_dim)`` to ``(*, moved * num_parameters)``."""
        batch = x.shape[:-1]
        flat = x.reshape(batch.numel(), x.shape[-1])
        kept, context = flat.split([x.shape[-1] - self.context_dim, self.context_dim], -1)
        tokens = self.places.image(kept).flatten(2).transpose(1, 2)
        h = self.entry(tokens) + self.place
        if self.context is not None:
            h = torch.cat([h, self.context(context).unsqueeze(1)], 1)
            everywhere = context.unsqueeze(1).expand(-1, tokens.shape[1], -1)
            tokens = torch.cat([tokens, everywhere], -1)
        h = self.encoder(h)[:, : len(self.place)]
        y = self.last(h) / h.shape[-1] + SHORTCUT * self.shortcut(tokens)
        image = y.transpose(1, 2).unflatten(2, self.places.shape[1:])
        params = self.places.parameters_of(image)
        return params.reshape(*batch, params.shape[-1])
