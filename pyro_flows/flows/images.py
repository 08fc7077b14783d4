# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The recipe for images, and what it is for vectors."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pyro_flows.distributions import Flow
from pyro_flows.errors import ShapeError
from pyro_flows.flows.registry import register_flow
from pyro_flows.flows.stacks import couplings, stack_sizes
from pyro_flows.nn.sizes import image_shape
from pyro_flows.transforms import PLU, ActNorm, Affine, Layer, glow_stack


@register_flow(
    "glow",
    density="one pass",
    sampling="one pass",
    conditional=True,
    paper="Kingma and Dhariwal, Glow",
    year=2018,
    link="https://arxiv.org/abs/1807.03039",
)
def glow(
    dim: int,
    context_dim: int = 0,
    *,
    layers: int = 6,
    hidden_dims: Sequence[int] = (64, 64),
    event_shape: Sequence[int] | None = None,
    levels: int | None = None,
    hidden_channels: int = 32,
) -> Flow:
    """Affine couplings, invertible matrices and ActNorm; with an image's shape at several scales.

    ``flow.initialize(data)`` sets the ActNorm layers.

    Args:
        dim: number of coordinates; of images, ``channels * height * width``.
        context_dim: width of the context.
        layers: number of steps; of images, at each resolution.
        hidden_dims: widths of each conditioner's hidden layers; not of images.
        event_shape: ``(channels, height, width)`` of images; None for vectors.
        levels: number of resolutions of images; as many as fit, at most three, by default.
        hidden_channels: width of the convolutional networks of images.

    Example:
        >>> flows.glow(3)().rsample((5,)).shape
        torch.Size([5, 3])
        >>> flows.glow(64, event_shape=(1, 8, 8), layers=1)().rsample((5,)).shape
        torch.Size([5, 1, 8, 8])
    """
    dim, context_dim, layers = stack_sizes(dim, context_dim, layers)
    if event_shape is not None:
        event_shape = image_shape("glow", event_shape)
        if math.prod(event_shape) != dim:
            raise ShapeError(
                f"glow expected an event_shape of dim={dim}, but got event_shape="
                f"{event_shape}. Give dim={math.prod(event_shape)}."
            )
        image = glow_stack(
            event_shape,
            levels=levels,
            steps=layers,
            context_dim=context_dim,
            hidden_channels=hidden_channels,
        )
        return Flow([image], event_shape=event_shape)
    stack: list[Layer] = []
    for coupling in couplings(dim, Affine(), context_dim, layers, hidden_dims):
        stack += [coupling, *([PLU(dim)] if dim > 1 else []), ActNorm(dim)]
    return Flow(stack)
