# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The figures of a fit that are judged.

None where a target has no such figure. A fit that has none where its target has one (it crashed,
gave NaN, or its evidence disagrees with the known one) gets the worst there is, and stays in.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

Row = dict[str, Any]
Figure: TypeAlias = Callable[[Row], "float | None"]

QUANTILE_BAR = 0.02
# Total variation of the shares of modes.
LARGEST_OFF = 0.05


def gap(row: Row) -> float | None:
    """The gap that is judged, with two standard errors added."""
    if "error" in row:
        return math.inf
    if row.get("gap") is None:
        return None if row.get("log_z") is None else math.inf
    return _number(row["gap"] + 2 * (row["gap_se"] or 0.0))


def share(row: Row) -> float | None:
    """The effective share; 0 where the evidence disagrees with the known one."""
    if "error" in row:
        return 0.0
    if row.get("log_z") is None:
        return None
    if row.get("share") is None:
        return 0.0
    error = math.hypot(row["ln_z_is_se"], row["log_z_se"])
    agrees = abs(row["ln_z_is"] - row["log_z"]) <= max(0.01, 4 * error)
    return row["share"] if agrees else 0.0


def khat(row: Row) -> float | None:
    """k-hat; -inf for constant weights, which have none: a pass."""
    if "error" in row:
        return math.inf
    return -math.inf if row.get("khat_applicable") is False else _number(row.get("khat"))


def evidence(row: Row) -> float | None:
    """The mean absolute error of the evidence from 2,000 draws."""
    if "error" in row:
        return math.inf
    return None if row.get("log_z") is None else _number(row["evidence_error"])


def beyond(row: Row) -> float | None:
    """1 where an error of the draws that are handed over is beyond its bound, else 0."""
    if "error" in row:
        return 1.0
    found = row["delivered_errors"]
    if found["met"] is None:
        return None
    quantile = found["quantile"]
    return float(not found["met"] or (quantile is not None and not quantile <= QUANTILE_BAR))


def modes(row: Row) -> float | None:
    """The total variation of the shares of modes."""
    return math.inf if "error" in row else row["delivered_errors"]["modes"]


def missing(row: Row) -> float | None:
    """How many modes have less than half of their share."""
    return math.inf if "error" in row else row["delivered_errors"].get("missing")


def untold(row: Row) -> float | None:
    """1 where shares of modes are off, and the verdict doesn't say that some may be missing."""
    off = modes(row)
    if off is None or off <= LARGEST_OFF:
        return None if off is None else 0.0
    return float(not any("modes may be missing" in reason for reason in row.get("reasons", [])))


def gradients(row: Row) -> float | None:
    """Evaluations of the gradient."""
    return math.inf if "error" in row else float(row["gradients"])


def seconds(row: Row) -> float | None:
    """Wall time."""
    return math.inf if "error" in row else float(row["seconds"])


def within(figure: Figure, budget: int) -> Figure:
    """A figure of fits that kept to a budget of gradients; the worst for others."""

    def kept(row: Row) -> float | None:
        return figure(row) if "error" not in row and row["gradients"] <= budget else math.inf

    return kept


def _number(value: float | None) -> float:
    return math.inf if value is None or math.isnan(value) else value
