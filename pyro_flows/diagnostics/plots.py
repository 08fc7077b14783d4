# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""Pictures of a fit: arrays in, a matplotlib Figure out.

Figures are made as objects, never through pyplot, so that nothing global changes and nothing stays
open: save one with ``fig.savefig("fit.png")``, show it in a notebook with ``display(fig)``.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .drawing import (
    BLUE,
    GREEN,
    GREY,
    INTERVAL,
    ORANGE,
    SMALL,
    above,
    block_medians,
    cycles_of,
    draw_gauge,
    draw_histogram,
    draw_stages,
    draw_stop,
    elbo_limits,
    figure_of,
    legend_below,
    new_figure,
    note,
    shorten,
    tidy,
    weight_limits,
    weight_ticks,
)
from .elements import elements_of, sites_of
from .forest import draw_forest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_marginals", "plot_posterior_overview", "plot_training", "plot_weights"]


def plot_training(
    history: Mapping[str, NDArray[Any]],
    *,
    elbo: float | None = None,
    stop_reason: str = "",
    ax: Axes | None = None,
) -> Figure:
    """The ELBO over the steps of training, with held-out estimates, stages and the stop.

    The vertical range follows the later part of the run: early ELBOs can be millions below, and
    how many values lie below the axis is written on it.

    Args:
        history: "step" and "elbo" (T,), the training ELBO; optional "heldout_step",
            "heldout_elbo", "heldout_se" (H,); optional "stage" (T,), a name per step. Without
            it, steps whose held-out value was taken twice end a cycle, as those of FlowVI do.
        elbo: the final ELBO, drawn as a line.
        stop_reason: why training stopped, to be written beside where it did.
        ax: axes to draw on; a new figure by default.

    Returns:
        The figure.

    Raises:
        ValueError: if "step" or "elbo" is missing, or lengths differ.

    Example:
        >>> step = np.arange(200)
        >>> history = {"step": step, "elbo": -50 * np.exp(-step / 20)}
        >>> fig = plot_training(history, stop_reason="the last 100 steps gained nothing")
        >>> fig.axes[0].get_xlabel()
        'step'
    """
    step, train = _curve(history, "step", "elbo")
    held_step, held = _curve(history, "heldout_step", "heldout_elbo", optional=True)
    ax = ax if ax is not None else new_figure(7.0, 4.0).add_subplot()
    shown = np.where(np.isfinite(train), train, np.nan)
    if train.size:
        ax.plot(step, shown, color=BLUE, alpha=0.3, lw=0.8, label="training, each step")
    if train.size >= 200:
        ax.plot(*block_medians(step, shown), color=BLUE, lw=1.5, label="training, median")
    if held.size:
        bars = np.asarray(history.get("heldout_se", np.zeros(held.shape)), dtype=float)
        label = "held out ± 2 s.e."
        ax.errorbar(held_step, held, 2 * bars, color=ORANGE, fmt="o", ms=3.5, lw=1, label=label)
    if elbo is not None and math.isfinite(elbo):
        ax.axhline(
            elbo,
            color=GREEN,
            ls="--",
            lw=1.2,
            label=f"final ELBO {elbo:,.{2 if abs(elbo) >= 1 else 4}f}",
        )
    told = _told(step, held, stop_reason)
    tidy(ax)
    ax.set_title("Training", loc="left", fontsize=10, pad=6 + 11 * len(told))
    above(ax, "\n".join(told))
    ax.set(xlabel="step", ylabel="ELBO")
    ax.ticklabel_format(axis="y", useOffset=False, style="plain")
    lost = int((~np.isfinite(train)).sum())
    notes = [f"{lost:,} not finite"] if lost else []
    limits = elbo_limits(train, held, elbo)
    if limits is None:
        ax.set_yticks([])
    else:
        ax.set_ylim(*limits)
        below = int((shown < limits[0]).sum())
        notes += [f"{below:,} below the axis"] if below else []
    if step.size > 1:
        ax.set_xlim(step[0], step[-1] + 0.02 * (step[-1] - step[0]))
        draw_stop(ax, float(step[-1]))
    draw_stages(ax, step, history.get("stage", cycles_of(step, held_step)))
    note(ax, ", ".join(notes), 0.02, 0.03)
    if ax.get_legend_handles_labels()[0]:
        legend_below(ax)
    return figure_of(ax)


