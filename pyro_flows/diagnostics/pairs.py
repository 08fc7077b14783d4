# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Elements against one another, two at a time, beside a reference."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .drawing import BLUE, INTERVAL, ORANGE, SMALL, bulk, new_figure, note, shorten
from .elements import Draws, matching
from .interest import most_interesting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_pairs"]

BINS = 60
# Outlines hold these shares of the draws that are in the picture.
SHARES = (0.5, INTERVAL)
POINTS = 800
# Fewer draws, or fewer values that differ, have no outline worth drawing.
FEWEST, FEWEST_VALUES = 100, 20
PANEL = 1.75  # inches

Limits = tuple[float, float]


class Column(NamedTuple):
    """An element: its label, its draws, and those of the reference if it has any."""

    label: str
    draws: NDArray[np.float64]
    reference: NDArray[np.float64] | None

    @property
    def both(self) -> list[NDArray[np.float64]]:
        """The sets of draws that there are."""
        return [self.draws] if self.reference is None else [self.draws, self.reference]


def plot_pairs(
    draws: Draws,
    *,
    reference: Draws | None = None,
    name: str = "posterior",
    reference_name: str = "reference",
    max_elements: int = 5,
    divergences: ArrayLike | None = None,
) -> Figure:
    """Marginals of the most interesting elements, and outlines of each two of them.

    Where there are more than ``max_elements``, those are chosen that differ most from the
    reference, are least like a normal distribution, or depend most on another one (also as the
    neck of a funnel or a ring does); at first one of every site. Pass fewer sites or elements to
    choose yourself. Axes show the bulk: what a heavy tail leaves outside is counted.

    Args:
        draws: site to draws ``(S, *shape)``.
        reference: draws of the same sites from elsewhere, any number of them: of NUTS, or of a
            simpler guide. Sites that it lacks are shown alone.
        name: what the draws are called.
        reference_name: what the reference is called.
        max_elements: at most so many; the title says how many there are.
        divergences: which draws of the reference (of ``draws``, where there is none) ended a
            divergent trajectory, a vector of bools; they are marked by crosses.

    Returns:
        The figure.

    Raises:
        ValueError: no draws, a site has another shape in the reference, or ``divergences`` isn't
            one value per draw.

    Cost: about a tenth of a second for each panel, whatever the number of draws.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> draws = {"mu": rng.normal(size=500), "theta": rng.normal(size=(500, 3))}
        >>> fig = plot_pairs(draws, max_elements=3)
        >>> len(fig.axes)
        6
    """
    sites, total = most_interesting(draws, reference, max_elements)
    others = {} if reference is None else matching(sites, draws, reference)
    columns = [
        Column(label, _numbers(values), _numbers(others[label]) if label in others else None)
        for elements in sites.values()
        for label, values in elements
    ]
    crosses = None if divergences is None else np.asarray(divergences, dtype=bool)
    _check(columns, crosses)
    marked = max(len(column.both) for column in columns) - 1
    count = len(columns)
    side = PANEL * max(count, 2)
    fig = new_figure(side + 0.6, side + 0.5)
    axes = fig.subplots(count, count, squeeze=False)
    limits = [_limits(column) for column in columns]
    for row, up in enumerate(columns):
        for place, across in enumerate(columns):
            ax = axes[row, place]
            if place > row:
                ax.remove()
                continue
            if place == row:
                _draw_marginal(ax, up, limits[row])
            else:
                sets = list(zip(across.both, up.both, strict=False))
                _draw_joint(ax, sets)
                if crosses is not None and marked < len(sets):
                    x, y = (values[crosses] for values in sets[marked])
                    ax.plot(x, y, "x", color="black", ms=4, mew=1.0, zorder=6)
                ax.set(xlim=limits[place], ylim=limits[row])
            bottom, left = row == count - 1, place == 0 and row > 0
            _label(ax, across.label if bottom else "", up.label if left else "")
    which = f" of {count} out of {total:,} elements" if count < total else ""
    shares = " and ".join(f"{share:.0%}" for share in SHARES)
    fig.suptitle(f"Pairs{which}: outlines hold {shares}", x=0.01, ha="left", fontsize=10)
    _explain(fig, count, name, None if reference is None else reference_name, crosses)
    return fig


