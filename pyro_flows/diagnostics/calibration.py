# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""Simulation-based calibration: ranks of true values among draws, and what they say."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .anchors import more
from .ecdf_bands import Points, ecdf_p_value
from .elements import element_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Calibration", "rank_among"]

Array = NDArray[np.float64]
Ranks = Mapping[str, NDArray[Any]]

# Points at which ranks are counted: more show no more, and take time.
MOST_POINTS = 100
SIGNIFICANT = 0.05
# Standard errors from which on a shift or a spread is what a fault is put down to.
CLEAR = 2.0
FAILED = "failed"
STATUSES = ("reliable", "corrected", "not reliable", FAILED)


def rank_among(truth: ArrayLike, draws: ArrayLike, rng: np.random.Generator) -> NDArray[np.int64]:
    """How many draws lie below the true value, for each element.

    Uniform on 0, ..., S if the truth came from the distribution that the draws do. Ties are broken
    at random, which leaves it so.

    Args:
        truth: true values, shape ``(*shape)``.
        draws: shape ``(S, *shape)``.
        rng: numpy's generator, for ties.

    Returns:
        Ranks of shape ``(*shape)``.

    Raises:
        ValueError: the shapes don't fit, or a number is NaN.

    Reference: Talts et al., Validating Bayesian Inference Algorithms with Simulation-Based
    Calibration, 2018, https://arxiv.org/abs/1804.06788

    Example:
        >>> draws = np.array([[1.0, 5.0], [2.0, 5.0], [3.0, 5.0]])
        >>> rank_among([2.5, 4.0], draws, np.random.default_rng(0)).tolist()
        [2, 0]
    """
    true, drawn = np.asarray(truth), np.asarray(draws)
    if drawn.ndim == 0 or drawn.shape[1:] != true.shape:
        raise ValueError(
            f"Expected draws of shape {('S', *true.shape)}, got {drawn.shape}: put the draws "
            "along the first axis."
        )
    if np.isnan(true).any() or np.isnan(drawn).any():
        raise ValueError("Expected numbers, got NaN, which has no rank: leave those elements out.")
    below, ties = (drawn < true).sum(0), (drawn == true).sum(0)
    return np.asarray(below + rng.integers(0, ties, endpoint=True), dtype=np.int64)


