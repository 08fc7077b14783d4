# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""Does the model's new data look like the data? Statistics with p-values, and LOO-PIT values.

References: Gelman, Meng and Stern (1996), Posterior predictive assessment of model fitness via
realized discrepancies, Statistica Sinica 6; Gabry et al. (2019), Visualization in Bayesian
workflow, JRSS A 182, arXiv:1709.01449 (LOO-PIT).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .calibration import p_text
from .ecdf_bands import ecdf_p_value
from .loo import checked_draws, point_weights

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "STATISTICS",
    "PredictiveCheck",
    "Statistic",
    "loo_pit",
    "pit_counts",
    "predictive_pvalues",
    "quantities",
    "two_sided",
]

Array = NDArray[np.float64]
Statistic = str | Callable[[NDArray[Any]], float]
STATISTICS: tuple[Statistic, ...] = ("mean", "sd", "min", "max")
BY_NAME: dict[str, Callable[[NDArray[Any]], Array]] = {  # of each row
    "mean": lambda y: y.mean(1),
    "sd": lambda y: y.std(1, ddof=1) if y.shape[1] > 1 else np.full(len(y), math.nan),
    "min": lambda y: y.min(1),
    "max": lambda y: y.max(1),
    "median": lambda y: np.median(y, axis=1),
}
# A distribution of more values than this is known well enough, and its band takes long.
MOST_PIT, PIT_POINTS = 5000, 50


@dataclass(frozen=True, eq=False)
class PredictiveCheck:
    """Data beside what the model would say next.

    Attributes:
        table: what ``predictive_pvalues`` returned.
        observed: the data.
        replicated: new data, ``(S, *observed.shape)``.
        statistics: what the table is about: functions of data, or names.
        pit: a LOO-PIT value for each point, of vectors that of one element; None where there are
            none.
        discrete: whether the data are.
        notes: what to keep in mind, sentences.

    Example:
        >>> new = np.random.default_rng(0).normal(size=(200, 30))
        >>> check = PredictiveCheck(predictive_pvalues(new[0], new), new[0], new)
        >>> list(check.table.index)
        ['mean', 'sd', 'min', 'max']
    """

    table: Any
    observed: NDArray[Any] = field(repr=False)
    replicated: NDArray[Any] = field(repr=False)
    statistics: tuple[Statistic, ...] = STATISTICS
    pit: Array | None = field(default=None, repr=False)
    discrete: bool = False
    notes: tuple[str, ...] = ()

    @property
    def pit_p_value(self) -> float:
        """How seldom uniform values are as unevenly spread as the LOO-PIT values; NaN if none.

        Rough, since the values of one data set hang together a little.
        """
        if self.pit is None or np.isnan(self.pit).any():
            return math.nan
        counts, n, points = pit_counts(self.pit)
        return ecdf_p_value(counts, n, points)

    def plot(self) -> Figure:
        """One picture: data and new data, LOO-PIT values, statistics.

        Returns:
            A ``matplotlib.figure.Figure``.
        """
        from .predictive_plots import plot_predictive_check

        return plot_predictive_check(
            self.observed,
            self.replicated,
            statistics=self.statistics,
            pit=self.pit,
            discrete=self.discrete,
        )

    def __str__(self) -> str:
        lines = [
            f"{self.observed.size:,} data, {len(self.replicated):,} sets of new data.",
            "",
            self.table.to_string(float_format=lambda x: f"{x:.4g}"),
            "",
            "p-values are two-sided, and conservative: the data were used to fit, too.",
        ]
        if self.pit is not None:
            lines.append(
                f"LOO-PIT values (data not used twice): uniform with {p_text(self.pit_p_value)}."
            )
        return "\n".join([*lines, *(f"Note: {note}" for note in self.notes)])

    __repr__ = __str__


