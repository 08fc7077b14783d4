# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Rows of data against draws of the fitted density, as a picture."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyro_flows.diagnostics.drawing import BLUE, ORANGE, SMALL, new_figure, shorten
from pyro_flows.errors import DataError, DensityError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pyro_flows.density.flow_density import FlowDensity

MOST_COLUMNS = 5
# Draws for outlines and histograms, and rows of data shown as points.
DRAWS = 20_000
POINTS = 1_000
# Shares of the draws inside the outlines.
SHARES = (0.5, 0.9)
BINS = 40


def plot_density(
    density: FlowDensity, x: Any, context: Any, *, columns: Any = None, seed: int | None = None
) -> Figure:
    """See :meth:`FlowDensity.plot`."""
    units = density.units_
    rows = density.heldout_ if x is None else units.read(x, context)
    if not len(rows):
        raise DataError("plot expected rows, but got none. Leave x out for those held out in fit.")
    data = rows.x[:POINTS].cpu().numpy()
    names = units.names or [f"x{i}" for i in range(units.dim)]
    shown = _choose(columns, names)
    if rows.context is None:
        draws = density.sample(DRAWS, seed=seed)
    else:
        given = rows.context[:POINTS]
        draws = density.sample(max(1, DRAWS // len(given)), given, seed=seed)
    draws = np.asarray(draws, dtype=np.float64).reshape(-1, units.dim)
    count = len(shown)
    size = max(1.9 * count, 3.6)
    figure = new_figure(size, size)
    axes = figure.subplots(count, count, squeeze=False)
    bounds = np.stack([units.columns.low.cpu().numpy(), units.columns.high.cpu().numpy()], 1)
    limits = [_limits(data[:, i], draws[:, i], bounds[i]) for i in shown]
    for row, i in enumerate(shown):
        for column, j in enumerate(shown):
            ax = axes[row, column]
            if column > row:
                ax.remove()
                continue
            if row == column:
                _draw_marginal(ax, data[:, i], draws[:, i], limits[row])
            else:
                _draw_pair(ax, data[:, [j, i]], draws[:, [j, i]], limits[column], limits[row])
            _label(ax, names[j] if row == count - 1 else "", names[i] if 0 == column < row else "")
    _explain(figure, len(data), of="validation rows" if x is None else "rows")
    return figure


def _choose(columns: Any, names: list[str]) -> list[int]:
    if columns is None:
        return list(range(min(MOST_COLUMNS, len(names))))
    chosen = []
    for column in [columns] if isinstance(columns, (Integral, str)) else columns:
        if isinstance(column, str) and names.count(column) == 1:
            chosen.append(names.index(column))
        elif isinstance(column, Integral) and -len(names) <= int(column) < len(names):
            chosen.append(int(column) % len(names))
        else:
            raise DensityError(
                f"plot expected columns= to name columns of x, which are {names}, each by a name "
                f"of its own, but got {column!r}. Use such names, or indices."
            )
    return chosen


def _limits(data: NDArray[Any], draws: NDArray[Any], bounds: NDArray[Any]) -> tuple[float, float]:
    """Where nearly all of both lie: one outlier doesn't squeeze the rest into a line."""
    ends = [np.quantile(values, [0.002, 0.998]) for values in (data, draws)]
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    margin = 0.05 * (high - low)
    return max(low - margin, float(bounds[0])), min(high + margin, float(bounds[1]))


def _draw_marginal(
    ax: Axes, data: NDArray[Any], draws: NDArray[Any], limits: tuple[float, float]
) -> None:
    edges = np.linspace(*limits, BINS + 1)
    shares = [np.histogram(values, edges)[0] / len(values) for values in (data, draws)]
    ax.stairs(shares[0], edges, fill=True, color=BLUE, alpha=0.35)
    ax.stairs(shares[1], edges, color=ORANGE, lw=1.4)
    ax.set_xlim(*limits)
    ax.set_yticks([])
    ax.spines[["top", "right", "left"]].set_visible(False)


def _draw_pair(
    ax: Axes,
    data: NDArray[Any],
    draws: NDArray[Any],
    across: tuple[float, float],
    up: tuple[float, float],
) -> None:
    ax.scatter(data[:, 0], data[:, 1], s=4, color=BLUE, alpha=0.35, lw=0, rasterized=True)
    counts, x, y = np.histogram2d(draws[:, 0], draws[:, 1], BINS, range=(across, up))
    smooth = _smooth(counts)
    order = np.sort(smooth.ravel())[::-1]
    inside = np.cumsum(order) / max(order.sum(), 1e-300)
    levels = sorted({float(order[np.searchsorted(inside, share)]) for share in SHARES})
    if levels and levels[0] > 0:
        centres = [(edges[1:] + edges[:-1]) / 2 for edges in (x, y)]
        ax.contour(*centres, smooth.T, levels=levels, colors=[ORANGE], linewidths=1.2)
    ax.set_xlim(*across)
    ax.set_ylim(*up)
    ax.spines[["top", "right"]].set_visible(False)


def _smooth(counts: NDArray[Any]) -> NDArray[Any]:
    """Binomial weights along both axes, so that outlines don't follow single draws."""
    weights = np.array([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
    # Mirrored at the sides: a density may be highest at the bound of a support.
    counts = np.pad(counts, 2, mode="symmetric")
    for axis in (0, 1):
        counts = np.apply_along_axis(np.convolve, axis, counts, weights, mode="valid")
    return counts


def _label(ax: Axes, across: str, up: str) -> None:
    ax.tick_params(labelsize=SMALL - 1)
    ax.set_xlabel(shorten(across), fontsize=SMALL + 1)
    ax.set_ylabel(shorten(up), fontsize=SMALL + 1)
    if not across:
        ax.set_xticklabels([])
    if not up:
        ax.set_yticklabels([])


def _explain(figure: Figure, count: int, of: str) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    shares = " and ".join(f"{share:.0%}" for share in SHARES)
    handles = [
        Patch(color=BLUE, alpha=0.35, label=f"data: {count} {of}"),
        Line2D([], [], color=ORANGE, label=f"flow: draws, outlines of {shares}"),
    ]
    figure.legend(handles=handles, loc="outside upper center", fontsize=SMALL + 1, frameon=False)
