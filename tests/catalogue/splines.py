# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Splines other than the rational-quadratic one."""

from __future__ import annotations

from catalogue.basics import coupling, elementwise
from pyro_flows.transforms import (
    CubicSpline,
    LinearRationalSpline,
    PiecewiseLinear,
    QuadraticSpline,
)

UNIVARIATES = {
    "piecewise_linear": PiecewiseLinear(bins=4, bound=3.0),
    "quadratic_spline": QuadraticSpline(bins=4, bound=3.0),
    "cubic_spline": CubicSpline(bins=4, bound=3.0),
    "linear_rational_spline": LinearRationalSpline(bins=4, bound=3.0),
}

ENTRIES = {
    **{f"coupling-{name}": coupling(u, slow_dims=(64,)) for name, u in UNIVARIATES.items()},
    **{f"elementwise-{name}": elementwise(u) for name, u in UNIVARIATES.items()},
}
