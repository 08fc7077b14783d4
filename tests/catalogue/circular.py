# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Maps of the circle, on tori."""

from __future__ import annotations

from catalogue.basics import coupling, elementwise
from catalogue.entry import Entry
from pyro_flows.transforms import Autoregressive, CircularSpline, Moebius

UNIVARIATES = {
    "circular_spline": CircularSpline(bins=4),
    "moebius": Moebius(components=3),
    "moebius-one": Moebius(components=1),
}

BOUNDED = frozenset({"reaches_far"})

ENTRIES = {
    **{
        f"coupling-{name}": coupling(u, slow_dims=(64,), left_out=BOUNDED)
        for name, u in UNIVARIATES.items()
    },
    "autoregressive-circular_spline": Entry(
        lambda d, c: Autoregressive(
            d, UNIVARIATES["circular_spline"], context_dim=c, hidden_dims=(8,)
        ),
        slow_dims=(64,),
        left_out=BOUNDED,
    ),
    **{f"elementwise-{name}": elementwise(u, left_out=BOUNDED) for name, u in UNIVARIATES.items()},
}
