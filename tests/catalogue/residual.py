# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Residual layers."""

from __future__ import annotations

from catalogue.entry import Entry
from pyro_flows.transforms.residual import ContractiveResidual, Planar, Radial, Sylvester

HIDDEN = (8,)

ENTRIES = {
    "planar": Entry(lambda d, c: Planar(d, c, HIDDEN)),
    "radial": Entry(lambda d, c: Radial(d, c, HIDDEN)),
    "sylvester": Entry(lambda d, c: Sylvester(d, c, rank=min(d, 3), hidden_dims=HIDDEN)),
    "sylvester-full": Entry(
        lambda d, c: Sylvester(d, c, rank=d, hidden_dims=HIDDEN), dims=(1, 2, 5)
    ),
    "contractive": Entry(lambda d, c: ContractiveResidual(d, c, hidden_dims=(8, 8))),
}