def plot_weights(
    log_weights: ArrayLike,
    khat: float,
    *,
    threshold: float | None = None,
    khat_applicable: bool = True,
    ax: Axes | None = None,
) -> Figure:
    """Where the draws are, where the weight is, and whether k-hat says that it can be trusted.

    Of a good guide the two histograms lie on one another, around the weight that all draws
    would have if the guide were exact. Where reweighting fails, the weight stands far to the
    right, on draws that can hardly be seen.

    Args:
        log_weights: log weights of the draws (S,), any normalisation; -inf is weight zero.
        khat: Pareto k-hat of the weights.
        threshold: the k-hat below which correction works, to be named beside it.
        khat_applicable: False for constant weights, which have no k-hat.
        ax: axes to draw on; a new figure by default.

    Returns:
        The figure.

    Raises:
        ValueError: if log_weights is not a vector, or holds NaN or +inf.

    Example:
        >>> fig = plot_weights(np.random.default_rng(0).normal(size=1000), 0.2, threshold=0.67)
        >>> fig.axes[0].get_title(loc="left")
        'Importance weights: k-hat 0.20 (limit 0.67)'
    """
    lw = np.asarray(log_weights, dtype=float)
    if lw.ndim != 1 or np.isnan(lw).any() or np.isposinf(lw).any():
        raise ValueError(
            f"Expected log weights as a vector of finite numbers or -inf, got shape {lw.shape} "
            "or a NaN or +inf in it: take them from importance_weights."
        )
    ax = ax if ax is not None else new_figure(6.0, 3.6).add_subplot()
    limit = "" if threshold is None else f" (limit {threshold:.2f})"
    verdict = f"k-hat {khat:.2f}{limit}" if khat_applicable else "constant, k-hat not applicable"
    tidy(ax, f"Importance weights: {verdict}")
    finite = lw[np.isfinite(lw)]
    if finite.size == 0:
        ax.set(xticks=[], yticks=[])
        note(ax, "no draw has a positive weight", 0.5, 0.5)
        return figure_of(ax)
    w = np.exp(finite - finite.max())
    w /= w.sum()
    log10 = (finite - finite.max()) / math.log(10) + math.log10(w.max() * lw.size)
    low, high = weight_limits(log10, w)
    edges = np.linspace(low, high, 61)
    places = np.clip(log10, low, high)
    draws = np.histogram(places, edges, weights=np.full(places.size, 1.0 / lw.size))[0]
    weight = np.histogram(places, edges, weights=w)[0]
    ax.stairs(100 * draws, edges, fill=True, color=BLUE, alpha=0.45, label="of the draws")
    ax.stairs(100 * weight, edges, color=ORANGE, lw=1.6, label="of the weight")
    peak = 100 * max(draws.max(), weight.max())
    ax.plot([0.0, 0.0], [0.0, 1.1 * peak], color=GREY, ls="--", lw=1.0)
    ax.set(xlabel="weight of a draw, relative to equal weights (dashed)", ylabel="share, %")
    ax.set_yticks([tick for tick in ax.get_yticks() if tick <= min(1.1 * peak, 100.0)])
    ax.set(xlim=(low, high), ylim=(0.0, 1.7 * peak))  # room above for text and gauge
    ax.set_xticks(*weight_ticks(low, high))
    heaviest = np.sort(w)[::-1][: max(1, lw.size // 100)]
    text = (
        f"{lw.size:,} draws, {1.0 / (w**2).sum():,.0f} effective\n"
        f"heaviest draw: {heaviest[0]:.2%} of all weight\n"
        f"heaviest 1% of draws: {heaviest.sum():.1%}"
    )
    if finite.size < lw.size:
        zero = lw.size - finite.size
        text += f"\n{zero:,} ({zero / lw.size:.1%}) with weight zero, not shown"
    note(ax, text, 0.02, 0.97)
    if khat_applicable:
        draw_gauge(ax, khat, 0.7 if threshold is None else threshold)
    ax.legend(
        loc="upper right",
        bbox_to_anchor=(1.0, 0.8),
        fontsize=SMALL,
        frameon=False,
        ncols=2,
        handlelength=1.2,
        columnspacing=1.0,
    )
    return figure_of(ax)


def plot_marginals(draws: Mapping[str, NDArray[Any]], *, max_panels: int = 12) -> Figure:
    """A histogram per element, with its median and 89% interval.

    Args:
        draws: site to draws ``(S, *shape)``.
        max_panels: at most so many elements, in order; the title says how many there are.

    Returns:
        The figure.

    Raises:
        ValueError: if there are no draws, or max_panels is below 1.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> fig = plot_marginals({"mu": rng.normal(size=500), "theta": rng.normal(size=(500, 2))})
        >>> [ax.get_title() for ax in fig.axes]
        ['mu', 'theta[0]', 'theta[1]']
    """
    elements, total = elements_of(draws, max_panels)
    columns = min(4, len(elements))
    rows = math.ceil(len(elements) / columns)
    fig = new_figure(2.6 * columns + 0.4, 1.9 * rows + 0.6)
    for i, (label, values) in enumerate(elements):
        ax = fig.add_subplot(rows, columns, i + 1)
        draw_histogram(ax, values)
        ax.set_title(shorten(label), fontsize=10)
    which = f" of the first {len(elements)} of {total} elements" if len(elements) < total else ""
    fig.suptitle(f"Marginals{which}: median and {INTERVAL:.0%} interval", fontsize=10)
    return fig


def plot_posterior_overview(
    history: Mapping[str, NDArray[Any]],
    log_weights: ArrayLike,
    khat: float,
    draws: Mapping[str, NDArray[Any]],
    *,
    title: str,
    elbo: float | None = None,
    threshold: float | None = None,
    khat_applicable: bool = True,
    stop_reason: str = "",
    max_elements: int = 20,
) -> Figure:
    """One page about a fit: how it trained, its weights, and what it says, under a verdict.

    Args:
        history: as for ``plot_training``.
        log_weights: as for ``plot_weights``.
        khat: as for ``plot_weights``.
        draws: site to draws ``(S, *shape)``.
        title: the verdict's text, wrapped where it is long.
        elbo: the final ELBO.
        threshold: as for ``plot_weights``.
        khat_applicable: as for ``plot_weights``.
        stop_reason: as for ``plot_training``.
        max_elements: at most so many rows of intervals.

    Returns:
        The figure, with axes for training, weights and intervals in this order; intervals on
        different scales have axes of their own.

    Raises:
        ValueError: as the plots it is made of.

    Example:
        >>> rng, step = np.random.default_rng(0), np.arange(50)
        >>> history = {"step": step, "elbo": -10 * np.exp(-step / 9)}
        >>> draws = {"theta": rng.normal(size=(500, 8))}
        >>> fig = plot_posterior_overview(
        ...     history, rng.normal(size=500), 0.2, draws, title="Corrected: k-hat 0.20"
        ... )
        >>> len(fig.axes)
        3
    """
    sites, total = sites_of(draws, max_elements)
    count = sum(map(len, sites.values()))
    fig = new_figure(11.0, max(7.0, 0.26 * count + 1.6))
    grid = fig.add_gridspec(2, 2, width_ratios=[1.15, 1.0])
    training, weights = fig.add_subplot(grid[0, 0]), fig.add_subplot(grid[1, 0])
    plot_training(history, elbo=elbo, stop_reason=stop_reason, ax=training)
    plot_weights(
        log_weights, khat, threshold=threshold, khat_applicable=khat_applicable, ax=weights
    )
    forest = draw_forest(fig, grid[:, 1], sites)
    forest[0].set_title(f"Median, 50% and {INTERVAL:.0%} intervals", loc="left", fontsize=10)
    if count < total:
        forest[-1].set_xlabel(f"first {count} of {total:,} elements", fontsize=SMALL + 1)
    fig.suptitle(textwrap.fill(title, 110), x=0.01, ha="left", fontsize=12, fontweight="bold")
    return fig


def _told(step: NDArray[Any], held: NDArray[Any], stop_reason: str) -> list[str]:
    """How far training came and why it stopped, in lines of a panel's width."""
    lines = []
    if held.size > 1 and np.isfinite(held[0]):
        lines.append(f"held out: {held[0]:,.3f} at the start, {held.max():,.3f} at best")
    if stop_reason:
        stopped = f"stopped after {step.size:,} steps: " if step.size else ""
        lines += textwrap.wrap(stopped + stop_reason, 84)
    return lines


def _curve(
    history: Mapping[str, NDArray[Any]], x: str, y: str, *, optional: bool = False
) -> tuple[NDArray[Any], NDArray[Any]]:
    if optional and y not in history:
        return np.empty(0), np.empty(0)
    missing = [key for key in (x, y) if key not in history]
    if missing:
        raise ValueError(
            f"Expected a history with {x!r} and {y!r}, got {sorted(history)}: add {missing}."
        )
    steps, values = np.asarray(history[x], dtype=float), np.asarray(history[y], dtype=float)
    if steps.ndim != 1 or steps.shape != values.shape:
        raise ValueError(
            f"Expected {x!r} and {y!r} as vectors of one length, got {steps.shape} and "
            f"{values.shape}: record both at the same steps."
        )
    return steps, values
