# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Couplings, steps and stacks of image flows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows.errors import ShapeError
from pyro_flows.nn import ConvNet
from pyro_flows.nn.sizes import image_shape, is_size
from pyro_flows.ops import channel_mask, checkerboard_mask
from pyro_flows.transforms.base import Layer
from pyro_flows.transforms.compose import Compose
from pyro_flows.transforms.coupling import Coupling
from pyro_flows.transforms.elementwise import Affine, Univariate
from pyro_flows.transforms.linear import ActNorm, Conv1x1, Pixelwise
from pyro_flows.transforms.multiscale.split import Multiscale
from pyro_flows.transforms.multiscale.squeeze import Squeeze

AFFINE = Affine(log_scale_bound=2.0)


def conv_coupling(
    shape: Sequence[int],
    univariate: Univariate = AFFINE,
    mask: Sequence[bool] | Tensor | None = None,
    *,
    parity: int = 0,
    context_dim: int = 0,
    hidden_channels: int = 32,
    blocks: int = 2,
) -> Coupling:
    """A coupling of images: a convolutional network sees the kept part.

    Args:
        shape: ``(C, H, W)``; the layer's ``dim`` is their product.
        univariate: the map of each moved number.
        mask: True where moved, the flattening of ``(C, H, W)``; by default half of the channels,
            or, where there is only one, a checkerboard.
        parity: 0 or 1, the half that moves by default; alternate it.
        context_dim: width of the context.
        hidden_channels: width of the network.
        blocks: its residual blocks.

    Example:
        >>> layer = transforms.conv_coupling((1, 8, 8), transforms.RationalQuadraticSpline())
        >>> layer(torch.randn(5, 64)).shape
        torch.Size([5, 64])
    """
    shape = image_shape("conv_coupling", shape)
    if mask is None:
        choose = channel_mask if shape[0] > 1 else checkerboard_mask
        mask = choose(shape, parity=parity)
    net = ConvNet(
        mask,
        univariate.num_parameters,
        shape,
        num_features=univariate.num_features,
        context_dim=context_dim,
        hidden_channels=hidden_channels,
        blocks=blocks,
    )
    dim = torch.Size(shape).numel()
    return Coupling(dim, univariate, mask, context_dim, conditioner=net)


def glow_step(
    shape: Sequence[int],
    univariate: Univariate = AFFINE,
    *,
    parity: int = 0,
    context_dim: int = 0,
    hidden_channels: int = 32,
    blocks: int = 2,
) -> Compose:
    """One step of Glow, from base to data: coupling, invertible 1x1 convolution, ActNorm.

    It starts at the identity; ``Flow.initialize`` sets the ActNorm from data.

    Args:
        shape: ``(C, H, W)``; the layer's ``dim`` is their product.
        univariate: the coupling's map of each moved number.
        parity: 0 or 1, the half of the channels that the coupling moves; alternate it.
        context_dim: width of the context, seen by the coupling.
        hidden_channels: width of the coupling's convolutional network.
        blocks: its residual blocks.

    Cost: one pass of the network in both directions.

    Reference: Kingma & Dhariwal, Glow, 2018, https://arxiv.org/abs/1807.03039, section 3.

    Example:
        >>> step = transforms.glow_step((4, 8, 8))
        >>> x = torch.randn(5, 256)
        >>> torch.allclose(step(x), x, atol=1e-6)
        True
    """
    coupling = conv_coupling(
        shape,
        univariate,
        parity=parity,
        context_dim=context_dim,
        hidden_channels=hidden_channels,
        blocks=blocks,
    )
    return Compose([coupling, Conv1x1(shape), Pixelwise(ActNorm(shape[0]), shape)])


def glow_stack(
    shape: Sequence[int],
    univariate: Univariate = AFFINE,
    *,
    levels: int | None = None,
    steps: int = 4,
    context_dim: int = 0,
    hidden_channels: int = 32,
    blocks: int = 2,
    learned_prior: bool = True,
) -> Multiscale:
    """Glow: steps at several resolutions, each with latents of its own.

    From the data: squeeze, ``steps`` steps, half of the channels are finished, the other half goes
    on to the next level. At the start it reorders the pixels and does nothing else.

    Args:
        shape: ``(C, H, W)`` of the data.
        univariate: the couplings' map of each moved number.
        levels: number of resolutions; by default as many as ``H`` and ``W`` can be halved, at
            most three.
        steps: steps at each of them.
        context_dim: width of the context, seen by all couplings.
        hidden_channels: width of the couplings' convolutional networks.
        blocks: their residual blocks.
        learned_prior: whether mean and scale of what a level hands to the base depend on the
            coarser levels, by an affine coupling.

    Returns:
        A layer of ``dim = C H W``.

    Raises:
        ShapeError: height or width can't be halved that often.

    Cost: one pass of each network in both directions.

    Reference: Kingma & Dhariwal, Glow, 2018, https://arxiv.org/abs/1807.03039, section 2.

    Example:
        >>> layer = transforms.glow_stack((1, 8, 8), steps=1, hidden_channels=8)
        >>> flow = distributions.Flow([layer], event_shape=(1, 8, 8))
        >>> flow().rsample((3,)).shape
        torch.Size([3, 1, 8, 8])
    """
    shape = image_shape("glow_stack", shape)
    count = _most_levels(shape) if levels is None else levels
    if not (is_size(count) and is_size(steps)):
        raise ShapeError(
            f"glow_stack expected at least one level and one step, and an image of even height "
            f"and width, but got levels={levels!r}, steps={steps!r} and shape {shape}. Pad the "
            "images to an even size."
        )
    sizes = {"context_dim": context_dim, "hidden_channels": hidden_channels, "blocks": blocks}
    stages: list[Layer] = []
    for level in range(count):
        squeeze = Squeeze(shape)
        inner = squeeze.out_shape
        stage: list[Layer] = [
            glow_step(inner, univariate, parity=step % 2, **sizes) for step in range(steps)
        ]
        # The base side: what the next level makes is the first half, which this coupling keeps.
        if learned_prior and level < count - 1:
            stage.insert(0, conv_coupling(inner, AFFINE, None, **sizes))
        stages.insert(0, Compose([*stage, squeeze.inv]))
        shape = (inner[0] // 2, *inner[1:])
    return Multiscale(stages)


def _most_levels(shape: Sequence[int]) -> int:
    height, width = shape[1:]
    levels = 0
    while levels < 3 and height % 2 == 0 and width % 2 == 0:
        height, width, levels = height // 2, width // 2, levels + 1
    return levels
