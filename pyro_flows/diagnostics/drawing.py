# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""The pieces the plots are made of: axes, notes, robust limits, one panel of each kind.

Colours are those of Okabe and Ito, which readers with any colour vision can tell apart.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
INTERVAL = 0.89
SMALL = 8
# What 5 % to 95 % of a curve's last part span, times this, is how far below it the axis goes.
RISE_SHOWN = 12.0

Element = tuple[str, NDArray[Any]]


def new_figure(width: float, height: float) -> Figure:
    """A figure that belongs to nobody: pyplot neither knows nor keeps it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "Plots need matplotlib, which is not installed: pip install matplotlib."
        ) from None
    return Figure(figsize=(width, height), layout="constrained")


def figure_of(ax: Axes) -> Figure:
    """The whole figure an axes lies in, through subfigures if there are any."""
    figure: Any = ax.figure
    while getattr(figure, "figure", figure) is not figure:
        figure = figure.figure
    root: Figure = figure
    return root


def tidy(ax: Axes, title: str = "") -> None:
    """Two spines less and a title at the left."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_title(title, loc="left", fontsize=10)
    ax.tick_params(labelsize=SMALL + 1)


def note(ax: Axes, text: str, x: float, y: float) -> None:
    """Small grey text at (x, y) of the axes, anchored at the side it's nearest to."""
    ha = "left" if x < 0.4 else "right" if x > 0.6 else "center"
    va = "bottom" if y < 0.4 else "top" if y > 0.6 else "center"
    # White behind it, so that it can be read over a curve.
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.0}
    ax.text(x, y, text, transform=ax.transAxes, ha=ha, va=va, fontsize=SMALL, color=GREY, bbox=box)


def shorten(label: str, most: int = 28) -> str:
    """A label cut in front, since names differ at their ends: ``…sigma[3]``."""
    return label if len(label) <= most else "…" + label[1 - most :]


def figures(x: float) -> str:
    """Three figures, and no exponent where people don't expect one."""
    return (
        f"{x:,.0f}" if 100 <= abs(x) < 1e6 else f"{x:#.3g}" if x and abs(x) >= 1e-3 else f"{x:.3g}"
    )


