# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Draws of sites as the numbers they consist of: one element, one label, one vector."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Draws = Mapping[str, NDArray[Any]]
Element = tuple[str, NDArray[Any]]


def elements_of(draws: Draws, most: int) -> tuple[list[Element], int]:
    """The first elements of all sites as (``theta[3]``, draws), and how many there are in all."""
    sites, total = sites_of(draws, most)
    return [element for elements in sites.values() for element in elements], total


def sites_of(draws: Draws, most: int) -> tuple[dict[str, list[Element]], int]:
    """The same by site; sites that have no element, or no room, are left out."""
    if most < 1:
        raise ValueError(f"Expected room for at least one element, got {most}: ask for 1 or more.")
    sites: dict[str, list[Element]] = {}
    total = room = 0
    for name, values in draws.items():
        array = np.asarray(values)
        if array.ndim == 0 or array.shape[0] == 0:
            raise ValueError(
                f"Expected draws of {name!r} with shape (S, *shape) and S > 0, got {array.shape}: "
                "put the draws along the first axis."
            )
        size = math.prod(array.shape[1:])
        room, total = most - total, total + size
        indices = itertools.islice(np.ndindex(*array.shape[1:]), max(room, 0))
        elements = [(element_name(name, index), array[(slice(None), *index)]) for index in indices]
        if elements:
            sites[name] = elements
    if not sites:
        raise ValueError("Expected draws of at least one site with elements, got none.")
    return sites, total


def element_name(site: str, index: tuple[int, ...]) -> str:
    """``theta[3]``, ``corr[0, 1]``, or ``mu`` where the site is one number."""
    return f"{site}[{', '.join(map(str, index))}]" if index else site


def matching(sites: Mapping[str, list[Element]], draws: Draws, other: Draws) -> dict[str, Any]:
    """Label to another set's draws of that element, for all elements of ``sites`` that it has."""
    shared = [site for site in draws if site in other]
    if not shared:
        raise ValueError(
            f"Expected a reference with some of the sites {sorted(draws)}, got {sorted(other)}: "
            "give its draws by the same names."
        )
    found: dict[str, Any] = {}
    for site in shared:
        array, shape = np.asarray(other[site]), np.asarray(draws[site]).shape[1:]
        if array.ndim == 0 or len(array) == 0 or array.shape[1:] != shape:
            raise ValueError(
                f"Expected the reference's draws of {site!r} with shape {('S', *shape)} and "
                f"S > 0, got {array.shape}: put those of all chains along the first axis."
            )
        wanted = {label for label, _ in sites.get(site, ())}
        every = ((element_name(site, index), index) for index in np.ndindex(*shape))
        found |= {label: array[(slice(None), *i)] for label, i in every if label in wanted}
    return found
