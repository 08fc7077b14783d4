# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The layers of named flows: a stack multiplies what its layers do to a perturbation."""

from __future__ import annotations

from catalogue.entry import Entry
from pyro_flows import flows


def named(name, **options):
    """The layers of the flow registered under a name."""
    return Entry(lambda d, c: flows.make(name, d, c).transform, **{"perturb": 0.1, **options})


ENTRIES = {name: named(name) for name in ("nice", "realnvp", "nsf", "default")}
