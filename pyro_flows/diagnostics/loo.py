# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""Leave-one-out cross-validation from draws of q.

Draws of an approximation q, taken as they are, give the wrong answer: leaving out point i needs
the posterior without it, so each draw weighs p / (q p(y_i | draw)), smoothed once (PSIS) for each
point. The draws must be q's own. Draws that were resampled to follow p have lost the tail that
tells how far the weights can be trusted.

References: Vehtari, Gelman and Gabry (2017), Statistics and Computing 27; Magnusson et al. (2019),
Bayesian Leave-One-Out Cross-Validation for Large Data, arXiv:1904.10679 (the correction for q).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .anchors import more
from .arviz_seam import elpd_data, psislw
from .psis import khat_threshold

__all__ = ["LOO", "checked_draws", "point_weights", "psis_loo"]

Array = NDArray[np.float64]
# Weights that differ by less than a thousandth are constant, and have no tail worth a name.
CONSTANT_VARIANCE = 1e-6
# Effective shares of q's draws. Weights that are almost equal do no harm, whatever their tail.
HARMLESS_SHARE, GOOD_SHARE = 0.99, 0.8


@dataclass(frozen=True, eq=False)
class LOO:
    """Expected log predictive density of new data, by leaving out one point at a time.

    Attributes:
        elpd: the sum over points of log p(y_i | all other points), nats; higher is better.
        se: standard error of elpd as an estimate for other data like these: the points' spread.
            NaN for a single point.
        p_loo: effective number of parameters, the log density of points left in less that of
            points left out.
        mcse: Monte Carlo standard error of elpd, from the number of draws. inf where a point's
            k-hat is too high, since nothing can be said then.
        elpd_i: each point's part, in the shape of the data.
        khat_i: each point's Pareto k-hat, in the same shape; inf where its weights can't be told.
        khat: that of the weights p / q alone, which no point has part in.
        n_draws: number of draws of q with a finite weight.
        threshold: the k-hat below which weights of so many draws can be trusted.
        warnings: what speaks against the result, sentences.
        observed: the data, ``(*elpd_i.shape, *event_shape)``, or None; to tell whether two
            results are of the same data.
        dims: names of the axes of elpd_i.
        coords: labels along them.

    Example:
        >>> log_likelihood = np.random.default_rng(0).normal(-1.0, 0.1, size=(500, 10))
        >>> found = psis_loo(np.zeros(500), log_likelihood)
        >>> found.elpd_i.shape, found.warnings
        ((10,), ())
    """

    elpd: float
    se: float
    p_loo: float
    mcse: float
    elpd_i: Array = field(repr=False)
    khat_i: Array = field(repr=False)
    khat: float
    n_draws: int
    threshold: float
    warnings: tuple[str, ...] = ()
    observed: NDArray[Any] | None = field(default=None, repr=False)
    dims: tuple[str, ...] = ()
    coords: Mapping[str, Sequence[Any]] = field(default_factory=dict, repr=False)

    def to_arviz(self) -> Any:
        """The same as ArviZ's ``ELPDData``, for ``az.compare`` and ``az.plot_khat``.

        Returns:
            What ``az.loo`` returns on the installed ArviZ.

        Example:
            >>> found = psis_loo(np.zeros(1000), np.random.default_rng(0).normal(size=(1000, 5)))
            >>> found.to_arviz().pareto_k.shape
            (5,)
        """
        return elpd_data(
            self.elpd_i,
            self.khat_i,
            elpd=self.elpd,
            se=self.se,
            p_loo=self.p_loo,
            n_draws=self.n_draws,
            threshold=self.threshold,
            dims=self.dims,
            coords=self.coords,
        )

    def __str__(self) -> str:
        bins = [-math.inf, self.threshold, max(1.0, self.threshold), math.inf]
        names = ["good", "bad", "very bad"]
        # Each bin without its lower end, as in the words "below the threshold": 0.7 is bad.
        counts = np.bincount(np.digitize(self.khat_i.ravel(), bins[1:3]), minlength=3)
        error = f"{self.mcse:.2g}" if math.isfinite(self.mcse) else "not known, k-hat is too high"
        lines = [
            f"Computed from {self.n_draws:,} draws, weighted, and {self.elpd_i.size:,} points.",
            "",
            "          Estimate       SE",
            f"elpd_loo {self.elpd:9.2f} {self.se:8.2f}",
            f"p_loo    {self.p_loo:9.2f}        -",
            f"Monte Carlo SE of elpd_loo: {error}",
            "",
            "Pareto k-hat             points",
        ]
        for name, low, high, count in zip(names, bins, bins[1:], counts, strict=False):
            low_end = f"({low:.2f}" if low == -math.inf else f"[{low:.2f}"
            lines.append(
                f"  {f'{low_end}, {high:.2f})':<14}{name:<9}{count:6d} {count / counts.sum():6.1%}"
            )
        lines += [f"Warning: {text}" for text in self.warnings]
        lines += [more("leave-one-out")] if self.warnings else []
        return "\n".join(lines)

    __repr__ = __str__