@dataclass(frozen=True, repr=False)
class Calibration:
    """Ranks of true values among posterior draws, over many simulated data sets.

    If the posteriors are right, every rank is uniform on 0, ..., ``n_draws``. Print it for what it
    comes to; :meth:`table`, :meth:`coverage` and :meth:`plot` say where.

    Attributes:
        ranks: site to ranks ``(simulations, *shape)``; NaN where there is none, because the
            simulation failed or the model masks the element out.
        n_draws: number of draws that each true value is ranked among.
        verdicts: on the fit of each simulation: "reliable", "corrected", "not reliable", "failed".
        failures: number of a simulation to why it gave no ranks.
        notes: what else is to be known, sentences.

    Raises:
        ValueError: ranks aren't numbers from 0 to ``n_draws``, or their lengths differ.

    Example:
        >>> ranks = np.random.default_rng(1).integers(0, 100, size=(200, 3))
        >>> calibration = Calibration({"theta": ranks}, n_draws=99)
        >>> calibration.p_value > 0.05, calibration.table().index.tolist()
        (True, ['theta[0]', 'theta[1]', 'theta[2]'])
    """

    ranks: Ranks
    n_draws: int
    verdicts: Sequence[str] = ()
    failures: Mapping[int, str] = field(default_factory=dict)
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        lengths = {len(np.atleast_1d(values)) for values in self.ranks.values()}
        lengths |= {len(self.verdicts)} if self.verdicts else set()
        if len(lengths) != 1:
            raise ValueError(
                "Expected as many ranks of every site as there are verdicts, got "
                f"{sorted(lengths)}: put the simulations along the first axis."
            )
        for name, values in self.ranks.items():
            check_ranks(name, values, self.n_draws)

    @property
    def simulations(self) -> int:
        """How many there are, failed ones included."""
        return len(next(iter(self.ranks.values())))

    @property
    def p_value(self) -> float:
        """How seldom some element would be so far from uniform by chance, if all were right.

        The least p-value times the number of elements (Bonferroni): valid however they depend on
        one another. NaN without ranks.
        """
        values = [uniformity(x, self.n_draws) for _, x in elements_with_ranks(self.ranks)]
        return min(1.0, min(values) * len(values)) if values else math.nan

    def table(self) -> Any:
        """What the ranks of every element say.

        Returns:
            A pandas DataFrame; rows "site" or "site[i, j]". "p_value" is of uniformity, by the
            largest excursion of the ranks' distribution (see :mod:`.ecdf_bands`); "shift" how far
            the truth lies above the posterior on average, in about its standard deviations (0 if
            right, standard error 1/sqrt(simulations)); "spread" how many times too narrow the
            posterior is (1 if right, standard error 1/sqrt(2 simulations)); "in 50%" and "in 90%"
            the share of truths inside the central intervals; "simulations" those with a rank.
            "note" names the fault of an element that stands out among all (p-value below 0.05
            after Holm's correction for their number). Elements without any rank are left out.
        """
        import pandas as pd

        elements = elements_with_ranks(self.ranks)
        p_values = np.array([uniformity(x, self.n_draws) for _, x in elements])
        rows = []
        for (_, x), p, stands_out in zip(elements, p_values, holm(p_values), strict=True):
            shift, spread = self._moments(x)
            inside = [share_inside(x, self.n_draws, level)[1] for level in (0.5, 0.9)]
            fault = self._fault(shift, spread, len(x)) if stands_out else ""
            rows.append([p, shift, spread, *inside, len(x), fault])
        columns = ["p_value", "shift", "spread", "in 50%", "in 90%", "simulations", "note"]
        return pd.DataFrame(rows, index=[label for label, _ in elements], columns=columns)

    def coverage(self, levels: Sequence[float] = (0.5, 0.8, 0.9, 0.95)) -> Any:
        """How often central intervals hold the truth.

        Args:
            levels: probabilities of the intervals.

        Returns:
            A pandas DataFrame with a row for each element and level: "nominal" (the level, as near
            as ``n_draws`` ranks come to it), "actual", and its 95% interval (Clopper and Pearson),
            "low" to "high".

        Raises:
            ValueError: a level isn't between 0 and 1.
        """
        import pandas as pd
        from scipy.stats import beta

        if not all(0 < level < 1 for level in levels):
            raise ValueError(f"Expected levels between 0 and 1, got {tuple(levels)}: say 0.9.")
        rows, index = [], []
        for label, x in elements_with_ranks(self.ranks):
            for level in levels:
                nominal, actual = share_inside(x, self.n_draws, level)
                hits, n = round(actual * len(x)), len(x)
                low = float(beta.ppf(0.025, hits, n - hits + 1)) if hits else 0.0
                high = float(beta.ppf(0.975, hits + 1, n - hits)) if hits < n else 1.0
                rows.append([nominal, actual, low, high])
                index.append((label, level))
        names = pd.MultiIndex.from_tuples(index, names=["element", "level"])
        return pd.DataFrame(rows, index=names, columns=["nominal", "actual", "low", "high"])

    def plot(self) -> Figure:
        """One picture: the distribution of ranks and the coverage of every element, with bands.

        Returns:
            A ``matplotlib.figure.Figure``; ``diagnostics.plot_ranks`` draws histograms.

        Raises:
            ValueError: there are no ranks.
        """
        from .calibration_plots import plot_calibration

        return plot_calibration(self.ranks, self.n_draws, title=self._headline())

    def __repr__(self) -> str:
        elements = elements_with_ranks(self.ranks)
        lines = [self._headline()]
        if elements:
            p_values = [uniformity(x, self.n_draws) for _, x in elements]
            least, few = int(np.argmin(p_values)), sum(p <= SIGNIFICANT for p in p_values)
            lines.append(
                f"  {few} of {len(elements)} elements have p <= {SIGNIFICANT:g}, "
                f"{SIGNIFICANT * len(elements):.2g} expected by chance; lowest: "
                f"{elements[least][0]}, {p_text(p_values[least])}"
            )
        counts = Counter(self.verdicts)
        if counts:
            parts = [f"{counts[status]} {status}" for status in STATUSES if counts[status]]
            lines.append(f"  Fits: {', '.join(parts)}")
        if counts["not reliable"]:
            lines.append("  The ranks of fits that are not reliable count like all others.")
        if self.failures:
            number, reason = next(iter(self.failures.items()))
            lines.append(
                f"  {len(self.failures)} simulations gave no ranks, and what made them fail may "
                f"have to do with the truth. The first, number {number}: {reason}"
            )
        lines += [f"  {text}" for text in self.notes]
        lines += [f"  {more('signs-of-a-fault')}"] if self.p_value <= SIGNIFICANT else []
        return "\n".join(lines)

    def _headline(self) -> str:
        p = self.p_value
        if math.isnan(p):
            return f"Calibration: no ranks from {self.simulations} simulations"
        found = "signs of a fault" if p <= SIGNIFICANT else "no sign of a fault"
        elements = len(elements_with_ranks(self.ranks))
        together = "all elements together" if elements > 1 else "its one element"
        return (
            f"Calibration: {found} in {self.simulations} simulations ({p_text(p)} for {together})"
        )

    def _moments(self, x: Array) -> tuple[float, float]:
        """Mean and root mean square about it of the ranks, as normal scores."""
        from scipy.special import ndtri

        scores = ndtri((x + 0.5) / (self.n_draws + 1))
        return float(scores.mean()), float(scores.std())

    def _fault(self, shift: float, spread: float, n: int) -> str:
        aside, wider = shift * math.sqrt(n), (spread - 1) * math.sqrt(2 * n)
        if max(abs(aside), abs(wider)) < CLEAR:
            return "not uniform"
        if abs(aside) >= abs(wider):
            return "posterior too low" if aside > 0 else "posterior too high"
        return "posterior too narrow" if wider > 0 else "posterior too wide"


