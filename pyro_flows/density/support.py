# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What users say of the bounds of their columns, read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from pyro.distributions import constraints

from pyro_flows.errors import DensityError

Bounds = tuple[float, float]
REAL: Bounds = (-math.inf, math.inf)
NAMED: dict[str, Bounds] = {
    "real": REAL,
    "positive": (0.0, math.inf),
    "negative": (-math.inf, 0.0),
    "unit": (0.0, 1.0),
}


def read_support(support: Any, dim: int, names: list[str] | None = None) -> list[Bounds]:
    """Bounds per column from what the user gave.

    Args:
        support: None; one specification for all columns; a sequence of ``dim`` of them; or a
            mapping from column (index or name) to one. A specification is None, "real",
            "positive", "negative", "unit", a pair ``(low, high)`` with None for no bound, or a
            one-dimensional constraint of torch.
        dim: number of columns.
        names: their names, if they have any.

    Raises:
        DensityError: it can't be read; the text says what can.
    """
    support = _as_list(support)
    if isinstance(support, Mapping):
        bounds = [REAL] * dim
        keys: dict[int, Any] = {}
        for key, spec in support.items():
            column = _column(key, dim, names)
            if column in keys:
                raise DensityError(
                    f"support= speaks of column {column} twice, as {keys[column]!r} and as "
                    f"{key!r}. Keep one of them."
                )
            bounds[column], keys[column] = _bounds(spec), key
        return bounds
    if isinstance(support, Sequence) and not isinstance(support, str) and not _is_pair(support):
        if len(support) != dim:
            raise DensityError(
                f"Expected support= to have one entry for each of {dim} columns, but got "
                f"{len(support)}. Use None for a column without bounds, or a dict for a few."
            )
        return [_bounds(spec) for spec in support]
    return [_bounds(support)] * dim


def _is_pair(spec: Any) -> bool:
    return (
        isinstance(spec, Sequence)
        and len(spec) == 2
        and all(end is None or isinstance(end, Real) for end in spec)
        and any(end is not None for end in spec)
    )


def _as_list(value: Any) -> Any:
    """Arrays and tensors as lists, all else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _bounds(spec: Any) -> Bounds:
    spec = _as_list(spec)
    if spec is None:
        return REAL
    if isinstance(spec, str) and spec in NAMED:
        return NAMED[spec]
    if _is_pair(spec):
        low = -math.inf if spec[0] is None else float(spec[0])
        high = math.inf if spec[1] is None else float(spec[1])
        if low < high:
            return low, high
    if isinstance(spec, constraints.Constraint) and spec.event_dim == 0 and not spec.is_discrete:
        low, high = _bounds_of(spec)
        if low < high:
            return low, high
    raise DensityError(
        f"Expected support= to hold None, {', '.join(map(repr, NAMED))}, a pair (low, high) with "
        f"low < high and None for no bound, or a constraint of torch on one number, but got "
        f"{spec!r}."
    )


def _bounds_of(constraint: Any) -> Bounds:
    if constraint is constraints.real:
        return REAL
    low = getattr(constraint, "lower_bound", None)
    high = getattr(constraint, "upper_bound", None)
    if low is None and high is None:
        raise DensityError(
            f"Expected an interval or a half line in support=, but got {constraint!r}. Give the "
            "bounds as a pair (low, high)."
        )
    low, high = _as_list(low), _as_list(high)
    if not all(end is None or isinstance(end, Real) for end in (low, high)):
        raise DensityError(
            f"Expected a constraint in support= to have single numbers as bounds, but got "
            f"{constraint!r}. Give a sequence with one entry for each column."
        )
    return (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))


def _column(key: Any, dim: int, names: list[str] | None) -> int:
    if names and str(key) in names:
        if names.count(str(key)) > 1:
            raise DensityError(
                f"support= speaks of column {key!r}, but x has {names.count(str(key))} columns of "
                "that name. Give them names of their own, or support= as a sequence with one "
                "entry for each column."
            )
        return names.index(str(key))
    if isinstance(key, Integral) and -dim <= int(key) < dim:
        return int(key) % dim
    have = f"named {names}" if names else f"0 to {dim - 1}"
    raise DensityError(
        f"support= speaks of column {key!r}, but x has the columns {have}. Use one of those."
    )