def weight_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Round numbers between two powers of ten, as positions in log10 and labels."""
    decades = range(math.floor(low), math.ceil(high) + 1, max(1, round((high - low) / 6)))
    ticks = [(m, e) for e in decades for m in ((1, 2, 5) if high - low < 2.5 else (1,))]
    shown = [(math.log10(m) + e, f"{m * 10.0**e:g}") for m, e in ticks]
    shown = [(x, label) for x, label in shown if low <= x <= high]
    return [x for x, _ in shown], [label for _, label in shown]


def elements_of(draws: Mapping[str, NDArray[Any]], most: int) -> tuple[list[Element], int]:
    """The first elements of all sites as (``theta[3]``, draws), and how many there are in all."""
    if most < 1:
        raise ValueError(f"Expected room for at least one element, got {most}: ask for 1 or more.")
    elements: list[Element] = []
    total = 0
    for name, values in draws.items():
        array = np.asarray(values)
        if array.ndim == 0 or array.shape[0] == 0:
            raise ValueError(
                f"Expected draws of {name!r} with shape (S, *shape) and S > 0, got {array.shape}: "
                "put the draws along the first axis."
            )
        total += math.prod(array.shape[1:])
        for index in np.ndindex(*array.shape[1:]):
            if len(elements) == most:
                break
            label = f"{name}[{', '.join(map(str, index))}]" if index else name
            elements.append((label, array[(slice(None), *index)]))
    if not elements:
        raise ValueError("Expected draws of at least one site with elements, got none.")
    return elements, total


def block_medians(x: NDArray[Any], y: NDArray[Any], blocks: int = 80) -> tuple[Any, Any]:
    """Middle x and median finite y of consecutive blocks."""
    pairs = zip(np.array_split(x, blocks), np.array_split(y, blocks), strict=True)
    kept = [(bx.mean(), by[np.isfinite(by)]) for bx, by in pairs if np.isfinite(by).any()]
    return np.array([m for m, _ in kept]), np.array([np.median(v) for _, v in kept])


def elbo_limits(
    train: NDArray[Any], held: NDArray[Any], elbo: float | None
) -> tuple[float, float] | None:
    """Vertical limits that show how the end of training behaves; None if nothing is finite."""
    train, held = train[np.isfinite(train)], held[np.isfinite(held)]
    late = [train[-max(train.size // 4, 20) :], held[-max(held.size // 4, 3) :]]
    late.append(np.array([elbo] if elbo is not None and math.isfinite(elbo) else []))
    end = np.concatenate(late)
    if end.size == 0:
        return None
    # Quantiles: heavy tailed single-draw ELBOs shoot far off even at the end.
    low, high = (float(q) for q in np.quantile(end, [0.02, 0.98]))
    if elbo is not None and math.isfinite(elbo):
        low, high = min(low, elbo), max(high, elbo)
    span = max(high - low, 0.1, 1e-9 * abs(high))  # less than a tenth of a nat is noise
    # The rise itself is worth seeing, as far as it doesn't flatten the end.
    start = float(np.quantile(np.concatenate([train, held]), 0.1))
    return min(low, max(start, high - RISE_SHOWN * span)) - 0.15 * span, high + 0.25 * span


def draw_stages(ax: Axes, step: NDArray[Any], stage: NDArray[Any] | None) -> None:
    """A dotted line where the stage changes, and the names of those wide enough to carry one."""
    if stage is None or step.size < 2:
        return
    names = np.asarray(stage).astype(str)
    if names.shape != step.shape:
        raise ValueError(
            f"Expected one stage per step, shape {step.shape}, got {names.shape}: repeat the name."
        )
    starts = np.r_[0, np.flatnonzero(names[1:] != names[:-1]) + 1]
    ends = np.r_[starts[1:], step.size - 1]
    for start, end in zip(starts, ends, strict=True):
        if start > 0:
            ax.axvline(step[start], color=GREY, lw=0.8, ls=":")
        name = names[start]
        share = (step[end] - step[start]) / (step[-1] - step[0])
        if share > 0.016 * (len(name) + 1):
            x = (step[start] + step[end]) / 2
            place = ax.get_xaxis_transform()
            ax.text(
                x, 0.985, name, transform=place, ha="center", va="top", fontsize=SMALL, color=GREY
            )


def draw_histogram(ax: Axes, values: NDArray[Any]) -> None:
    """Density of one element over its bulk, median and interval; what lies outside is counted."""
    numbers = np.asarray(values, dtype=float)
    finite = numbers[np.isfinite(numbers)]
    tidy(ax)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    lost = numbers.size - finite.size
    if finite.size == 0:
        note(ax, "no finite draws", 0.5, 0.5)
        return
    low, high = finite.min(), finite.max()
    inner = np.quantile(finite, [0.05, 0.95])
    width = inner[1] - inner[0]
    # A far tail would squeeze the bulk into one bar.
    low, high = max(low, inner[0] - width), min(high, inner[1] + width)
    bins: int | list[float] = 3 if low == high else np.linspace(low, high, 41).tolist()
    if values.dtype.kind in "iub" and high - low < 60:
        bins = (np.arange(math.floor(low), math.ceil(high) + 2) - 0.5).tolist()
        ax.locator_params(axis="x", integer=True)
    inside = finite[(finite >= low) & (finite <= high)]
    ax.hist(inside, bins=bins, density=True, color=BLUE, alpha=0.6)
    left, middle, right = interval(finite)
    ax.plot([left, right], [0, 0], color=ORANGE, lw=4, solid_capstyle="butt", clip_on=False)
    ax.plot(middle, 0, "o", color="black", ms=4, clip_on=False, zorder=5)
    outside = 1.0 - inside.size / finite.size
    share = f"{outside:.1%}" if outside >= 0.001 else "< 0.1%"
    lines = [f"{share} outside" if outside else ""]
    lines.append(f"{lost:,} not finite" if lost else "")
    note(ax, "\n".join(line for line in lines if line), 0.98, 0.97)


def interval(values: NDArray[Any], mass: float = INTERVAL) -> tuple[float, float, float]:
    """Lower end, median and upper end of the central interval."""
    low, middle, high = np.quantile(values, [(1 - mass) / 2, 0.5, (1 + mass) / 2])
    return float(low), float(middle), float(high)


def draw_forest(ax: Axes, elements: Sequence[Element]) -> None:
    """Intervals of elements, first at the top, with the figures at the right."""
    rows = []
    for label, values in elements:
        numbers = np.asarray(values, dtype=float)
        finite = numbers[np.isfinite(numbers)]
        whole = interval(finite) if finite.size else (math.nan,) * 3
        half = interval(finite, 0.5) if finite.size else (math.nan,) * 3
        rows.append((label, whole, half))
    for y, (_, whole, half) in enumerate(rows):
        ax.plot([whole[0], whole[2]], [y, y], color=BLUE, lw=1.5)
        ax.plot([half[0], half[2]], [y, y], color=BLUE, lw=4, solid_capstyle="butt")
        ax.plot(whole[1], y, "o", color="white", mec="black", ms=4.5, zorder=5)
        text = f"{figures(whole[1])}  [{figures(whole[0])}, {figures(whole[2])}]"
        place = ax.get_yaxis_transform()
        ax.text(1.02, y, text, transform=place, va="center", fontsize=SMALL, color=GREY)
    ends = np.array([[whole[0], whole[2]] for _, whole, _ in rows])
    widths = ends[:, 1] - ends[:, 0]
    usual = float(np.nanmedian(widths)) if np.isfinite(widths).any() else 0.0
    title = f"Median, 50% and {INTERVAL:.0%} intervals"
    if usual > 0 and float(np.nanmax(np.abs(ends))) > 30 * usual:
        # Sites on different scales would leave all but the widest as dots.
        ax.set_xscale("symlog", linthresh=usual)
        title += ", symmetric log scale"
    tidy(ax, title)
    ax.set_yticks(range(len(rows)))
    ax.set_yticklabels([shorten(row[0], 24) for row in rows], fontsize=SMALL + 1)
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(axis="x", alpha=0.25)
    ax.axvline(0.0, color=GREY, lw=0.8, ls=":")
