# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of a calibration: how the ranks of true values are distributed, and what is inside."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .calibration import (
    MOST_POINTS,
    SIGNIFICANT,
    Array,
    Ranks,
    check_ranks,
    counting_points,
    counts_below,
    elements_with_ranks,
    p_text,
    uniformity,
)
from .drawing import BLUE, GREEN, GREY, ORANGE, SMALL, above, figure_of, new_figure, shorten, tidy
from .ecdf_bands import Points, ecdf_band, ecdf_p_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_coverage", "plot_ecdf_difference", "plot_ranks"]

# For elements that stand out; where there are more than colours, dashes tell them apart.
STRIKING = (ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":")
BAND = "#DDDDDD"
# Ranks in a bar, on average, and the most bars.
IN_A_BAR, MOST_BARS = 10, 20

Elements = list[tuple[str, Array]]


def plot_ecdf_difference(
    ranks: Ranks, n_draws: int, *, max_named: int = 5, ax: Axes | None = None
) -> Figure:
    """The ranks' distribution less the uniform one, with a simultaneous 95% band.

    A curve below the band and then above it, or the other way round, is a posterior too wide or
    too narrow; one that stays on one side is shifted: above, the truth ranks low and the posterior
    is too high.

    Args:
        ranks: site to ranks ``(simulations, *shape)``, NaN where there is none.
        n_draws: number of draws that each truth was ranked among.
        max_named: at most so many elements that leave the band get a colour and a name, the worst
            first.
        ax: axes to draw on; a new figure by default.

    Returns:
        The figure.

    Raises:
        ValueError: there are no ranks, or some are beyond ``n_draws``.

    Example:
        >>> ranks = {"theta": np.random.default_rng(0).integers(0, 100, size=(200, 8))}
        >>> fig = plot_ecdf_difference(ranks, 99)
        >>> fig.axes[0].get_xlabel()
        'rank of the truth, as a share'
    """
    elements, p_values = _judged(ranks, n_draws)
    ax = ax if ax is not None else new_figure(6.0, 4.4).add_subplot()
    _draw_ecdf(ax, elements, p_values, n_draws, _striking(elements, p_values, max_named))
    return figure_of(ax)


def plot_coverage(
    ranks: Ranks, n_draws: int, *, max_named: int = 5, ax: Axes | None = None
) -> Figure:
    """How often central intervals hold the truth, beside how often they should.

    Args:
        ranks: as for :func:`plot_ecdf_difference`.
        n_draws: as for :func:`plot_ecdf_difference`.
        max_named: at most so many elements that leave the band get a colour and a name.
        ax: axes to draw on; a new figure by default.

    Returns:
        The figure, with a simultaneous 95% band. Below it intervals are too narrow, above it too
        wide. Elements are judged by their coverage here: a shift shows less than as ranks.

    Raises:
        ValueError: there are no ranks, or some are beyond ``n_draws``.

    Example:
        >>> ranks = {"theta": np.random.default_rng(0).integers(0, 100, size=(200, 8))}
        >>> fig = plot_coverage(ranks, 99)
        >>> fig.axes[0].get_ylabel()
        'share of truths inside'
    """
    elements, _ = _judged(ranks, n_draws)
    p_values = np.array([_coverage_p_value(x, n_draws) for _, x in elements])
    ax = ax if ax is not None else new_figure(4.8, 4.4).add_subplot()
    _draw_coverage(ax, elements, p_values, n_draws, _striking(elements, p_values, max_named))
    return figure_of(ax)


