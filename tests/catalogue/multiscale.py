# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Layers of images, and stacks whose latents live at several resolutions."""

from __future__ import annotations

from catalogue.entry import Entry
from pyro_flows.transforms import (
    Affine,
    AffineCoupling,
    CholeskyAffine,
    Compose,
    Elementwise,
    Multiscale,
    RationalQuadraticSpline,
    Split,
    Squeeze,
    glow_stack,
    glow_step,
)

HIDDEN = (8,)
SPLINE = RationalQuadraticSpline(bins=4, bound=3.0)
SQUEEZED = frozenset({"starts_at_identity"})
IMAGES = {4: (1, 2, 2), 16: (1, 4, 4), 64: (1, 8, 8)}


def _squeeze(dim, c):
    return Squeeze({4: (1, 2, 2), 24: (2, 2, 6), 64: (1, 8, 8)}[dim])


def _inner(dim, c):
    return Elementwise(dim, SPLINE, c, HIDDEN)


def _multiscale(dim, c):
    """Two stages, three where there is room."""
    stages = [AffineCoupling(dim, None, c, HIDDEN), CholeskyAffine(dim)]
    dims = [dim // 3] if dim < 5 else [dim // 5, dim // 2]
    return Multiscale([*(_inner(d, c) for d in dims if d), Compose(stages)])


def _step(dim, c):
    shape = {2: (2, 1, 1), 5: (1, 1, 5), 12: (3, 2, 2), 64: (4, 4, 4)}[dim]
    return glow_step(shape, Affine(1.0), context_dim=c, hidden_channels=4, blocks=1)


def _stack(dim, c):
    return glow_stack(IMAGES[dim], SPLINE, steps=1, context_dim=c, hidden_channels=4, blocks=1)


ENTRIES = {
    "squeeze": Entry(_squeeze, conditional=False, dims=(4, 24, 64), left_out=SQUEEZED),
    "split": Entry(lambda d, c: Split(d, _inner(d // 2, c)), dims=(2, 5, 64)),
    "multiscale": Entry(_multiscale, dims=(2, 3, 5, 64), perturb=lambda d: min(0.5, 2 / d)),
    "glow_step": Entry(_step, dims=(2, 5, 12, 64), slow_dims=(2, 64), perturb=0.3),
    "glow_stack": Entry(
        _stack, dims=tuple(IMAGES), slow_dims=(64,), perturb=0.2, left_out=SQUEEZED
    ),
}
