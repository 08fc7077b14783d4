# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Univariates for skewness and tails."""

from __future__ import annotations

from catalogue.basics import coupling, elementwise
from pyro_flows.transforms import Affine, Chain, SinhArcsinh, TailTransform

NOT_AT_IDENTITY = frozenset({"starts_at_identity"})

ENTRIES = {
    "elementwise-sinh_arcsinh": elementwise(SinhArcsinh()),
    "coupling-sinh_arcsinh": coupling(Chain((SinhArcsinh(), Affine()))),
    "elementwise-tail_transform": elementwise(TailTransform(), left_out=NOT_AT_IDENTITY),
}