def plot_ranks(
    ranks: Ranks, n_draws: int, *, bins: int | None = None, max_panels: int = 12
) -> Figure:
    """A histogram of ranks for each element, with the 95% band of a uniform one.

    A hump is a posterior too wide, a trough one too narrow, a slope one that is shifted.

    Args:
        ranks: as for :func:`plot_ecdf_difference`.
        n_draws: as for :func:`plot_ecdf_difference`.
        bins: number of bars; by default ten ranks in each, and at most 20 bars.
        max_panels: at most so many elements; where there are more, those whose ranks are the least
            uniform, in their order.

    Returns:
        The figure. The band is for all bars of a panel together; bars beyond it are orange.

    Raises:
        ValueError: there are no ranks, some are beyond ``n_draws``, or ``bins`` or ``max_panels``
            is below 1.

    Example:
        >>> ranks = {"theta": np.random.default_rng(0).integers(0, 100, size=(200, 3))}
        >>> fig = plot_ranks(ranks, 99)
        >>> [ax.get_title(loc="left").split(":")[0] for ax in fig.axes]
        ['theta[0]', 'theta[1]', 'theta[2]']
    """
    if max_panels < 1 or (bins is not None and bins < 1):
        raise ValueError(
            f"Expected bins and max_panels of 1 or more, got bins={bins} and "
            f"max_panels={max_panels}: leave them out."
        )
    elements, p_values = _judged(ranks, n_draws)
    shown = np.sort(np.argsort(p_values, kind="stable")[:max_panels])
    columns = min(4, len(shown))
    rows = math.ceil(len(shown) / columns)
    fig = new_figure(2.7 * columns + 0.5, 1.9 * rows + 0.6)
    for place, i in enumerate(shown):
        ax = fig.add_subplot(rows, columns, place + 1)
        label, x = elements[i]
        _draw_histogram(ax, x, n_draws, bins)
        tidy(ax, f"{shorten(label, 16)}: {p_text(p_values[i])}")
        if place % columns == 0:
            ax.set_ylabel("simulations", fontsize=SMALL + 1)
    few = f"the {len(shown)} least uniform of {len(elements)} elements, " * (
        len(shown) < len(elements)
    )
    fig.suptitle(f"Ranks of the truth among {n_draws} draws: {few}95% band", fontsize=10)
    return fig


def plot_calibration(ranks: Ranks, n_draws: int, *, title: str, max_named: int = 5) -> Figure:
    """Ranks and coverage side by side, one colour for one element; see ``Calibration.plot``."""
    elements, by_rank = _judged(ranks, n_draws)
    by_coverage = np.array([_coverage_p_value(x, n_draws) for _, x in elements])
    named = _striking(elements, np.minimum(by_rank, by_coverage), max_named)
    fig = new_figure(10.5, 5.0)
    left, right = fig.subplots(1, 2, width_ratios=[1.25, 1.0])
    _draw_ecdf(left, elements, by_rank, n_draws, named)
    _draw_coverage(right, elements, by_coverage, n_draws, named)
    fig.suptitle(textwrap.fill(title, 110), x=0.01, ha="left", fontsize=12, fontweight="bold")
    return fig


def _judged(ranks: Ranks, n_draws: int) -> tuple[Elements, Array]:
    for name, values in ranks.items():
        check_ranks(name, values, n_draws)
    elements = elements_with_ranks(ranks)
    if not elements:
        raise ValueError(
            "Expected ranks of at least one element, got none: no simulation gave any. Look at "
            "its failures."
        )
    return elements, np.array([uniformity(x, n_draws) for _, x in elements])