def predictive_pvalues(
    observed: ArrayLike,
    replicated: ArrayLike,
    *,
    statistics: Sequence[Statistic] = STATISTICS,
    interval: float = 0.9,
) -> Any:
    """Statistics of the data among those of new data from the fitted model.

    The p-values are conservative: the model was fitted to the very data, so that they crowd around
    1/2 (of the two-sided ones: near 1) even if it is right, above all for statistics that it fits
    directly, such as a mean. A small one is bad news, a large one hardly any.

    Args:
        observed: the data, any shape.
        replicated: new data ``(S, *observed.shape)``, one set for each draw.
        statistics: "mean", "sd", "min", "max", "median", or functions of one set of data, an array
            in the shape of ``observed``, to a number; named as the function.
        interval: probability of the central predictive interval.

    Returns:
        A pandas DataFrame with a row for each statistic: "observed", the ends of the interval and
        "median" of new data, "p_value", twice the smaller share of new sets whose statistic is at
        least, or at most, that of the data. NaN where a statistic of any set is.

    Raises:
        ValueError: shapes that don't fit, an unknown statistic, one that isn't a number.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> table = predictive_pvalues(rng.normal(size=50), rng.normal(size=(400, 50)))
        >>> list(table.index), list(table.columns)
        (['mean', 'sd', 'min', 'max'], ['observed', '5%', 'median', '95%', 'p_value'])
    """
    import pandas as pd

    if not 0.0 < interval < 1.0:
        raise ValueError(f"Expected an interval between 0 and 1, got {interval}: say 0.9.")
    ends = (1.0 - interval) / 2, (1.0 + interval) / 2
    rows = {}
    for name, (value, new) in quantities(observed, replicated, statistics).items():
        low, median, high = np.quantile(new, [ends[0], 0.5, ends[1]])
        rows[name] = [value, low, median, high, two_sided(value, new)]
    low_name, high_name = (f"{end:.1%}".replace(".0%", "%") for end in ends)
    columns = ["observed", low_name, "median", high_name, "p_value"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def two_sided(value: float, new: Array) -> float:
    """Twice the smaller share of new values at or beyond the data's; NaN where one is."""
    if math.isnan(value) or np.isnan(new).any():
        return math.nan
    return min(1.0, 2.0 * min(float(np.mean(new >= value)), float(np.mean(new <= value))))


def quantities(
    observed: ArrayLike, replicated: ArrayLike, statistics: Sequence[Statistic]
) -> dict[str, tuple[float, Array]]:
    """Each statistic by name: of the data, and of each set of new data, ``(S,)``."""
    data, new = np.asarray(observed), np.asarray(replicated)
    if data.size == 0 or new.shape[1:] != data.shape or len(new) == 0:
        raise ValueError(
            f"Expected data and new data (S, *shape) of the same shape, got {data.shape} and "
            f"{new.shape}: draw one set of data for each draw."
        )
    result = {}
    for statistic in statistics:
        if isinstance(statistic, str):
            if statistic not in BY_NAME:
                raise ValueError(
                    f"Expected a statistic among {sorted(BY_NAME)} or a function, got "
                    f"{statistic!r}: write a function of the data."
                )
            name, rows = statistic, np.concatenate([data[None], new]).reshape(len(new) + 1, -1)
            values = BY_NAME[statistic](rows.astype(float))
        else:
            name = getattr(statistic, "__name__", repr(statistic))
            values = np.array([np.asarray(statistic(y)) for y in (data, *new)], dtype=float)
        if name in result:
            raise ValueError(
                f"Expected statistics of different names, got {name!r} twice: use def, not lambda."
            )
        if values.ndim != 1:
            raise ValueError(
                f"Expected a number from the statistic {name!r}, got shape {values.shape[1:]}: "
                "reduce over all axes of the data."
            )
        result[name] = (float(values[0]), values[1:])
    return result


def loo_pit(
    log_ratio: ArrayLike,
    log_likelihood: ArrayLike,
    observed: ArrayLike,
    replicated: ArrayLike,
    *,
    rng: np.random.Generator,
) -> tuple[Array, Array]:
    """Where each point lies among predictions that were made without it: LOO-PIT values.

    Uniform on [0, 1] if the model predicts well; too many near 0 and 1 if its predictions are too
    narrow, near 1/2 if they are too wide. Of discrete data the share of ties below a point is
    random, which keeps the law uniform.

    Args:
        log_ratio: log p - log q of draws of q, ``(S,)``; see ``psis_loo``.
        log_likelihood: log p(y_i | draw), ``(S, *shape)``, event axes summed.
        observed: the data, ``(*shape, *event_shape)``.
        replicated: new data at the same draws, ``(S, *shape, *event_shape)``.
        rng: numpy's generator, for ties.

    Returns:
        Values in [0, 1] in the shape of ``observed``, NaN where data or new data are; and the
        k-hat of each point, ``shape``.

    Raises:
        ValueError: as for ``psis_loo``, or if the data's shapes don't fit.

    Cost: as ``psis_loo``.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> y, new = rng.normal(size=20), rng.normal(size=(1000, 20))
        >>> pit, khat = loo_pit(np.zeros(1000), -0.5 * (y - 0.1 * new) ** 2, y, new, rng=rng)
        >>> pit.shape, bool((pit >= 0).all() and (pit <= 1).all())
        ((20,), True)
    """
    ratio, points, _ = checked_draws(log_ratio, log_likelihood)
    data, new = np.asarray(observed, dtype=float), np.asarray(replicated, dtype=float)
    inside, shape = np.isfinite(np.asarray(log_ratio)), np.shape(log_likelihood)[1:]
    if data.shape[: len(shape)] != shape or new.shape != (inside.size, *data.shape):
        raise ValueError(
            f"Expected data of shape {shape} (and event axes) and as many replicates as the "
            f"{inside.size} draws, got {data.shape} and {new.shape}: draw new data at the draws."
        )
    rows = data.reshape(len(points), -1)
    columns = new[inside].reshape(len(ratio), len(points), -1)
    pit, khats = np.empty_like(rows), np.empty(len(points))
    for i, (log_weights, khats[i]) in enumerate(point_weights(ratio, points)):
        w, at = np.exp(log_weights), columns[:, i]
        below, ties = w @ (at < rows[i]), w @ (at == rows[i])
        unknown = np.isnan(at).any(0) | np.isnan(rows[i])
        pit[i] = np.where(unknown, np.nan, below + ties * rng.uniform(size=ties.shape))
    # A sum of weights is 1 up to rounding.
    return pit.clip(0.0, 1.0).reshape(data.shape), khats.reshape(shape)


def pit_counts(pit: Array) -> tuple[NDArray[np.int64], int, tuple[float, ...]]:
    """How many of n LOO-PIT values lie below each of some points."""
    values = pit.ravel()
    if values.size > MOST_PIT:
        values = np.random.default_rng(0).choice(values, MOST_PIT, replace=False)
    number = max(2, min(PIT_POINTS, values.size))
    points = np.arange(1, number) / number
    counts = np.searchsorted(np.sort(values), points, side="right")
    return counts.astype(np.int64), values.size, tuple(points.tolist())
