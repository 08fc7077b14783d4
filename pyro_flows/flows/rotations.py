# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The recipe by rotations and maps of single coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyro_flows.distributions import Flow
from pyro_flows.flows.registry import register_flow
from pyro_flows.flows.stacks import stack_sizes
from pyro_flows.transforms import Elementwise, Gaussianization, Householder, Layer


@register_flow(
    "gaussianization",
    density="one pass",
    sampling="one pass with roots",
    conditional=True,
    paper="Meng et al., Gaussianization flows",
    year=2020,
    link="https://arxiv.org/abs/2003.01941",
)
def gaussianization(
    dim: int,
    context_dim: int = 0,
    *,
    layers: int = 6,
    hidden_dims: Sequence[int] = (64, 64),
    components: int = 8,
) -> Flow:
    """Mixtures of normals, made normal coordinate by coordinate, in rotated frames.

    Each layer turns to a trained frame, which starts at random, moves every coordinate by the
    quantile of a mixture of normals, and turns back, so that the flow starts near the identity.

    Args:
        dim: number of coordinates.
        context_dim: width of the context, which moves the mixtures.
        layers: number of frames.
        hidden_dims: widths of each network of the context; without one there is none.
        components: normals in each mixture.

    Example:
        >>> flows.gaussianization(3).log_prob(torch.zeros(5, 3)).shape
        torch.Size([5])
    """
    dim, context_dim, layers = stack_sizes(dim, context_dim, layers)
    stack: list[Layer] = []
    for k in range(layers if dim > 1 else 1):
        frame = _random_frame(dim, seed=k)
        univariate = Gaussianization(components)
        move = Elementwise(dim, univariate, context_dim, hidden_dims).inv
        stack += [frame, move, frame.inv] if dim > 1 else [move]
    return Flow(stack)


@torch.no_grad()
def _random_frame(dim: int, seed: int) -> Householder:
    """Reflections in random planes; of the seed alone."""
    frame = Householder(dim)
    vectors = frame.tensors.start["vectors"]
    generator = torch.Generator(device="cpu").manual_seed(seed)
    vectors.copy_(torch.randn(vectors.shape, generator=generator, device="cpu"))
    return frame
