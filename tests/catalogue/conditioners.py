# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Couplings by every conditioner and kind of mask. Images have the sizes that they have."""

from __future__ import annotations

from functools import partial

from catalogue.entry import Entry
from pyro_flows.nn import ConvNet, PixelAttention, ResidualMLP, SelfAttention
from pyro_flows.ops import channel_mask, checkerboard_mask, random_mask
from pyro_flows.transforms import Affine, Coupling, RationalQuadraticSpline

SPLINE = RationalQuadraticSpline(bins=4, bound=3.0)
SHAPES = {2: (1, 1, 2), 5: (1, 1, 5), 8: (2, 2, 2), 64: (4, 4, 4)}


def residual(univariate, **options):
    """A residual network; with a context it goes down to one coordinate."""
    net = partial(ResidualMLP, hidden_dim=8, blocks=1, **options)
    return Entry(
        lambda d, c: Coupling(d, univariate, context_dim=c, conditioner=net),
        needs_context_at_1=True,
    )


def _attention(dim, c):
    mask = [True] if dim == 1 else random_mask(dim)
    net = SelfAttention(mask, 2, context_dim=c, width=8, heads=2, blocks=1)
    return Coupling(dim, Affine(), mask, c, conditioner=net)


def image(net, univariate, slow_dims=(64,), **options):
    """A network for images, by channels where there are two of them, else as a checkerboard."""

    def make(dim, c):
        shape = SHAPES[dim]
        mask = (channel_mask if shape[0] == 2 else checkerboard_mask)(shape)
        conditioner = net(mask, univariate.num_parameters, shape, context_dim=c, **options)
        return Coupling(dim, univariate, mask, c, conditioner=conditioner)

    return Entry(make, dims=tuple(SHAPES), slow_dims=slow_dims)


ENTRIES = {
    "coupling-residual": residual(Affine()),
    "coupling-residual-norm": residual(SPLINE, norm=True),
    "coupling-attention": Entry(_attention, needs_context_at_1=True, slow_dims=(64,)),
    # Quadrature is slow by torch's float64 convolutions of very many tiny images.
    "coupling-conv": image(ConvNet, Affine(), (2, 64), hidden_channels=4, blocks=1),
    "coupling-pixels": image(PixelAttention, SPLINE, width=8, heads=2, blocks=1),
}
