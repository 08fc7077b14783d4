# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""How a training step grows, as a picture."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from table import along

# What grows, and the sizes that are marked.
AXES = {
    "dim": ("dimension", (2, 10, 100, 1000)),
    "particles": ("particles", (16, 64, 256, 1024)),
    "rows": ("rows of data", (100, 1_000, 10_000, 100_000)),
    "layers": ("couplings", (2, 4, 8, 16)),
}
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")


def picture(rows: list[dict[str, Any]], path: Path) -> None:
    """Draws ms per step and peak memory against each size, on logarithmic axes."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    rows = [row for row in rows if row["group"] == "growth" and "left_out" not in row]
    shown = {axis: marks for axis, marks in AXES.items() if along(axis, rows)}
    if not shown:
        sys.exit("There are no rows of the group growth yet: measure them with --groups growth.")
    plain = FuncFormatter(lambda value, _: f"{value:,g}")
    figure = Figure(figsize=(1.2 + 2.6 * len(shown), 4.8), layout="constrained")
    panels = figure.subplots(2, len(shown), sharex="col", sharey="row", squeeze=False)
    threads = sorted({row["threads"] for row in rows})
    for column, (axis, (label, marks)) in enumerate(shown.items()):
        for colour, count in zip(COLOURS, threads, strict=False):
            points = along(axis, [row for row in rows if row["threads"] == count])
            sizes = [size for size, _, _ in points]
            times = [ms for _, ms, _ in points]
            memory = [row["memory_mb"] for _, _, row in points]
            name = "1 thread" if count == 1 else f"{count} threads"
            for panel, values in zip(panels[:, column], (times, memory), strict=True):
                panel.loglog(sizes, values, "o-", color=colour, markersize=4, label=name)
        panels[1, column].set_xlabel(label)
        panels[1, column].set_xticks(marks, [f"{mark:,}" for mark in marks])
    for panel in panels.flat:
        panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.yaxis.set_major_formatter(plain)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_minor_formatter(NullFormatter())
        panel.tick_params(which="both", labelsize=8)
        panel.grid(which="major", color="#dddddd", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("ms per training step")
    panels[1, 0].set_ylabel("peak memory, MB")
    if len(threads) > 1:
        panels[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)
