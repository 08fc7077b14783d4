# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The layers of named flows: a stack multiplies what its layers do to a perturbation."""

from __future__ import annotations

from catalogue.entry import Entry
from pyro_flows import flows

# Few and small layers; as many as let all coordinates meet.
OPTIONS = {
    "bnaf": {"hidden_factors": (3,)},
    "bpf": {"degree": 6},
    "default": {},
    "ffjord": {"layers": 1, "steps": 2},
    "gaussianization": {"components": 4},
    "glow": {},
    "iaf": {},
    "iresnet": {},
    "maf": {},
    "naf": {"hidden": 3},
    "ncsf": {"bins": 4},
    "nice": {},
    "nsf": {"bins": 4},
    "nsf_ar": {"bins": 4, "linear": "plu"},
    "planar": {},
    "radial": {},
    "realnvp": {"linear": "householder"},
    "residual": {"log_det": "exact"},
    "sospf": {},
    "sylvester": {},
    "unaf": {"hidden": 3},
}
# Layers are tried by themselves, at 64 coordinates too. Here quadrature over thousands of points,
# each with a root to find, is left to the slow tests, and so are stacks of many of them.
DEAR = ("bpf", "ffjord", "gaussianization", "naf", "sospf", "unaf")
SLOW_AT_64 = ("iaf", "iresnet", "maf", "ncsf", "nsf_ar", "residual")
SLOW_DIMS = {**dict.fromkeys(DEAR, (2,)), **dict.fromkeys(SLOW_AT_64, (64,)), "bnaf": (2, 5)}
LEFT_OUT = {
    # Between two reversals, each of which is what it is from the start; tests/flows has the start.
    "bnaf": frozenset({"starts_at_identity"}),
    "ncsf": frozenset({"reaches_far"}),
}


def named(name):
    """The layers of the flow registered under a name."""
    options = {"layers": 2, "hidden_dims": (8,), **OPTIONS[name]}
    return Entry(
        lambda d, c: flows.make(name, d, c, **options).transform,
        perturb=0.2,
        dims=(1, 2, 5) if name in (*DEAR, "bnaf") else (1, 2, 5, 64),
        slow_dims=SLOW_DIMS.get(name, ()),
        left_out=LEFT_OUT.get(name, frozenset()),
    )


ENTRIES = {f"named-{name}": named(name) for name in OPTIONS}
