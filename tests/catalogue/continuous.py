# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Continuous layers: few steps, since the laws hold for any number of them."""

from __future__ import annotations

from catalogue.entry import Entry
from pyro_flows.transforms.continuous import ContinuousFlow


def continuous(slow_dims=(), **options):
    """A field with a small network."""
    return Entry(
        lambda d, c: ContinuousFlow(d, c, hidden_dims=(8,), **options), slow_dims=slow_dims
    )


ENTRIES = {
    "continuous": continuous((64,), steps=2),
    "continuous-euler": continuous(steps=2, solver="euler"),
}