def _intervals(n: int, n_draws: int) -> tuple[NDArray[np.int64], Points]:
    """Central intervals, narrowest first: ranks left out at each end, and probabilities."""
    number = max(2, min(n, MOST_POINTS, (n_draws + 1) // 2))
    wanted = 1.0 - np.arange(1, number) / number
    outside = np.round(0.5 * wanted * (n_draws + 1)).astype(np.int64)
    outside = np.unique(outside.clip(1, n_draws // 2))[::-1]
    return outside, tuple((1.0 - 2.0 * outside / (n_draws + 1)).tolist())


def _inside(x: Array, outside: NDArray[np.int64], n_draws: int) -> NDArray[np.int64]:
    """How many ranks are inside each interval."""
    return counts_below(np.minimum(x, n_draws - x) * -1.0, 1 - outside)


def _coverage_p_value(x: Array, n_draws: int) -> float:
    outside, points = _intervals(len(x), n_draws)
    return ecdf_p_value(_inside(x, outside, n_draws), len(x), points)


def _striking(elements: Elements, p_values: Array, most: int) -> dict[str, dict[str, Any]]:
    """Colour and dashes of the elements that leave the band, the worst first, by label."""
    order = [i for i in np.argsort(p_values, kind="stable") if p_values[i] <= SIGNIFICANT]
    number = len(STRIKING)
    return {
        elements[i][0]: {"color": STRIKING[k % number], "ls": DASHES[k // number % len(DASHES)]}
        for k, i in enumerate(order[:most])
    }


def _draw_ecdf(
    ax: Axes, elements: Elements, p_values: Array, n_draws: int, named: dict[str, dict[str, Any]]
) -> None:
    n = max(len(x) for _, x in elements)
    bounds, points = counting_points(n, n_draws)
    lower, upper = ecdf_band(n, points)
    curves = [counts_below(x, bounds) / len(x) - points for _, x in elements]
    _draw_curves(ax, points, [lower / n - points, upper / n - points], curves, 0.0)
    _dress(ax, elements, p_values, named)
    tidy(ax, "Distribution of ranks, less the uniform one")
    ax.set(xlabel="rank of the truth, as a share", ylabel="share below, less expected")
    _tell(ax, p_values, n)


def _draw_coverage(
    ax: Axes, elements: Elements, p_values: Array, n_draws: int, named: dict[str, dict[str, Any]]
) -> None:
    n = max(len(x) for _, x in elements)
    outside, points = _intervals(n, n_draws)
    lower, upper = ecdf_band(n, points)
    curves = [_inside(x, outside, n_draws) / len(x) for _, x in elements]
    _draw_curves(ax, points, [lower / n, upper / n], curves, 1.0)
    _dress(ax, elements, p_values, named)
    ax.plot([0, 1], [0, 1], color="black", lw=0.8, ls=":")
    tidy(ax, "Coverage of central intervals")
    ax.set(xlabel="probability of the interval", ylabel="share of truths inside", ylim=(0, 1))
    _tell(ax, p_values, n)


def _draw_curves(
    ax: Axes, points: Points, band: list[Array], curves: list[Array], end: float
) -> None:
    """A band and a line for each curve, which start at 0 and come to ``end``."""
    x = np.array([0.0, *points, 1.0])
    low, high = ([0.0, *side, end] for side in band)
    ax.fill_between(x, low, high, color=BAND, lw=0, label="95% band for a curve")
    for curve in curves:
        ax.plot(x, [0.0, *curve, end])
    ax.set_xlim(0, 1)


def _dress(
    ax: Axes, elements: Elements, p_values: Array, named: dict[str, dict[str, Any]]
) -> None:
    """Few and far lines loud, the rest quiet."""
    faint = max(0.15, min(0.8, 6 / len(elements)))
    for line, (label, _), p in zip(ax.lines, elements, p_values, strict=True):
        line.set(color=BLUE, lw=1.0, alpha=faint)
        if p <= SIGNIFICANT:
            line.set(color=GREY, alpha=0.8, zorder=3)
        if label in named:
            line.set(**named[label], lw=1.8, alpha=1.0, zorder=4)
            line.set_label(f"{shorten(label, 20)}: {p_text(p)}")


def _tell(ax: Axes, p_values: Array, n: int) -> None:
    outside, total = int((p_values <= SIGNIFICANT).sum()), len(p_values)
    ax.set_title(ax.get_title(loc="left"), loc="left", fontsize=10, pad=18)
    above(
        ax,
        f"{n} simulations: {outside} of {total} {'curve' if total == 1 else 'curves'} outside, "
        f"{SIGNIFICANT * total:.2g} expected by chance",
    )
    ax.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, -0.15),
        ncols=2,
        fontsize=SMALL,
        frameon=False,
        columnspacing=1.2,
    )


def _draw_histogram(ax: Axes, x: Array, n_draws: int, bins: int | None) -> None:
    from scipy.stats import binom

    number = min(bins or max(2, min(MOST_BARS, len(x) // IN_A_BAR)), n_draws + 1)
    edges = np.unique(np.round(np.linspace(0, n_draws + 1, number + 1)))
    counts = np.histogram(x + 0.5, edges)[0]
    share = np.diff(edges) / (n_draws + 1)
    # Counts of one sample are negatively associated, so that Bonferroni's bound is close.
    tail = SIGNIFICANT / len(counts) / 2
    low, high = binom.ppf(tail, len(x), share), binom.isf(tail, len(x), share)
    out = (counts < low) | (counts > high)
    ax.stairs(high, edges, baseline=low, fill=True, color=BAND)
    colours = np.where(out, ORANGE, BLUE).tolist()
    widths = np.diff(edges)
    ax.bar(edges[:-1], counts, widths, align="edge", color=colours, alpha=0.7, lw=0.5, ec="white")
    for limit, look in ((high, "-"), (low, "-"), (len(x) * share, ":")):
        ax.stairs(limit, edges, baseline=None, color=GREY, lw=0.8, ls=look)
    ax.set(xlim=(0, n_draws + 1), ylim=(0, None))
    ax.set_xticks([0, n_draws])
    ax.locator_params(axis="y", integer=True, nbins=4)