def psis_loo(
    log_ratio: ArrayLike,
    log_likelihood: ArrayLike,
    *,
    observed: NDArray[Any] | None = None,
    dims: Sequence[str] = (),
    coords: Mapping[str, Sequence[Any]] | None = None,
) -> LOO:
    """Leave-one-out cross-validation from draws of q.

    Args:
        log_ratio: log p - log q of each draw, ``(S,)``, for draws of q as they came; zeros if
            they are draws of the posterior itself. -inf leaves a draw out.
        log_likelihood: log p(y_i | draw), ``(S, *shape)``, event axes summed.
        observed: the data, ``(*shape, *event_shape)``, kept for ``compare_loo``.
        dims: names of the axes of ``shape``.
        coords: labels along them.

    Returns:
        The estimate, by point and in all, its errors, and warnings.

        A point's k-hat is inf, and no number can be trusted, where its weights have no tail to
        fit (fewer than 25 draws), where draws of finite weight give it no probability (its elpd
        is then -inf), and where it alone excludes some draws, since without it they'd have a
        weight that nobody knows. It is 0 where the weights are constant.

    Raises:
        ValueError: shapes that don't fit, no draw of finite weight, NaN or +inf.

    Cost: somewhat under a millisecond a point for 4,000 draws.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> mu = rng.normal(scale=0.5, size=1000)            # posterior N(0, 0.4), q = N(0, 0.5)
        >>> log_ratio = -0.5 * (mu / 0.4) ** 2 + 0.5 * (mu / 0.5) ** 2
        >>> y = rng.normal(size=6)
        >>> found = psis_loo(log_ratio, -0.5 * (y - mu[:, None]) ** 2 - 0.919)
        >>> found.elpd_i.shape, found.mcse < 0.05, found.warnings
        ((6,), True, ())
    """
    ratio, points, alone = checked_draws(log_ratio, log_likelihood)
    shape = np.shape(log_likelihood)[1:]
    base, khat = _weights(ratio)
    elpd, lppd, khats = np.empty(len(points)), np.empty(len(points)), np.empty(len(points))
    # The draws are common to all points, so their influences are added before they are squared.
    influence = np.zeros(ratio.size)
    with np.errstate(invalid="ignore"):
        for i, (log_weights, khats[i]) in enumerate(point_weights(ratio, points)):
            elpd[i] = logsumexp(log_weights + points[i])
            lppd[i] = logsumexp(base + points[i])
            influence += np.exp(log_weights + points[i] - elpd[i]) - np.exp(log_weights)
        total, p_loo = float(elpd.sum()), float((lppd - elpd).sum())
        spread = float(np.sqrt(elpd.size * np.var(elpd, ddof=1))) if elpd.size > 1 else math.nan
    khats[alone] = math.inf
    threshold = khat_threshold(max(ratio.size, 2))
    good = bool((khats < threshold).all())
    names = tuple(dims) or tuple(f"point_dim_{k}" for k in range(len(shape)))
    result = LOO(
        elpd=total,
        se=spread,
        p_loo=p_loo,
        mcse=float(np.sqrt((influence**2).sum())) if good else math.inf,
        elpd_i=elpd.reshape(shape),
        khat_i=khats.reshape(shape),
        khat=khat,
        n_draws=ratio.size,
        threshold=threshold,
        warnings=tuple(
            _warnings(
                khats.reshape(shape),
                khat=khat,
                threshold=threshold,
                share=math.exp(-logsumexp(2.0 * base)) / ratio.size,
                alone=alone,
                dims=names,
                coords=coords,
            )
        ),
        observed=observed,
        dims=names,
        coords=dict(coords or {}),
    )
    for part in (result.elpd_i, result.khat_i):
        part.flags.writeable = False
    return result


