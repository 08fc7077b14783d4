# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Flexible univariates, most of them with a root finder for an inverse."""

from __future__ import annotations

from dataclasses import replace

from catalogue.basics import coupling, elementwise
from catalogue.entry import Entry
from pyro_flows.transforms import (
    Affine,
    Bernstein,
    Chain,
    Coupling,
    DeepSigmoidal,
    Gaussianization,
    LogisticMixture,
    MonotonicNetwork,
    SumOfSquares,
)

UNIVARIATES = {
    "bernstein": Bernstein(degree=6, bound=4.0),
    "sum_of_squares": SumOfSquares(polynomials=2, degree=2, bound=4.0),
    "deep_sigmoidal": DeepSigmoidal(hidden=4, layers=1),
    "dense_sigmoidal": DeepSigmoidal(hidden=3, layers=2),
    "monotonic_network": MonotonicNetwork(hidden=3, bound=4.0, nodes=40),
    "logistic_mixture": LogisticMixture(components=4),
    "gaussianization": Gaussianization(components=3),
}

MIXTURE = Chain((LogisticMixture(components=3), Affine()))

# Quadrature in two dimensions inverts a quarter of a million numbers.
SLOW = (2, 64)

ENTRIES = {
    **{f"elementwise-{name}": elementwise(u, slow_dims=SLOW) for name, u in UNIVARIATES.items()},
    # The dearest one leaves two dimensions out altogether; one has quadrature too.
    "elementwise-monotonic_network": elementwise(
        UNIVARIATES["monotonic_network"], dims=(1, 5, 64), slow_dims=(64,)
    ),
    "coupling-bernstein": replace(coupling(UNIVARIATES["bernstein"]), slow_dims=SLOW),
    "inverse-coupling-mixture": Entry(
        lambda dim, c: Coupling(dim, MIXTURE, context_dim=c, hidden_dims=(8,)).inv,
        needs_context_at_1=True,
        slow_dims=SLOW,
    ),
}
