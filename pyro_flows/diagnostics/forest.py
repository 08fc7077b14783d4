# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Intervals of many elements, site by site, alone or beside those of a reference."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .drawing import (
    BLUE,
    GREY,
    INTERVAL,
    ORANGE,
    SMALL,
    figures,
    interval,
    new_figure,
    shorten,
    tidy,
)
from .elements import Draws, Element, matching, sites_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

__all__ = ["plot_forest"]

# Sites share an axis as long as it isn't this many times as long as their narrowest interval.
SHARED = 15.0
# The width of the central interval of a normal distribution, in standard deviations.
WIDTH_OF_NORMAL = 3.196
# Of a row, of one with a reference, and of an axis with its numbers, inches.
HEIGHT, HIGHER, AXIS = 0.26, 0.34, 0.34


class Row(NamedTuple):
    """One element: its label, 89 % and 50 % intervals, and how many draws are not finite."""

    label: str
    whole: tuple[float, float, float]
    half: tuple[float, float, float]
    lost: int


def plot_forest(
    draws: Draws,
    *,
    reference: Draws | None = None,
    name: str = "posterior",
    reference_name: str = "reference",
    max_elements: int = 40,
) -> Figure:
    """Median, 50 % and 89 % interval of every element, with its figures.

    Sites on different scales get axes of their own. Beside a reference the figures are how far
    the median has shifted, in the reference's standard deviations, and how many times as wide
    the 89 % interval is.

    Args:
        draws: site to draws ``(S, *shape)``.
        reference: draws of the same sites from elsewhere, say NUTS, any number of them. Sites
            that it lacks are shown alone.
        name: what the draws are called.
        reference_name: what the reference is called.
        max_elements: at most so many rows; the picture says how many there are.

    Returns:
        The figure.

    Raises:
        ValueError: no draws, or a site has another shape in the reference.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> draws = {"mu": rng.normal(size=500), "scale": 1000 * rng.normal(size=(500, 2))}
        >>> fig = plot_forest(draws)
        >>> [[label.get_text() for label in ax.get_yticklabels()] for ax in fig.axes]
        [['mu'], ['scale[0]', 'scale[1]']]
    """
    sites, total = sites_of(draws, max_elements)
    others = None if reference is None else matching(sites, draws, reference)
    panels = _panels(sites, others)
    count = sum(map(len, sites.values()))
    height = (HIGHER if others else HEIGHT) * count + AXIS * len(panels) + 0.8
    fig = new_figure(7.0, height)
    draw_forest(fig, fig.add_gridspec(1, 1)[0], sites, others)
    title = f"Median, 50% and {INTERVAL:.0%} intervals"
    if count < total:
        title += f" of the first {count} of {total:,} elements"
    if others is not None:
        title += "; at the right: shift of the median, relative width"
    fig.suptitle(title, x=0.01, ha="left", fontsize=10)
    if others is not None:
        _explain(fig, name, reference_name)
    return fig


def draw_forest(
    fig: Figure,
    cell: SubplotSpec,
    sites: Mapping[str, Sequence[Element]],
    others: Mapping[str, NDArray[Any]] | None = None,
) -> list[Axes]:
    """Intervals in a cell of a figure's grid, the first at the top; an axis for each scale."""
    panels = _panels(sites, others)
    heights = [sum(len(sites[site]) for site in panel) + AXIS / HEIGHT for panel in panels]
    grid = cell.subgridspec(len(panels), 1, height_ratios=heights)
    axes = [fig.add_subplot(grid[i]) for i in range(len(panels))]
    for ax, panel in zip(axes, panels, strict=True):
        _draw_panel(ax, [sites[site] for site in panel], others)
    return axes


def _draw_panel(
    ax: Axes, sites: Sequence[Sequence[Element]], others: Mapping[str, NDArray[Any]] | None
) -> None:
    rows = [row_of(label, values) for elements in sites for label, values in elements]
    second = [
        row_of(row.label, others[row.label]) if others and row.label in others else None
        for row in rows
    ]
    apart = 0.14 if any(second) else 0.0
    for y, (row, other) in enumerate(zip(rows, second, strict=True)):
        _draw_row(ax, row, y - (apart if other else 0), BLUE, "o", apart)
        if other:
            _draw_row(ax, other, y + apart, ORANGE, "s", apart)
        text = _against(row, other) if other else _figures(row)
        place = ax.get_yaxis_transform()
        ax.text(1.03, y, text, transform=place, va="center", fontsize=SMALL, color=GREY)
    tidy(ax)
    _choose_scale(ax, [*rows, *(other for other in second if other)])
    ax.set_yticks(range(len(rows)))
    ax.set_yticklabels([shorten(row.label, 24) for row in rows], fontsize=SMALL + 1)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="x", alpha=0.25)
    for edge in np.cumsum([len(elements) for elements in sites])[:-1]:
        ax.axhline(edge - 0.5, color=GREY, lw=0.6, alpha=0.5)
    low, high = ax.get_xlim()
    if low < 0 < high:
        ax.axvline(0.0, color=GREY, lw=0.8, ls=":")


