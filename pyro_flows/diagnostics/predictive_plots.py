# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of a posterior predictive check: the data beside what the model would say next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from .calibration import p_text
from .drawing import (
    BLUE,
    GREY,
    ORANGE,
    SMALL,
    bulk,
    figures,
    legend_below,
    new_figure,
    note,
    shorten,
    tidy,
)
from .ecdf_bands import ecdf_band, ecdf_p_value
from .predictive_check import STATISTICS, Array, Statistic, pit_counts, quantities, two_sided

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_predictive_check"]

# As many sets of new data are enough for a band, and for lines.
MOST_SETS, MOST_LINES = 500, 60
MOST_BARS = 40
BAND, PALE = "#DDDDDD", "#F3C5A8"


def plot_predictive_check(
    observed: ArrayLike,
    replicated: ArrayLike,
    *,
    statistics: Sequence[Statistic] = STATISTICS,
    pit: Array | None = None,
    discrete: bool = False,
    title: str = "Posterior predictive check",
) -> Figure:
    """The data and new data from the fitted model, as a whole and by statistics.

    Args:
        observed: the data, any shape.
        replicated: new data ``(S, *observed.shape)``, one set for each draw.
        statistics: as for ``predictive_pvalues``.
        pit: LOO-PIT values, which are then drawn less a uniform distribution, with a simultaneous
            95% band; else the distribution functions of data and new data are.
        discrete: whether the data are counts or classes: whole numbers get a bar each.
        title: above it all.

    Returns:
        The figure: how many data fall into each bar and in what range 90% of new sets do; LOO-PIT
        or distribution functions; a histogram for each statistic.

    Raises:
        ValueError: as for ``predictive_pvalues``.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> fig = plot_predictive_check(rng.normal(size=50), rng.normal(size=(400, 50)))
        >>> [ax.get_title(loc="left").split(":")[0] for ax in fig.axes][2:]
        ['mean', 'sd', 'min', 'max']
    """
    found = quantities(observed, replicated, statistics)
    data = np.asarray(observed, dtype=float).ravel()
    new = np.asarray(replicated, dtype=float).reshape(-1, data.size)
    rows = -(-len(found) // 4)
    fig = new_figure(10.0, 4.2 + 2.1 * rows)
    fig.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    parts: Any = fig.subfigures(
        1 + (rows > 0), 1, height_ratios=[4.2, 2.1 * rows][: 1 + rows], squeeze=False
    )
    upper, lower = parts[0, 0], parts[-1, 0]
    left, right = upper.subplots(1, 2)
    _draw_bars(left, data, new[:MOST_SETS], discrete=discrete)
    if pit is None:
        _draw_ecdfs(right, data, new[:MOST_LINES])
    else:
        _draw_pit(right, np.asarray(pit, dtype=float))
    for i, (name, (value, values)) in enumerate(found.items()):
        columns = min(4, max(3, len(found)))
        ax = lower.add_subplot(rows, columns, i + 1)
        _draw_statistic(ax, name, value, values, first=i == 0)
    return fig


def _edges(data: Array, new: Array, *, discrete: bool) -> Array:
    """Bars over the data and the bulk of new data."""
    finite = new[np.isfinite(new)]
    low, high = float(data.min()), float(data.max())
    if finite.size:
        ends = bulk(finite)
        # New data of a wide tail would press the data into one bar.
        reach = max(high - low, *np.diff(np.quantile(finite, [0.25, 0.75])))
        low, high = min(low, max(ends[0], low - reach)), max(high, min(ends[1], high + reach))
    if discrete:
        width = max(1, math.ceil((high - low + 1) / MOST_BARS))
        number = math.floor((high - low) / width) + 1
        return math.floor(low) - 0.5 + width * np.arange(number + 1.0)
    number = int(np.clip(round(3.0 * data.size ** (1 / 3)), 10, MOST_BARS))
    return np.linspace(low, high if high > low else low + 1.0, number + 1)


def _draw_bars(ax: Axes, data: Array, new: Array, *, discrete: bool) -> None:
    edges = _edges(data, new, discrete=discrete)
    counts = np.array([np.histogram(row[np.isfinite(row)], edges)[0] for row in new])
    low, middle, high = np.quantile(counts, [0.05, 0.5, 0.95], axis=0)
    own = np.histogram(data, edges)[0]
    ax.stairs(high, edges, baseline=low, fill=True, color=PALE, label="90% of new sets")
    ax.stairs(middle, edges, baseline=None, color=ORANGE, lw=1.2, label="their median")
    ax.stairs(own, edges, color=BLUE, lw=2.0, label="data")
    tidy(ax, "Data and new data")
    ax.set(xlabel="value", ylabel="data in a bar", xlim=(edges[0], edges[-1]), ylim=(0, None))
    ax.locator_params(axis="y", integer=True)
    if discrete:
        ax.locator_params(axis="x", integer=True)
    outside = 1.0 - counts.sum() / new.size
    lost = int(new.size - np.isfinite(new).sum())
    lines = [f"{outside:.1%} of new data outside" if outside >= 0.0005 else ""]
    lines.append(f"{lost:,} new data not finite" if lost else "")
    note(ax, "\n".join(line for line in lines if line), 0.02, 0.98)
    legend_below(ax)


def _draw_ecdfs(ax: Axes, data: Array, new: Array) -> None:
    edges = _edges(data, new, discrete=False)
    margin = 0.02 * (edges[-1] - edges[0])
    at = np.linspace(edges[0] - margin, edges[-1] + margin, 400)

    def below(values: Array) -> Array:
        shares: Array = np.searchsorted(np.sort(values), at, side="right") / values.size
        return shares

    for i, row in enumerate(new):
        label = "new sets" if i == 0 else None
        ax.plot(at, below(row), color=ORANGE, lw=0.6, alpha=0.35, label=label)
    ax.plot(at, below(data), color=BLUE, lw=1.8, label="data")
    tidy(ax, "Distribution functions")
    ax.set(xlabel="value", ylabel="share below", xlim=(at[0], at[-1]), ylim=(0, 1))
    legend_below(ax)


def _draw_pit(ax: Axes, pit: Array) -> None:
    known = pit[~np.isnan(pit)]
    tidy(ax, "LOO-PIT")
    if known.size < 2:
        note(ax, "no values", 0.5, 0.5)
        return
    counts, n, points = pit_counts(known)
    lower, upper = ecdf_band(n, points)
    x = np.array([0.0, *points, 1.0])
    low, high, own = ([0.0, *(side / n - points), 0.0] for side in (lower, upper, counts))
    p = ecdf_p_value(counts, n, points)
    tidy(
        ax,
        f"LOO-PIT less uniform: p = {p:.2g}" if p >= 0.001 else "LOO-PIT less uniform: p < 0.001",
    )
    ax.fill_between(x, low, high, color=BAND, lw=0, label="95% band")
    ax.axhline(0.0, color=GREY, lw=0.8, ls=":")
    ax.plot(x, own, color=BLUE, lw=1.8, label="data")
    ax.set(xlabel="LOO-PIT value", ylabel="share below, less expected", xlim=(0, 1))
    legend_below(ax)
    if known.size < pit.size:
        note(ax, f"{pit.size - known.size:,} not known", 0.98, 0.02)


def _draw_statistic(ax: Axes, name: str, value: float, new: Array, *, first: bool) -> None:
    finite = new[np.isfinite(new)]
    ax.set_yticks([])
    shown = f"{shorten(name, 20)}: "
    if finite.size < new.size or not math.isfinite(value):
        tidy(ax, shown + "not finite")
        note(ax, f"{new.size - finite.size:,} of {new.size:,} not finite", 0.98, 0.97)
    else:
        tidy(ax, shown + p_text(two_sided(value, new)))
    ax.spines["left"].set_visible(False)
    if finite.size == 0:
        return
    values, counts = np.unique(finite, return_counts=True)
    if values.size <= 30:
        gap = float(np.diff(values).min()) if values.size > 1 else max(1.0, 0.1 * abs(values[0]))
        ax.bar(values, counts, 0.8 * gap, color=PALE, label="sets of new data")
        if (values == np.round(values)).all():
            ax.locator_params(axis="x", integer=True)
    else:
        bins = np.linspace(*bulk(finite), 31).tolist()
        ax.hist(finite, bins=bins, color=PALE, label="sets of new data")
    if math.isfinite(value):
        ax.axvline(value, color=BLUE, lw=2.0, label="data")
    ax.locator_params(axis="x", nbins=5)
    ax.set_xlabel(
        f"data {figures(value)}, new {figures(float(np.median(finite)))}", fontsize=SMALL
    )
    if first:
        legend_below(ax)
