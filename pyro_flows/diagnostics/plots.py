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
    INTERVAL,
    ORANGE,
    SMALL,
    block_medians,
    draw_forest,
    draw_histogram,
    draw_stages,
    elbo_limits,
    elements_of,
    figure_of,
    new_figure,
    note,
    shorten,
    tidy,
    weight_ticks,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_marginals", "plot_posterior_overview", "plot_training", "plot_weights"]


def plot_training(
    history: Mapping[str, NDArray[Any]], *, elbo: float | None = None, ax: Axes | None = None
) -> Figure:
    """The ELBO over the steps of training, with held-out estimates and stages.

    The vertical range follows the later part of the run: early ELBOs can be millions below, and
    how many values lie below the axis is written on it.

    Args:
        history: "step" and "elbo" (T,), the training ELBO; optional "heldout_step",
            "heldout_elbo", "heldout_se" (H,); optional "stage" (T,), a name per step.
        elbo: the final ELBO, drawn as a line.
        ax: axes to draw on; a new figure by default.

    Returns:
        The figure.

    Raises:
        ValueError: if "step" or "elbo" is missing, or lengths differ.

    Example:
        >>> step = np.arange(200)
        >>> fig = plot_training({"step": step, "elbo": -50 * np.exp(-step / 20)})
        >>> fig.axes[0].get_xlabel()
        'step'
    """
    step, train = _curve(history, "step", "elbo")
    held_step, held = _curve(history, "heldout_step", "heldout_elbo", optional=True)
    ax = ax if ax is not None else new_figure(7.0, 3.6).add_subplot()
    shown = np.where(np.isfinite(train), train, np.nan)
    ax.plot(step, shown, color=BLUE, alpha=0.3, lw=0.8, label="training, each step")
    if train.size >= 200:
        ax.plot(*block_medians(step, shown), color=BLUE, lw=1.5, label="training, median")
    if held.size:
        bars = np.asarray(history.get("heldout_se", np.zeros(held.shape)), dtype=float)
        label = "held out ± 2 s.e."
        ax.errorbar(held_step, held, 2 * bars, color=ORANGE, fmt="o", ms=3.5, lw=1, label=label)
    if elbo is not None and math.isfinite(elbo):
        ax.axhline(elbo, color=GREEN, ls="--", lw=1.2, label=f"final ELBO {elbo:,.2f}")
    tidy(ax, "Training")
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
        ax.set_xlim(step[0], step[-1])
    draw_stages(ax, step, history.get("stage"))
    note(ax, ", ".join(notes), 0.02, 0.03)
    ax.legend(loc="lower right", fontsize=SMALL, edgecolor="none", framealpha=0.8)
    return figure_of(ax)


def plot_weights(
    log_weights: ArrayLike,
    khat: float,
    *,
    threshold: float | None = None,
    khat_applicable: bool = True,
    ax: Axes | None = None,
) -> Figure:
    """The distribution of importance weights, relative to equal weights.

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
    ax.set(xlabel="weight, relative to equal weights (dashed)", ylabel="draws")
    finite = lw[np.isfinite(lw)]
    if finite.size == 0:
        note(ax, "no draw has a positive weight", 0.5, 0.5)
        return figure_of(ax)
    w = np.exp(finite - finite.max())
    w /= w.sum()
    log10 = (finite - finite.max()) / math.log(10) + math.log10(w.max() * lw.size)
    high = max(float(log10.max()), 0.5)
    # Weights below a millionth matter to nobody, and may reach down to 10^-1000.
    low = min(max(float(log10.min()), -6.0), -0.5)
    bins = np.linspace(low, high, 41).tolist()
    ax.hist(np.clip(log10, low, high), bins=bins, color=BLUE, alpha=0.8)
    ax.axvline(0.0, color=ORANGE, ls="--", lw=1.2)
    ax.set_yscale("log")
    ax.set_ylim(0.7, 30.0 * ax.get_ylim()[1])  # room above the bars for the text
    ax.set_xticks(*weight_ticks(low, high))
    heaviest = np.sort(w)[::-1][: max(1, lw.size // 100)]
    text = (
        f"{lw.size:,} draws, {1.0 / (w**2).sum():,.0f} effective\n"
        f"heaviest draw: {heaviest[0]:.2%} of all weight\n"
        f"heaviest 1% of draws: {heaviest.sum():.1%}"
    )
    if finite.size < lw.size:
        text += f"\n{lw.size - finite.size:,} with weight zero, not shown"
    note(ax, text, 0.98, 0.97)
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
        max_elements: at most so many rows of intervals.

    Returns:
        The figure, with axes for training, weights and intervals in this order.

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
    elements, total = elements_of(draws, max_elements)
    fig = new_figure(11.0, max(6.0, 0.26 * len(elements) + 1.6))
    grid = fig.add_gridspec(2, 2, width_ratios=[1.15, 1.0])
    plot_training(history, elbo=elbo, ax=fig.add_subplot(grid[0, 0]))
    weights = fig.add_subplot(grid[1, 0])
    plot_weights(
        log_weights, khat, threshold=threshold, khat_applicable=khat_applicable, ax=weights
    )
    forest = fig.add_subplot(grid[:, 1])
    draw_forest(forest, elements)
    if len(elements) < total:
        forest.set_xlabel(f"first {len(elements)} of {total} elements")
    fig.suptitle(textwrap.fill(title, 110), x=0.01, ha="left", fontsize=12, fontweight="bold")
    return fig


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