def check_ranks(name: str, ranks: NDArray[Any], n_draws: int) -> None:
    """Raise ValueError unless all ranks are whole numbers from 0 to n_draws, or NaN."""
    if n_draws < 2:
        raise ValueError(
            f"Expected ranks among 2 or more draws, got n_draws={n_draws}: draw more."
        )
    x = np.asarray(ranks, dtype=float)
    x = x[~np.isnan(x)]
    if ((x < 0) | (x > n_draws) | (x != np.round(x))).any():
        raise ValueError(
            f"Expected ranks of {name!r} from 0 to n_draws={n_draws}, got numbers from "
            f"{x.min():g} to {x.max():g}: take them from rank_among."
        )


def elements_with_ranks(ranks: Ranks) -> list[tuple[str, Array]]:
    """The ranks of each element that has some, by its label, without NaN."""
    found = []
    for name, values in ranks.items():
        array = np.asarray(values, dtype=float)
        for index in np.ndindex(*array.shape[1:]):
            x = array[(slice(None), *index)]
            if not np.isnan(x).all():
                found.append((element_name(name, index), x[~np.isnan(x)]))
    return found


def counting_points(n: int, n_draws: int) -> tuple[NDArray[np.int64], Points]:
    """Up to which rank to count n ranks, and the share of all ranks below; a hundred at most."""
    number = min(n_draws + 1, max(n, 2), MOST_POINTS)
    bounds = np.unique(np.round(np.arange(1, number) * (n_draws + 1) / number).astype(np.int64))
    return bounds, tuple((bounds / (n_draws + 1)).tolist())


def counts_below(x: Array, bounds: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many ranks are below each bound."""
    return np.searchsorted(np.sort(x), bounds, side="left").astype(np.int64)


def uniformity(x: Array, n_draws: int) -> float:
    """The p-value of ranks ``(n,)`` for being uniform on 0, ..., n_draws."""
    bounds, points = counting_points(len(x), n_draws)
    return ecdf_p_value(counts_below(x, bounds), len(x), points)


def share_inside(x: Array, n_draws: int, level: float) -> tuple[float, float]:
    """Nominal and actual coverage of the central interval that is nearest to a level."""
    outside = min(round((1 - level) / 2 * (n_draws + 1)), n_draws // 2)
    inside = (x >= outside) & (x <= n_draws - outside)
    return 1 - 2 * outside / (n_draws + 1), float(inside.mean())


def holm(p_values: Array) -> NDArray[np.bool_]:
    """Which p-values stand out among all of them (Holm 1979), at 5% for the whole family."""
    order = np.argsort(p_values)
    limits = SIGNIFICANT / np.arange(len(p_values), 0, -1)
    passed = np.cumprod(p_values[order] <= limits).astype(bool)
    result = np.zeros(len(p_values), dtype=bool)
    result[order] = passed
    return result


def p_text(value: float) -> str:
    """A p-value in words."""
    return f"p = {value:.2g}" if value >= 1e-3 else "p < 0.001"
