# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Couplings with the plain univariates, elementwise layers of them, a mixed stack."""

from __future__ import annotations

from catalogue.entry import Entry
from pyro_flows.transforms import (
    Affine,
    AffineCoupling,
    Chain,
    CholeskyAffine,
    Compose,
    Coupling,
    Elementwise,
    Permute,
    RationalQuadraticSpline,
    Shift,
    SplineCoupling,
)

HIDDEN = (8,)
SPLINE = RationalQuadraticSpline(bins=4, bound=3.0)
UNIVARIATES = {
    "shift": Shift(),
    "affine": Affine(),
    "spline": SPLINE,
    "chain": Chain((SPLINE, Affine(), Shift())),
}


def coupling(univariate, **options):
    """A coupling with a small network; with a context it goes down to one coordinate."""
    return Entry(
        lambda dim, c: Coupling(dim, univariate, context_dim=c, hidden_dims=HIDDEN),
        needs_context_at_1=True,
        **options,
    )


def elementwise(univariate, **options):
    """The univariate on every coordinate, its parameters from a small network of the context."""
    return Entry(lambda dim, c: Elementwise(dim, univariate, c, HIDDEN), **options)


def _interleaved(dim):
    return [i % 2 == 0 for i in range(dim)]


def _mixed(dim, c):
    """Plain, conditional and parameterless layers together."""
    return Compose(
        [
            SplineCoupling(dim, context_dim=c, hidden_dims=HIDDEN, bins=4),
            Permute(dim),
            CholeskyAffine(dim),
            AffineCoupling(dim, context_dim=c, hidden_dims=HIDDEN).inv,
        ]
    )


ENTRIES = {
    **{f"coupling-{name}": coupling(u) for name, u in UNIVARIATES.items()},
    **{f"elementwise-{name}": elementwise(u) for name, u in UNIVARIATES.items()},
    "affine_coupling": Entry(
        lambda d, c: AffineCoupling(d, context_dim=c, hidden_dims=HIDDEN), needs_context_at_1=True
    ),
    "affine_coupling-mask": Entry(
        lambda d, c: AffineCoupling(d, _interleaved(d), c, (), 1.0), needs_context_at_1=True
    ),
    "spline_coupling": Entry(
        lambda d, c: SplineCoupling(d, context_dim=c), needs_context_at_1=True
    ),
    "inverse-spline_coupling": Entry(
        lambda d, c: SplineCoupling(d, context_dim=c, hidden_dims=HIDDEN).inv,
        needs_context_at_1=True,
    ),
    "compose": Entry(
        _mixed,
        needs_context_at_1=True,
        perturb=lambda dim: min(0.5, 2 / dim),
        left_out=frozenset({"starts_at_identity"}),
    ),
}