def row_of(label: str, values: NDArray[Any]) -> Row:
    """The intervals of one element's finite draws; NaN where there are none."""
    numbers = np.asarray(values, dtype=float)
    finite = numbers[np.isfinite(numbers)]
    lost = numbers.size - finite.size
    if not finite.size:
        return Row(label, (math.nan,) * 3, (math.nan,) * 3, lost)
    return Row(label, interval(finite), interval(finite, 0.5), lost)


def _draw_row(ax: Axes, row: Row, y: float, colour: str, marker: str, apart: float) -> None:
    ax.plot([row.whole[0], row.whole[2]], [y, y], color=colour, lw=1.5)
    width = 3.0 if apart else 4.0
    ax.plot([row.half[0], row.half[2]], [y, y], color=colour, lw=width, solid_capstyle="butt")
    size = 3.5 if apart else 4.5
    ax.plot(row.whole[1], y, marker, color="white", mec="black", ms=size, zorder=5)


def _figures(row: Row) -> str:
    low, middle, high = row.whole
    lost = f", {row.lost:,} not finite" if row.lost else ""
    if math.isnan(middle):
        return f"no finite draw of {row.lost:,}"
    return f"{figures(middle)}  [{figures(low)}, {figures(high)}]{lost}"


def _against(row: Row, other: Row) -> str:
    widths = [one.whole[2] - one.whole[0] for one in (row, other)]
    if math.isnan(sum(widths)) or not widths[1]:
        return _figures(row)
    shift = (row.whole[1] - other.whole[1]) * WIDTH_OF_NORMAL / widths[1]
    lost = f", {row.lost:,} not finite" if row.lost else ""
    return f"{shift:+.2f} sd, width × {widths[0] / widths[1]:.2f}{lost}"


def _choose_scale(ax: Axes, rows: Sequence[Row]) -> None:
    """Elements of one site on different scales would leave all but the widest as dots."""
    ends = np.array([[row.whole[0], row.whole[2]] for row in rows])
    widths = ends[:, 1] - ends[:, 0]
    usual = float(np.nanmedian(widths)) if np.isfinite(widths).any() else 0.0
    ax.ticklabel_format(axis="x", useOffset=False)
    if usual > 0 and float(np.nanmax(ends) - np.nanmin(ends)) > 30 * usual:
        ax.set_xscale("symlog", linthresh=usual)
        ax.set_xlabel("symmetric log scale", fontsize=SMALL)


def _panels(
    sites: Mapping[str, Sequence[Element]], others: Mapping[str, NDArray[Any]] | None
) -> list[list[str]]:
    """Neighbouring sites whose intervals can be read on one axis."""
    panels: list[list[str]] = []
    low = high = narrowest = math.nan
    for site, elements in sites.items():
        both = [*elements, *((k, others[k]) for k, _ in elements if others and k in others)]
        ends = np.array([row_of(*element).whole for element in both])
        ends = ends[np.isfinite(ends[:, 1])]
        if not len(ends):  # nothing to draw: it fits anywhere
            panels[-1:] = [[*panels[-1], site]] if panels else [[site]]
            continue
        width = float(np.median(ends[:, 2] - ends[:, 0])) or math.nan
        lower, upper = np.fmin(low, ends[:, 0].min()), np.fmax(high, ends[:, 2].max())
        least = np.fmin(narrowest, width)
        if panels and (upper - lower <= SHARED * least or math.isnan(low)):
            panels[-1].append(site)
        else:
            panels.append([site])
            lower, upper, least = ends[:, 0].min(), ends[:, 2].max(), width
        low, high, narrowest = lower, upper, least
    return panels


def _explain(fig: Figure, name: str, reference_name: str) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [], [], color=colour, lw=3, marker=marker, mfc="white", mec="black", ms=4, label=text
        )
        for colour, marker, text in ((BLUE, "o", name), (ORANGE, "s", reference_name))
    ]
    labels = [shorten(name, 40), shorten(reference_name, 40)]
    fig.legend(
        handles, labels, loc="outside lower left", ncols=2, fontsize=SMALL + 1, frameon=False
    )
