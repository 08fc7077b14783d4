# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A transformer that reads coordinates one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pyro_flows.errors import ShapeError
from pyro_flows.nn.walk import Walk, in_generations
from pyro_flows.ops import generations, order_adjacency

Cache = tuple[Tensor, Tensor]


class CausalTransformer(nn.Module):
    """Parameters of each coordinate from those before it, by attention.

    Each coordinate is a token, embedded from its value's asinh (so that a distant value doesn't
    drown its place), plus a learned place, plus the context. Blocks of pre-normed causal attention
    and perceptron follow. The token before a coordinate gives its parameters, which start at zero;
    the first coordinate's come from its place alone.

    Args:
        dim: number of coordinates ``D``, at least 2.
        num_parameters: numbers made for each coordinate.
        order: as of :class:`pyro_flows.transforms.Autoregressive`; a full order.
        num_features: numbers shown of each coordinate.
        context_dim: width of the context.
        width: of tokens, a multiple of ``heads``.
        heads: of attention.
        blocks: number of them.
        seed: of the random order.

    Shapes: ``(*, D, num_features), (*, context_dim) -> (*, D, num_parameters)``.

    Cost: a pass costs ``D * width`` and ``D * D`` per unit of width. Weights are shared by all
    coordinates, so their number hardly grows with ``D``. A :meth:`walk` keeps keys and values: a
    whole inversion costs about one pass, in ``D`` steps.

    Choose it for many coordinates of one kind, such as a series or patches of an image; for few,
    a :class:`MaskedMLP` is quicker and as good.

    Reference: Vaswani et al. 2017, arXiv:1706.03762; in flows: Patacchiola et al. 2024,
    arXiv:2401.01855, Zhai et al. 2024, arXiv:2412.06329.

    Example:
        >>> net = CausalTransformer(5, 2)
        >>> net(torch.ones(7, 5, 1)).shape, net(torch.ones(7, 5, 1)).abs().max().item()
        (torch.Size([7, 5, 2]), 0.0)
    """

    sequence: Tensor
    restore: Tensor
    mask: Tensor
    generation: list[int]

    def __init__(
        self,
        dim: int,
        num_parameters: int,
        *,
        order: str | Sequence[int] = "natural",
        num_features: int = 1,
        context_dim: int = 0,
        width: int = 32,
        heads: int = 4,
        blocks: int = 2,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if dim < 2 or width % heads or heads < 1 or blocks < 1:
            raise ShapeError(
                "CausalTransformer expected dim >= 2, blocks >= 1, and a width that is a multiple "
                f"of heads, but got dim={dim}, blocks={blocks}, width={width}, heads={heads}."
            )
        adjacency = order_adjacency(dim, order, seed=seed)
        self.starts = in_generations(self, generations(adjacency))
        blank = torch.empty(0)
        self.register_buffer("restore", self.sequence.argsort())
        future = torch.ones(dim, dim, dtype=torch.bool, device="cpu").triu(1)
        self.register_buffer("mask", future.to(blank.device))
        self.embed = nn.Linear(num_features, width, bias=False)
        self.places = nn.Parameter(0.5 * torch.randn(dim, width))
        self.context = nn.Linear(context_dim, width, bias=False) if context_dim else None
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(blocks)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_parameters, bias=False)
        nn.init.zeros_(self.head.weight)
        self.bias = nn.Parameter(torch.zeros(dim, num_parameters))

    def tokens(self, features: Tensor) -> Tensor:
        """Embed values ``(*, num_features)``."""
        embedded: Tensor = self.embed(torch.asinh(features))
        return embedded

    def params(self, h: Tensor) -> Tensor:
        """Parameters, but for the bias, from the last tokens; as :class:`MLP` scales them."""
        out: Tensor = self.head(self.norm(h)) / h.shape[-1]
        return out

    def forward(self, features: Tensor, context: Tensor | None = None) -> Tensor:
        """Parameters of all coordinates at once."""
        before = features.index_select(-2, self.sequence[:-1])
        h = F.pad(self.tokens(before), (0, 0, 1, 0)) + self.places
        if self.context is not None and context is not None:
            h = h + self.context(context).unsqueeze(-2)
        for block in self.blocks:
            h, _ = block(h, mask=self.mask)
        return (self.params(h) + self.bias).index_select(-2, self.restore)

    def walk(self, context: Tensor | None, batch_shape: torch.Size) -> Walk:
        """Begin to go through the coordinates; see :class:`pyro_flows.nn.walk.Walkable`."""
        return CausalWalk(self, context, batch_shape)


class Block(nn.Module):
    """Attention and a perceptron, each added to what it reads, normed.

    Args:
        width: of tokens.
        heads: of attention.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        # No biases: one of the keys would have no effect, one of the values that of the output's.
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Linear(2 * width, width),
        )

    def forward(
        self, h: Tensor, cache: Cache | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, Cache]:
        """Map tokens.

        Args:
            h: ``(*, tokens, width)``.
            cache: keys and values of tokens before, each ``(*, heads, before, width / heads)``.
            mask: bool ``(tokens, tokens)``, True where a token must not look.

        Returns:
            Tokens, and the cache with theirs.
        """
        split = self.qkv(self.norm(h)).unflatten(-1, (3, self.heads, -1))
        q, k, v = (t.transpose(-3, -2) for t in split.unbind(-3))
        if cache is not None:
            k, v = torch.cat([cache[0], k], -2), torch.cat([cache[1], v], -2)
        scores = q @ k.transpose(-2, -1) / k.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(mask, -torch.inf)
        h = h + self.out((scores.softmax(-1) @ v).transpose(-3, -2).flatten(-2))
        return h + self.mlp(h), (k, v)


class CausalWalk:
    """Keys and values so far; made by ``CausalTransformer.walk`` for one call.

    Cost: a step costs what one token costs in a pass.
    """

    def __init__(
        self, net: CausalTransformer, context: Tensor | None, batch_shape: torch.Size
    ) -> None:
        self.net, self.caches = net, [None] * len(net.blocks)
        self.step = 0
        places = net.places
        if net.context is not None and context is not None:
            places = places + net.context(context).unsqueeze(-2)
        self.places = places.expand(*batch_shape, -1, -1)
        self.token: Tensor | None = None

    def params(self) -> Tensor:
        """Parameters of the next coordinate."""
        here = slice(self.step, self.step + 1)
        h = self.places[..., here, :]
        if self.token is not None:
            h = h + self.token
        for k, block in enumerate(self.net.blocks):
            h, self.caches[k] = block(h, self.caches[k])
        return self.net.params(h) + self.net.bias[here]

    def feed(self, features: Tensor) -> None:
        """Embed what it turned out to be."""
        self.token = self.net.tokens(features)
        self.step += 1