def checked_draws(
    log_ratio: ArrayLike, log_likelihood: ArrayLike
) -> tuple[Array, Array, NDArray[np.bool_]]:
    """Draws of finite weight: ratios (S,), log likelihoods (N, S); and points that exclude others.

    The last says of which points it's known that draws have no weight because of them alone.
    """
    ratio = np.asarray(log_ratio, dtype=np.float64)
    values = np.asarray(log_likelihood, dtype=np.float64)
    if ratio.ndim != 1 or values.shape[:1] != ratio.shape or values.size == 0:
        raise ValueError(
            f"Expected log ratios (S,) and log likelihoods (S, *shape) of some points, got shapes "
            f"{ratio.shape} and {values.shape}: put the draws along the first axis."
        )
    inside = np.isfinite(ratio)
    invalid = int((~inside & ~np.isneginf(ratio)).sum())
    if invalid or not inside.any():
        raise ValueError(
            f"Expected log ratios that are finite or -inf, got {invalid} NaN or +inf and "
            f"{int(inside.sum())} finite ones: count such draws and take them out first."
        )
    flat = values.reshape(ratio.size, -1)
    outside = np.isneginf(flat[~inside])
    alone = (outside & (outside.sum(1, keepdims=True) == 1)).any(0)
    points = np.ascontiguousarray(flat[inside].T)
    bad = np.isnan(points) | np.isposinf(points)
    if bad.any():
        raise ValueError(
            f"Expected log likelihoods that are finite or -inf, got {int(bad.sum())} NaN or +inf, "
            f"at {int(bad.any(1).sum())} points and {int(bad.any(0).sum())} draws: find the site "
            "that gives them, or leave out points that aren't observed."
        )
    return ratio[inside], points, alone


def point_weights(ratio: Array, points: Array) -> Iterator[tuple[Array, float]]:
    """Log weights (S,) of the posterior without a point, and their k-hat; point after point."""
    for point in points:
        impossible = np.isneginf(point)
        if impossible.any():  # all weight on draws that say it can't be
            yield np.where(impossible, -math.log(impossible.sum()), -math.inf), math.inf
        else:
            yield _weights(ratio - point)


def _weights(log_ratio: Array) -> tuple[Array, float]:
    if log_ratio.size > 1 and np.var(log_ratio) < CONSTANT_VARIANCE:
        return log_ratio - logsumexp(log_ratio), 0.0
    return psislw(log_ratio)


def logsumexp(x: Array) -> float:
    """The log of the sum of exponentials; -inf where all are."""
    top = float(x.max())  # numpy's logaddexp.reduce takes ten times as long
    return top + math.log(np.exp(x - top).sum()) if math.isfinite(top) else top


def _warnings(
    khats: Array,
    *,
    khat: float,
    threshold: float,
    share: float,
    alone: NDArray[np.bool_],
    dims: Sequence[str],
    coords: Mapping[str, Sequence[Any]] | None,
) -> Iterator[str]:
    high = ~(khats < threshold)
    if high.any():
        worst = np.unravel_index(int(np.argmax(khats)), khats.shape)
        named = (coords or {}).get(dims[0]) if len(dims) == 1 else None
        place = named[int(worst[0])] if named is not None else f"[{', '.join(map(str, worst))}]"
        number = f"{high.sum():,} of {high.size:,} points" if high.size > 1 else "the only point"
        look = (
            "Look at these points: fit again without each of them, mend errors in the data, or "
            "use a likelihood with wider tails."
        )
        alone_say = (
            f"The weights log p - log q alone have k-hat {khat:.2f} and are worth {share:.0%}"
        )
        guide = "a better guide (train longer, a richer flow)"
        if not khat < threshold and share < HARMLESS_SHARE:
            remedy = f"{alone_say} of the draws: {guide} comes first."
        elif share < GOOD_SHARE:
            remedy = f"{look} {alone_say} of the draws, so {guide} may do, too."
        else:
            remedy = look
        yield (
            f"k-hat is {threshold:.2f} or more at {number} (highest: {khats.max():.2f} at "
            f"{place}), so that neither their elpd nor the sum can be trusted. {remedy}"
        )
    if alone.any():
        count = int(alone.sum())
        who = f"{count:,} points alone exclude" if count > 1 else "One point alone excludes"
        yield (
            f"{who} draws of the guide (a likelihood that is zero beyond a bound); without it "
            "these would count, which no weight can tell. Fit again without the point."
        )
    if khats.size == 1:
        yield (
            "There is only one point. Leaving one out means a batch element: put the data in a "
            "plate, not in an event (to_event)."
        )
