# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What a layer does to one number."""

from pyro_flows.transforms.elementwise.layer import Elementwise
from pyro_flows.transforms.elementwise.univariate import (
    Affine,
    Chain,
    RationalQuadraticSpline,
    Shift,
    Univariate,
)

__all__ = ["Affine", "Chain", "Elementwise", "RationalQuadraticSpline", "Shift", "Univariate"]
