# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""How often a verdict is right, with intervals.

- False assurance: "reliable" or "corrected", of the wrong.
- False alarm: "not reliable", of the right; and a guide that couldn't be judged at all.
- Joint rate: wrong and assured, of all that are wrong or right.

Draws that are neither, "grey", and those of which nothing is known are counted apart.
"""

from __future__ import annotations

import zlib
from collections import Counter
from typing import Any

from scipy.stats import beta

Row = dict[str, Any]


_ALARM = {"truth": "right", "status": "not reliable"}


def interval(count: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of a proportion."""
    tail = (1 - level) / 2
    low = beta.ppf(tail, count, total - count + 1) if count else 0.0
    high = beta.ppf(1 - tail, count + 1, total - count) if count < total else 1.0
    return float(low), float(high)


def rates(rows: list[Row]) -> dict[str, tuple[int, int]]:
    """Counts and totals of false assurance, false alarm and both together."""
    rows = [row if "error" not in row else _ALARM for row in rows]
    judged = [row for row in rows if row.get("truth") in ("wrong", "right")]
    wrong = [row for row in judged if row["truth"] == "wrong"]
    right = [row for row in judged if row["truth"] == "right"]
    assured = sum(row["status"] != "not reliable" for row in wrong)
    alarms = sum(row["status"] == "not reliable" for row in right)
    return {
        "false assurance": (assured, len(wrong)),
        "false alarm": (alarms, len(right)),
        "joint": (assured, len(judged)),
    }


def halves(rows: list[Row]) -> tuple[list[Row], list[Row]]:
    """The rows of half of the targets, chosen by a checksum of the name, and the rest."""
    first = {row["target"] for row in rows if zlib.crc32(row["target"].encode()) % 2}
    return (
        [row for row in rows if row["target"] in first],
        [row for row in rows if row["target"] not in first],
    )


def table(rows: list[Row]) -> str:
    """Gives markdown: the rates, by half and by defect, and every verdict that was wrong."""
    chosen_on, rest = halves(rows)
    lines = ["| | false assurance | false alarm | wrong and assured |", "|---|---|---|---|"]
    parts = {"all targets": rows, "half for thresholds": chosen_on, "other half": rest}
    for defect in dict.fromkeys(row["defect"] for row in rows if "defect" in row):
        parts[f"defect: {defect}"] = [row for row in rows if row.get("defect") == defect]
    for name, part in parts.items():
        cells = [_cell(*found) for found in rates(part).values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    truths = Counter(row.get("truth", "error") for row in rows)
    counts = ", ".join(f"{count} {truth}" for truth, count in truths.most_common())
    mistakes = [_mistake(row) for row in rows if _is_mistake(row)]
    lines += [
        "",
        f"{len(rows)} guides of {len({row['target'] for row in rows})} targets: {counts}.",
    ]
    return "\n".join([*lines, "", "Mistakes:", "", *(mistakes or ["none"])])


def _cell(count: int, total: int) -> str:
    if not total:
        return "-"
    low, high = interval(count, total)
    return f"{count} of {total}: {count / total:.1%} ({low:.1%} to {high:.1%})"


def _is_mistake(row: Row) -> bool:
    return any(count for name, (count, _) in rates([row]).items() if name != "joint")


def _mistake(row: Row) -> str:
    if "error" in row:
        return f"- {row['target']}, {row.get('defect')}, seed {row['seed']}: {row['error']}"
    known = {name: value for name, value in row["errors"].items() if value is not None}
    found = ", ".join(f"{name} {value:.2f}" for name, value in known.items())
    return f"- {row['target']}, {row['defect']}, seed {row['seed']}: {row['status']}; {found}"