def _numbers(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


def _check(columns: list[Column], crosses: NDArray[np.bool_] | None) -> None:
    """Raise unless a draw is a value of every site, and has its place in ``crosses``."""
    shapes: set[tuple[int, ...]] = set()
    for which in (0, 1):
        found = {column.both[which].shape for column in columns if len(column.both) > which}
        if len(found) > 1:
            raise ValueError(
                f"Expected as many draws of each site as of the others, got {sorted(found)}: "
                "a draw is one value of every site."
            )
        shapes = found or shapes
    if crosses is not None and crosses.shape not in shapes:
        raise ValueError(
            f"Expected divergences as one bool per draw, with shape {min(shapes)}, got "
            f"{crosses.shape}: put those of all chains along one axis."
        )


def _limits(column: Column) -> Limits:
    """Where nearly all of both sets lie, with some room around."""
    ends = [bulk(x[np.isfinite(x)]) for x in column.both if np.isfinite(x).any()]
    if not ends:
        return 0.0, 1.0
    low, high = min(e[0] for e in ends), max(e[1] for e in ends)
    # Less than numbers of this size can tell apart is a constant, which is to be seen as a line.
    room = 0.04 * (high - low) if high - low > 1e-9 * abs(high) else max(0.05 * abs(high), 0.5)
    return low - room, high + room


def _draw_marginal(ax: Axes, column: Column, limits: Limits) -> None:
    edges = np.linspace(*limits, BINS // 2 + 1)
    lines = []
    for i, values in enumerate(column.both):
        finite = values[np.isfinite(values)]
        counts = np.histogram(finite, edges)[0]
        heights = counts / max(finite.size, 1)
        look: dict[str, Any] = {"fill": True, "color": BLUE, "alpha": 0.35}
        ax.stairs(heights, edges, **(look if i == 0 else {"color": ORANGE, "lw": 1.4}))
        lines += _counted(values.size - finite.size, finite.size - int(counts.sum()), finite.size)
    ax.set(xlim=limits, ylim=(0, 1.15 * ax.get_ylim()[1]), yticks=[])
    ax.spines[["top", "right", "left"]].set_visible(False)
    note(ax, "\n".join(dict.fromkeys(lines)), 0.98, 0.98)


def _counted(lost: int, outside: int, finite: int) -> list[str]:
    lines = [f"{lost:,} not finite"] if lost else []
    if outside:
        share = outside / finite
        lines.append(f"{share:.1%} outside" if share >= 0.001 else "< 0.1% outside")
    return lines if finite else ["no finite draws"]


def _draw_joint(ax: Axes, sets: list[tuple[NDArray[np.float64], NDArray[np.float64]]]) -> None:
    """Points and outlines of the first set, outlines of the second."""
    for i, (x, y) in enumerate(sets):
        finite = np.isfinite(x) & np.isfinite(y)
        colour = ORANGE if i else BLUE
        outlined = _draw_outlines(ax, x[finite], y[finite], fill=not i, color=colour, zorder=3 + i)
        if not (i and outlined):  # points of two sets would hide one another
            every = max(1, int(finite.sum()) // POINTS)
            some = x[finite][::every], y[finite][::every]
            alpha = 0.25 if outlined else 0.5
            ax.scatter(*some, s=4, alpha=alpha, lw=0, rasterized=True, color=colour)
    ax.spines[["top", "right"]].set_visible(False)


def _draw_outlines(ax: Axes, x: Any, y: Any, *, fill: bool, color: str, zorder: int) -> bool:
    """Outlines of ``SHARES`` of the draws; False where there is nothing to outline."""
    if x.size < FEWEST or min(np.unique(x).size, np.unique(y).size) < FEWEST_VALUES:
        return False
    # Up to the ends of its bulk and no farther: a support's edge isn't to be smoothed over.
    counts, *edges = np.histogram2d(x, y, BINS, range=(bulk(x), bulk(y)))
    density = _smooth(counts, 6.0 * x.size ** (-1 / 6))
    ordered = np.sort(density.ravel())[::-1]
    inside = np.cumsum(ordered)
    if not inside[-1] > 0:
        return False
    levels = sorted({float(ordered[np.searchsorted(inside, s * inside[-1])]) for s in SHARES})
    centres = [(e[1:] + e[:-1]) / 2 for e in edges]
    if fill:
        top = [*levels, max(float(density.max()), levels[-1] * (1 + 1e-9))]
        for level in levels:  # one over the other, so that the inner is the darker
            ax.contourf(
                *centres, density.T, [level, top[-1]], colors=[color], alpha=0.3, zorder=zorder
            )
    ax.contour(
        *centres, density.T, levels, colors=[color], linewidths=1.0 if fill else 1.4, zorder=zorder
    )
    return True


def _smooth(counts: NDArray[np.float64], width: float) -> NDArray[np.float64]:
    """A normal kernel of ``width`` bins along both axes, mirrored at the sides.

    Half of what Scott's rule takes for a normal distribution, so that rings keep their holes.
    """
    reach = math.ceil(3 * width)
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / width) ** 2)
    kernel /= kernel.sum()
    padded = np.pad(counts, reach, mode="symmetric")
    for axis in (0, 1):
        padded = np.apply_along_axis(np.convolve, axis, padded, kernel, mode="valid")
    return padded


def _label(ax: Axes, across: str, up: str) -> None:
    from matplotlib.ticker import MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(3))
    if ax.get_yticks().size:
        ax.yaxis.set_major_locator(MaxNLocator(3))
    ax.tick_params(labelsize=SMALL - 1, labelbottom=bool(across), labelleft=bool(up))
    ax.set_xlabel(shorten(across, 20), fontsize=SMALL + 1)
    ax.set_ylabel(shorten(up, 20), fontsize=SMALL + 1)


def _explain(fig: Figure, count: int, name: str, reference_name: str | None, crosses: Any) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(facecolor=BLUE, alpha=0.45, label=shorten(name, 40))]
    if reference_name is not None:
        handles.append(Line2D([], [], color=ORANGE, lw=1.6, label=shorten(reference_name, 40)))
    if crosses is not None:
        label = f"divergent ({int(crosses.sum()):,})"
        handles.append(Line2D([], [], color="black", marker="x", ls="", ms=5, label=label))
    if len(handles) == 1:
        return
    look: dict[str, Any] = {"fontsize": SMALL + 1, "frameon": False}
    if count <= 2:
        fig.legend(handles=handles, loc="outside lower left", **look)
    else:  # the triangle above the diagonal is empty; the title is there, too
        below = 1 - 0.3 / fig.get_figheight()
        fig.legend(handles=handles, loc="upper right", bbox_to_anchor=(1.0, below), **look)
