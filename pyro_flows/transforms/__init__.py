# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Flow layers: Pyro transforms with both directions and exact log-determinants."""

from pyro_flows.transforms.base import Conditioned, Inverse, Layer
from pyro_flows.transforms.compose import Compose
from pyro_flows.transforms.coupling import AffineCoupling, Coupling, SplineCoupling
from pyro_flows.transforms.elementwise import (
    Affine,
    Chain,
    Elementwise,
    RationalQuadraticSpline,
    Shift,
    Univariate,
)
from pyro_flows.transforms.linear import CholeskyAffine, Permute
from pyro_flows.transforms.noncentring import NonCentring

__all__ = [
    "Affine",
    "AffineCoupling",
    "Chain",
    "CholeskyAffine",
    "Compose",
    "Conditioned",
    "Coupling",
    "Elementwise",
    "Inverse",
    "Layer",
    "NonCentring",
    "Permute",
    "RationalQuadraticSpline",
    "Shift",
    "SplineCoupling",
    "Univariate",
]
