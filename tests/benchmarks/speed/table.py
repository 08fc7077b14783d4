# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Rows as markdown tables."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from plan import GROUPS, Group

Row = dict[str, Any]


def read(path: Path) -> list[Row]:
    """The rows of a file; of two for one contender and case the later counts."""
    lines = path.read_text().splitlines() if path.exists() else []
    rows = [json.loads(line) for line in lines if line.strip()]
    names = ("group", "case", "contender", "threads", "round")
    return list({tuple(row.get(name) for name in names): row for row in rows}.values())


def table(rows: list[Row]) -> str:
    """Gives markdown: a section for each group, and what the figures were measured on."""
    parts = []
    for name, group in GROUPS.items():
        for threads in sorted({row["threads"] for row in rows if row["group"] == name}):
            mine = [row for row in rows if row["group"] == name and row["threads"] == threads]
            parts.append(f"## {name}: {group.title} ({_threads(threads)})")
            parts += [*_section(name, group, mine), group.note]
            parts += _left_out(mine)
    return "\n\n".join([*parts, _measured_on(rows)])


def _section(name: str, group: Group, rows: list[Row]) -> list[str]:
    good = [row for row in rows if "left_out" not in row]
    if name == "growth":
        return [_growth(axis, good) for axis in _axes(good)]
    form = _whole if group.whole else _steps
    cases = [case for case in group.cases if any(row["case"] == case for row in good)]
    return [form(case, [row for row in good if row["case"] == case]) for case in cases]


# Steps: how long one takes, and ours beside each.


def _steps(case: str, rows: list[Row]) -> str:
    median = {row["contender"]: statistics.median(row["seconds"]) for row in rows}
    ours = [name for name in median if name.startswith("ours")]
    head = [case, "ms, median", "ms, fastest", *(f"{name} / this" for name in ours)]
    head += ["first call, s", "build, s", "imports, s", "parameters", "MB"]
    lines = [
        [
            row["contender"],
            _number(1e3 * median[row["contender"]]),
            _number(1e3 * min(row["seconds"])),
            *(_number(median[name] / median[row["contender"]]) for name in ours),
            _number(row["first_seconds"]),
            _number(row["build_seconds"]),
            _number(row["start_seconds"]),
            f"{row['facts']['parameters']:,}" if "parameters" in row["facts"] else "",
            f"{row['memory_mb']:.0f}",
        ]
        for row in rows
    ]
    return _markdown(head, lines)


# Whole fits: cold, warm, and what came out.


def _whole(case: str, rows: list[Row]) -> str:
    head = [case, "fits", "cold, s", "warm, s", "imports and build, s", "mean error, sds"]
    head += ["sd error, sds", "divergences", "gap, nats", "verdict", "MB"]
    lines = []
    for name in dict.fromkeys(row["contender"] for row in rows):
        mine = [row for row in rows if row["contender"] == name]
        facts = [row[of] for row in mine for of in ("first_facts", "facts")]
        verdicts = [fact["verdict"] for fact in facts if "verdict" in fact]
        lines.append(
            [
                name,
                str(len(facts)),
                _spread([row["first_seconds"] for row in mine]),
                _spread([row["seconds"][0] for row in mine]),
                _spread([row["start_seconds"] + row["build_seconds"] for row in mine]),
                *(
                    _spread([fact[figure] for fact in facts if figure in fact])
                    for figure in ("mean_error", "sd_error", "divergences", "gap")
                ),
                ", ".join(f"{verdicts.count(v)} {v}" for v in dict.fromkeys(verdicts)),
                f"{max(row['memory_mb'] for row in mine):.0f}",
            ]
        )
    return _markdown(head, lines)


# Growth: a table for each size that grows.


def _axes(rows: list[Row]) -> list[str]:
    return list(dict.fromkeys(row["case"].split()[0] for row in rows))


def along(axis: str, rows: list[Row]) -> list[tuple[int, float, Row]]:
    """The sizes of an axis in order, the ms of a step, and the rows."""
    mine = [row for row in rows if row["case"].split()[0] == axis]
    found = [(row["sizes"][axis], 1e3 * statistics.median(row["seconds"]), row) for row in mine]
    return sorted(found, key=lambda point: point[0])


def _growth(axis: str, rows: list[Row]) -> str:
    head = [axis, "ms, median", "ms, fastest", "first call, s", "parameters"]
    head += ["MB, imported and built", "MB, most"]
    lines = [
        [
            f"{size:,}",
            _number(ms),
            _number(1e3 * min(row["seconds"])),
            _number(row["first_seconds"]),
            f"{row['facts']['parameters']:,}",
            f"{row['start_memory_mb']:.0f}",
            f"{row['memory_mb']:.0f}",
        ]
        for size, ms, row in along(axis, rows)
    ]
    return _markdown(head, lines)


# Words.


def _left_out(rows: list[Row]) -> list[str]:
    found: dict[str, list[str]] = {}
    for row in rows:
        if "left_out" in row:
            found.setdefault(f"{row['contender']}: {row['left_out']}", []).append(row["case"])
    return [f"Left out: {what} ({', '.join(cases)})." for what, cases in found.items()]


def _measured_on(rows: list[Row]) -> str:
    """Machines, loads and versions behind the rows."""
    machines = [row["machine"] for row in rows]
    kinds = {f"{m['processor']}, {m['cpus']} CPUs, Python {m['python']}" for m in machines}
    loads = [m["load"] for m in machines]
    versions: dict[str, set[str]] = {}
    for row in rows:
        for package, version in row.get("versions", {}).items():
            versions.setdefault(package, set()).add(version)
    packages = ", ".join(f"{name} {' and '.join(sorted(v))}" for name, v in versions.items())
    return (
        f"Measured on {'; '.join(sorted(kinds))}; load before each case {min(loads)} to "
        f"{max(loads)}. {packages}."
    )


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _number(value: float) -> str:
    """Three significant digits."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{_number(statistics.median(values))} / {_number(max(values))}"


def _markdown(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))
