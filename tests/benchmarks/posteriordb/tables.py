# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What a sweep showed: a table of its targets, a summary of each guide, and a picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import figures

Row = dict[str, Any]


def read(files: Sequence[Path]) -> list[Row]:
    """Reads rows; of two for one guide, target and seed the later counts."""
    lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    rows = [json.loads(line) for line in lines if line.strip()]
    return list({(row["guide"], row["target"], row["seed"]): row for row in rows}.values())


def table(rows: list[Row]) -> str:
    """Gives markdown: a summary of each guide, then its targets, median / worst over seeds."""
    guides = list(dict.fromkeys(row["guide"] for row in rows))
    parts = [_summary(guides, rows)]
    for guide in guides:
        mine = [row for row in rows if row["guide"] == guide]
        names = sorted({row["target"] for row in mine}, key=lambda n: (_group(n, mine), n))
        head = "| " + " | ".join(_COLUMNS) + " |"
        lines = [f"### {guide}", "", head, "|---" * len(_COLUMNS) + "|"]
        lines += [_line(name, [row for row in mine if row["target"] == name]) for name in names]
        parts.append("\n".join(lines))
    return "\n\n".join([*parts, _LEGEND])


_COLUMNS = (
    *("target", "D", "seeds", "gap + 2 s.e.", "judged", "share", "k-hat", "mean error"),
    *("quantile error", "modes", "evidence error", "seconds", "gradients", "verdict", "in truth"),
)
_LEGEND = (
    "Figures are median / worst over seeds. Gap in nats, of the raw guide; errors of the draws "
    "that are handed over: of means in reference sds (unconstrained), of F_q at the reference "
    "quantiles, total variation of the shares of modes, and the mean absolute error of the "
    "evidence from 2,000 draws."
)


def _group(name: str, rows: list[Row]) -> str:
    return next((row["group"] for row in rows if row["target"] == name and "group" in row), "")


def _line(name: str, rows: list[Row]) -> str:
    good = [row for row in rows if "error" not in row]
    statuses = [row["status"] or "none" for row in good] + ["error"] * (len(rows) - len(good))
    truths = [row["truth"] for row in good]
    delivered = [row["delivered_errors"] for row in good]
    cells = [
        name,
        str(good[0]["d"]) if good else "",
        str(len(rows)),
        _cell([figures.gap(row) for row in rows], "{:.4f}"),
        ", ".join(sorted({row["judged"] for row in good})),
        _cell([row["share"] for row in good], "{:.3f}", min),
        _cell([figures.khat(row) for row in good], "{:.2f}"),
        _cell([row["mean"] for row in delivered], "{:.3f}"),
        _cell([row["quantile"] for row in delivered], "{:.3f}"),
        _cell([row["modes"] for row in delivered], "{:.3f}"),
        _cell([row["evidence_error"] for row in good], "{:.4f}"),
        _cell([row["seconds"] for row in good], "{:.0f}"),
        _cell([row["gradients"] for row in good], "{:,.0f}"),
        _counts(statuses),
        _counts(truths),
    ]
    return "| " + " | ".join(cells) + " |"


def _summary(guides: list[str], rows: list[Row]) -> str:
    columns = (
        *("guide", "targets", "fits", "median gap", "90 %", "worst", "median share", "90 %"),
        *("worst", "k-hat below 0.7", "errors within bounds", "mean evidence error", "failed"),
    )
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for guide in guides:
        mine = [row for row in rows if row["guide"] == guide]
        khats = [x for row in mine if (x := figures.khat(row)) is not None]
        beyond = [x for row in mine if (x := figures.beyond(row)) is not None]
        evidence = [x for row in mine if (x := figures.evidence(row)) is not None]
        lines.append(
            f"| {guide} | {len({row['target'] for row in mine})} | {len(mine)} | "
            + " | ".join(f"{x:.4f}" for x in spread(over_seeds(mine, figures.gap, max), 0.9))
            + " | "
            + " | ".join(f"{x:.3f}" for x in spread(over_seeds(mine, figures.share, min), 0.1))
            + f" | {sum(k < 0.7 for k in khats)} of {len(khats)}"
            + f" | {beyond.count(0.0)} of {len(beyond)}"
            + f" | {np.mean(evidence) if evidence else np.nan:.4f}"
            + f" | {sum('error' in row for row in mine)} |"
        )
    return "\n".join(lines)


def over_seeds(
    rows: list[Row], figure: Callable[[Row], float | None], worst: Callable[..., Any]
) -> tuple[list[float], float]:
    """The median over seeds for each target, and the worst of all fits."""
    values: dict[str, list[float]] = {}
    for row in rows:
        value = figure(row)
        if value is not None:
            values.setdefault(row["target"], []).append(value)
    medians = [statistics.median(v) for v in values.values()]
    return medians, worst((x for v in values.values() for x in v), default=np.nan)


def spread(found: tuple[list[float], float], share: float) -> tuple[float, float, float]:
    medians, worst = found
    if not medians:
        return np.nan, np.nan, np.nan
    # The point itself, not one between two: on 90 % means on 90 % at least.
    method = "higher" if share > 0.5 else "lower"
    return float(np.median(medians)), float(np.quantile(medians, share, method=method)), worst


def _cell(
    values: list[float | None], form: str, worst: Callable[[list[float]], float] = max
) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""

    def shown(value: float) -> str:
        return "n/a" if value == -np.inf else form.format(value)

    median = shown(statistics.median(known))
    return median if len(known) == 1 else f"{median} / {shown(worst(known))}"


def _counts(names: list[str]) -> str:
    return ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))


def picture(rows: list[Row], path: Path) -> None:
    """Draws the gap of each guide on each target, sorted by ours."""
    from matplotlib.figure import Figure

    guides = list(dict.fromkeys(row["guide"] for row in rows))
    gaps: dict[str, dict[str, float]] = {guide: {} for guide in guides}
    for guide in guides:
        for target in {row["target"] for row in rows}:
            found = [
                row["gap"]
                for row in rows
                if row["guide"] == guide and row["target"] == target and row.get("gap") is not None
            ]
            if found:
                gaps[guide][target] = max(statistics.median(found), 1e-5)
    order = sorted(gaps[guides[0]], key=lambda name: gaps[guides[0]][name])
    figure = Figure(figsize=(8, 1.2 + 0.19 * len(order)), layout="constrained")
    axes = figure.add_subplot()
    marks = ["o", "s", "^", "v", "D"]
    colours = ["#D55E00", "#0072B2", "#009E73", "#CC79A7", "#555555"]
    for guide, mark, colour in zip(guides, marks, colours, strict=False):
        shown = [
            (gaps[guide][name], place) for place, name in enumerate(order) if name in gaps[guide]
        ]
        if shown:
            x, y = zip(*shown, strict=True)
            axes.scatter(np.minimum(x, 1e3), y, marker=mark, color=colour, s=18, label=guide)
    axes.set_xscale("log")
    axes.set_yticks(range(len(order)), order, fontsize=7)
    axes.set_ylim(-1, len(order))
    for bar in (1e-3, 2e-2):
        axes.axvline(bar, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.set_xlabel("gap log Z - ELBO, nats (median over seeds; 1e-5 and less at 1e-5)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)
