# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Activation functions of the real line, and squashes onto part of it."""

from __future__ import annotations

from catalogue.basics import coupling, elementwise
from catalogue.entry import Entry
from pyro_flows.transforms import (
    ELU,
    Affine,
    Chain,
    Elementwise,
    LeakyReLU,
    LeakyTanh,
    PReLU,
    Sigmoid,
    Softplus,
    Tanh,
)

SQUASHES = {
    "tanh": Tanh(),
    "sigmoid": Sigmoid(),
    "softplus": Softplus(),
    "elu": ELU(),
}
BOUNDED = frozenset({"reaches_far"})
OTHER_SPACE = BOUNDED | {"starts_at_identity"}

ENTRIES = {
    **{f"elementwise-{name}": elementwise(u, left_out=BOUNDED) for name, u in SQUASHES.items()},
    "inverse-elementwise-sigmoid": Entry(
        lambda d, c: Elementwise(d, Sigmoid(), c).inv, left_out=BOUNDED
    ),
    "elementwise-leaky_relu": elementwise(LeakyReLU(0.3)),
    "elementwise-affine_tanh": elementwise(Chain((Affine(), Tanh())), left_out=OTHER_SPACE),
    # The inverse of one with a larger limit spreads a normal further than quadrature reaches.
    "elementwise-leaky_tanh": elementwise(LeakyTanh(1.5)),
    "elementwise-prelu": elementwise(PReLU()),
    "coupling-prelu": coupling(PReLU()),
}
