# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""The pieces the plots are made of: axes, notes, robust limits, one panel of each kind.

Colours are those of Okabe and Ito, which readers with any colour vision can tell apart.
"""

from __future__ import annotations

import io
import math
from functools import partial
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


def new_figure(width: float, height: float) -> Figure:
    """A figure that belongs to nobody: pyplot neither knows nor keeps it; notebooks show it."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError(
            "Plots need matplotlib, which is not installed: pip install matplotlib."
        ) from None
    figure = Figure(figsize=(width, height), layout="constrained")
    # Notebooks ask pyplot's backend for a picture, which isn't loaded before pyplot draws one.
    figure._repr_png_ = partial(_as_png, figure)  # type: ignore[attr-defined]
    return figure


def _as_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


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


def above(ax: Axes, text: str) -> None:
    """Small grey text between the axes and their title."""
    place: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
    ax.annotate(text, (0.0, 1.0), (0.0, 5.0), va="bottom", fontsize=SMALL, color=GREY, **place)


def legend_below(ax: Axes) -> None:
    """The legend in one line, clear of the numbers and the label of the axis."""
    from matplotlib.transforms import ScaledTranslation

    down = ScaledTranslation(0, -34 / 72, figure_of(ax).dpi_scale_trans)
    look: dict[str, Any] = {"frameon": False, "handlelength": 1.5, "columnspacing": 1.2}
    ax.legend(
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=ax.transAxes + down,
        borderaxespad=0.0,
        ncols=4,
        fontsize=SMALL,
        **look,
    )


def shorten(label: str, most: int = 28) -> str:
    """A label cut in front, since names differ at their ends: ``…sigma[3]``.

    Matplotlib would read what stands between two dollars as a formula: not here.
    """
    label = " ".join(label.split())
    return (label if len(label) <= most else "…" + label[1 - most :]).replace("$", r"\$")


def figures(x: float) -> str:
    """Three figures, and no exponent where people don't expect one."""
    return (
        f"{x:,.0f}" if 100 <= abs(x) < 1e6 else f"{x:#.3g}" if x and abs(x) >= 1e-3 else f"{x:.3g}"
    )


def weight_limits(log10: NDArray[Any], weights: NDArray[Any]) -> tuple[float, float]:
    """Between which log10 of relative weight all but a thousandth of draws and of weight lie."""
    order = np.argsort(log10)
    ends = []
    for share in (np.full(log10.size, 1.0 / log10.size), weights[order]):
        place = np.searchsorted(np.cumsum(share), [0.001, 0.999])
        ends.append(log10[order][np.minimum(place, log10.size - 1)])
    # What is below a millionth matters to nobody; what differs by a tenth is equal to the eye.
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    return min(max(float(low), -6.0), -0.05), max(float(high), 0.05)


def weight_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Round numbers between two powers of ten, as positions in log10 and labels."""
    if high - low < 0.7:
        from matplotlib.ticker import MaxNLocator

        numbers = MaxNLocator(5, steps=[1, 2, 5, 10]).tick_values(10**low, 10**high)
        shown = [(math.log10(w), f"{w:g}") for w in numbers if w > 0]
    else:
        step = max(1, round((high - low) / 6))
        decades = range(math.floor(low), math.ceil(high) + 1, step)
        ticks = [(m, e) for e in decades for m in ((1, 2, 5) if high - low < 2.5 else (1,))]
        shown = [(math.log10(m) + e, f"{m * 10.0**e:g}") for m, e in ticks]
    shown = [(x, label) for x, label in shown if low <= x <= high]
    return [x for x, _ in shown], [label for _, label in shown]


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
            box = {"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1.0}
            look: dict[str, Any] = {"fontsize": SMALL, "color": GREY, "bbox": box}
            ax.text(x, 0.985, name, transform=place, ha="center", va="top", **look)


def cycles_of(step: NDArray[Any], held_step: NDArray[Any]) -> NDArray[Any] | None:
    """A name per step from held-out values, two of which are taken where a cycle ends."""
    steps, counts = np.unique(held_step, return_counts=True)
    ends = steps[counts > 1]
    if ends.size < 2:
        return None
    return np.array([f"cycle {1 + i}" for i in np.searchsorted(ends, step)])


def draw_stop(ax: Axes, step: float) -> None:
    """A line where training stopped, under a stop sign."""
    ax.axvline(step, color=GREY, lw=1.0)
    top = ax.get_xaxis_transform()
    look: dict[str, Any] = {"mec": "white", "clip_on": False, "transform": top, "zorder": 6}
    ax.plot(step, 1.0, "8", color="#B3261E", ms=12, mew=1.0, **look)


def draw_gauge(ax: Axes, khat: float, threshold: float) -> None:
    """k-hat on a scale from 0 to 1 at the top right of the axes; the limit is its one mark."""
    gauge = ax.inset_axes((0.62, 0.88, 0.36, 0.05))
    end = 1.2
    gauge.axvspan(0.0, threshold, color=GREEN, alpha=0.35, lw=0)
    gauge.axvspan(threshold, end, color=ORANGE, alpha=0.45, lw=0)
    gauge.plot(min(max(khat, 0.0), end), 0.5, "D", color="black", ms=6, clip_on=False, zorder=6)
    gauge.set(xlim=(0.0, end), ylim=(0.0, 1.0), yticks=[])
    gauge.set_xticks([0.0, threshold, 1.0], ["0", f"{threshold:.2g}", "1"])
    gauge.tick_params(labelsize=SMALL - 1, length=2, pad=1)
    gauge.spines[:].set_visible(False)
    for x, text in ((threshold / 2, "can be reweighted"), ((threshold + end) / 2, "can't")):
        gauge.text(x, 1.25, text, ha="center", va="bottom", fontsize=SMALL - 1, color=GREY)


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
    low, high = bulk(finite)
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


def bulk(finite: NDArray[Any]) -> tuple[float, float]:
    """Where nearly all values lie: a far tail would squeeze the others into one bar."""
    inner = np.quantile(finite, [0.05, 0.95])
    width = inner[1] - inner[0]
    low, high = max(finite.min(), inner[0] - width), min(finite.max(), inner[1] + width)
    return float(low), float(high)


def interval(values: NDArray[Any], mass: float = INTERVAL) -> tuple[float, float, float]:
    """Lower end, median and upper end of the central interval."""
    low, middle, high = np.quantile(values, [(1 - mass) / 2, 0.5, (1 + mass) / 2])
    return float(low), float(middle), float(high)
