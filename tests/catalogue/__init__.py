# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Every layer and its main options, one line each: id -> entry. A module for each family.

A layer that is not listed here is held to no law. Networks are small, so that the laws are quick.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from catalogue.entry import Entry

FAMILIES = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem[0] != "_")
FAMILIES.remove("entry")

CATALOGUE: dict[str, Entry] = {}
for family in FAMILIES:
    entries = import_module(f"catalogue.{family}").ENTRIES
    if set(entries) & set(CATALOGUE):
        raise ValueError(f"Two families list {sorted(set(entries) & set(CATALOGUE))}.")
    CATALOGUE.update(entries)

__all__ = ["CATALOGUE", "FAMILIES", "Entry"]
