# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Every layer and its main options, one line each: id -> constructor ``(dim, context_dim)``.

A layer that is not listed here is held to no law. Networks are small, so that the laws are quick.
"""

from __future__ import annotations

import torch

from pyro_flows import flows
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


def _interleaved(dim):
    return [i % 2 == 0 for i in range(dim)]


def _order(dim):
    return torch.randperm(dim, generator=torch.Generator("cpu").manual_seed(1), device="cpu")


def _coupling(univariate):
    return lambda dim, c: Coupling(dim, univariate, context_dim=c, hidden_dims=HIDDEN)


def _elementwise(univariate):
    return lambda dim, c: Elementwise(dim, univariate, c, HIDDEN)


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


# Layers that take a context, or none.
CONDITIONAL = {
    **{f"coupling-{name}": _coupling(u) for name, u in UNIVARIATES.items()},
    **{f"elementwise-{name}": _elementwise(u) for name, u in UNIVARIATES.items()},
    "affine_coupling": lambda d, c: AffineCoupling(d, context_dim=c, hidden_dims=HIDDEN),
    "affine_coupling-mask": lambda d, c: AffineCoupling(d, _interleaved(d), c, (), 1.0),
    "spline_coupling": lambda d, c: SplineCoupling(d, context_dim=c),
    "inverse-spline_coupling": lambda d, c: (
        SplineCoupling(d, context_dim=c, hidden_dims=HIDDEN).inv
    ),
    "compose": _mixed,
    "nice": lambda d, c: flows.make("nice", d, c).transform,
    "realnvp": lambda d, c: flows.make("realnvp", d, c).transform,
    "nsf": lambda d, c: flows.make("nsf", d, c).transform,
    "default": lambda d, c: flows.make("default", d, c).transform,
}

# Layers that take none.
PLAIN = {
    "cholesky": lambda d, c: CholeskyAffine(d),
    "permute-reversed": lambda d, c: Permute(d),
    "permute-random": lambda d, c: Permute(_order(d)),
    "inverse-cholesky": lambda d, c: CholeskyAffine(d).inv,
}

CATALOGUE = {**CONDITIONAL, **PLAIN}

# Couplings at dim 1 have nothing to condition on but a context.
NEEDS_CONTEXT_AT_1 = {id for id in CONDITIONAL if "coupling" in id} | {"compose"}


def perturbation(id, dim):
    """How far parameters are moved: a stack multiplies what its layers do to a perturbation."""
    if id in ("nice", "realnvp", "nsf", "default"):
        return 0.1
    # The inverse of a triangular matrix of random entries grows exponentially with its size.
    return min(0.5, 2 / dim) if "cholesky" in id or id == "compose" else 0.5
