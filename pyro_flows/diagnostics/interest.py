# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Which few of many elements are worth a picture."""

from __future__ import annotations

from itertools import islice

import numpy as np
from numpy.typing import NDArray

from .elements import Draws, Element, matching, sites_of

Array = NDArray[np.float64]

# Elements that are looked at, of each site and of all; and draws that are enough to tell.
OF_A_SITE, OF_ALL, DRAWS = 100, 1000, 1000
PROBABILITIES = (0.055, 0.25, 0.5, 0.75, 0.945)
# Those quantiles of a normal distribution, in units of the distance from the second to the fourth.
NORMAL = np.array([-1.185, -0.5, 0.0, 0.5, 1.185])


def most_interesting(
    draws: Draws, reference: Draws | None, most: int
) -> tuple[dict[str, list[Element]], int]:
    """At most ``most`` elements by site, in their order, and how many there are in all.

    An element's score is the sum of three, each at most one: how far its quantiles are from the
    reference's, how far they are from a normal distribution's, and how much it depends on another
    element, in its value or in its distance from the median (which sees funnels and rings). Every
    site gives its best first, then its second best, and so on.
    """
    sites, total = sites_of(draws, max(most, 1))
    if total <= most or most < 1:
        return sites_of(draws, most)
    looked: dict[str, list[Element]] = {}
    for site, values in draws.items():
        if np.asarray(values)[0].size:
            looked |= sites_of({site: values}, OF_A_SITE)[0]
    others = {} if reference is None else matching(looked, draws, reference)
    known = islice(((site, one) for site, them in looked.items() for one in them), OF_ALL)
    names, elements = zip(*known, strict=True)
    columns = [_thinned(values) for _, values in elements]
    apart = [
        _apart(column, _thinned(others[label]) if label in others else None)
        for column, (label, _) in zip(columns, elements, strict=True)
    ]
    scores: Array = np.array(apart) + _dependence(np.stack(columns, axis=1))
    turns = np.zeros(len(scores), dtype=int)
    for site in set(names):
        of_site = np.array([i for i, name in enumerate(names) if name == site])
        turns[of_site[np.argsort(-scores[of_site])]] = np.arange(len(of_site))
    chosen: dict[str, list[Element]] = {}
    for i in sorted(np.lexsort((-scores, turns))[:most]):
        chosen.setdefault(names[i], []).append(elements[i])
    return chosen, total


def _thinned(values: NDArray[np.generic]) -> Array:
    """About ``DRAWS`` of the draws, evenly spaced, what isn't finite as NaN."""
    some = np.asarray(values[:: max(1, len(values) // DRAWS)], dtype=np.float64)
    return np.where(np.isfinite(some), some, np.nan)


def _quantiles(column: Array) -> Array:
    finite = column[np.isfinite(column)]
    return np.quantile(finite, PROBABILITIES) if finite.size else np.zeros(len(PROBABILITIES))


def _apart(column: Array, reference: Array | None) -> float:
    """How far from a normal distribution, and from the reference; -1 for a constant."""
    own = _quantiles(column)
    scale = own[3] - own[1]
    if not scale > 0:
        return -1.0
    score = min(1.0, float(np.abs((own - own[2]) / scale - NORMAL).max()))
    if reference is not None:
        score += min(1.0, float(np.abs((own - _quantiles(reference)) / scale).max()))
    return score


def _dependence(table: Array) -> Array:
    """Largest rank correlation of each column, or its distance from the middle, with another."""
    count = table.shape[1]
    ranks = np.argsort(np.argsort(table, axis=0), axis=0) / max(len(table) - 1, 1) - 0.5
    ranks[~np.isfinite(table)] = 0.0
    both = np.concatenate([ranks, np.abs(ranks)], axis=1)
    both -= both.mean(axis=0)
    both /= np.maximum(np.linalg.norm(both, axis=0), 1e-12)
    correlation = np.abs(both.T @ both).reshape(2, count, 2, count).max(axis=(0, 2))
    np.fill_diagonal(correlation, 0.0)
    largest: Array = correlation.max(axis=1)
    return largest
