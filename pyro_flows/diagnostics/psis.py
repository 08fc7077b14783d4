# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""Importance weights of a guide's draws, and what they say about it.

With x drawn from q, the mean of ``lw = log p(x) - log q(x)`` is the ELBO, the log of the mean of
exp(lw) estimates the log evidence, and the gap between the two the Kullback-Leibler divergence.
k-hat, the shape of the generalised Pareto fitted to the largest weights, says whether reweighting
can correct the draws, not whether q is right (a mode that q misses shows in neither).

*Finite* draws carry the weights. *Zero* draws lie outside the support (log p = -inf): a legitimate
weight of zero. *Invalid* draws are faults of model or guide (NaN, +inf, or a draw its own guide
calls impossible): they get no weight, enter no mean, and are counted for the verdict to judge.

Reference: Vehtari et al. (2024), Pareto Smoothed Importance Sampling, JMLR 25(72).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arviz_seam import MIN_PSIS_DRAWS, psislw, tail_length

__all__ = [
    "ImportanceWeights",
    "importance_weights",
    "khat_threshold",
    "resample",
    "weighted_mcse",
]

MIN_DRAWS, BATCHES = 100, 20
# Weights that differ by less than a thousandth are constant for every purpose of a posterior.
CONSTANT_VARIANCE, MIN_DISTINCT = 1e-6, 5
LARGEST_RATIO = 1e150


@dataclass(frozen=True, eq=False)
class ImportanceWeights:
    """What a set of draws with log p and log q says about the guide that made them.

    S is the number of draws, lw the finite log p - log q. Means run over the valid draws; an
    invalid one counts in S, and so lowers ``share``, but not as a zero.

    Attributes:
        log_weights: smoothed log weights (S,), logsumexp 0; -inf where a draw is not finite.
        khat: Pareto shape of the largest weights; never NaN. inf if no tail can be fitted, which
            is a failure; 0 where ``khat_applicable`` is False, which is a pass.
        khat_applicable: False if the weights are constant (variance of lw below 1e-6), or so few
            values make up the tail (under 5), none of them rare, that there is no tail to fit.
        n: S.
        n_zero: draws with log p = -inf.
        n_invalid: draws with NaN or +inf in log p or log q, or log q = -inf.
        kish_ess: effective number of draws (sum w)^2 / sum w^2 under ``log_weights``.
        share: the same of the *unsmoothed* weights, over S; exp(-var) for lognormal weights.
        elbo: of q restricted to the support, mean(lw) + ln(share of valid draws inside).
        elbo_se: its standard error.
        log_evidence: ln mean exp(lw), unsmoothed.
        log_evidence_se: its standard error by the delta method; too small if khat > 0.5.
        gap: log_evidence - elbo, an estimate of KL(q || p).
        gap_se: its standard error from 20 batches; inf below 100 finite draws.

    Example:
        >>> log_p = np.random.default_rng(0).normal(scale=0.1, size=1000)
        >>> result = importance_weights(log_p, np.zeros(1000))
        >>> result.khat < result.threshold, result.n_invalid
        (True, 0)
    """

    log_weights: NDArray[np.float64] = field(repr=False)
    khat: float
    khat_applicable: bool
    n: int
    n_zero: int
    n_invalid: int
    kish_ess: float
    share: float
    elbo: float
    elbo_se: float
    log_evidence: float
    log_evidence_se: float
    gap: float
    gap_se: float

    @property
    def threshold(self) -> float:
        """The k-hat below which correction works, at the number of finite draws."""
        return khat_threshold(max(self.n - self.n_zero - self.n_invalid, 2))


def khat_threshold(n: int) -> float:
    """The k-hat below which n weighted draws can be trusted: min(1 - 1/log10(n), 0.7).

    Args:
        n: number of draws; below 10 the result is negative.

    Returns:
        The threshold.

    Raises:
        ValueError: if n is below 2.

    Example:
        >>> round(khat_threshold(1000), 3), khat_threshold(10_000)
        (0.667, 0.7)
    """
    if n < 2:
        raise ValueError(f"Expected at least 2 draws for a k-hat threshold, got {n}: draw more.")
    return min(1.0 - 1.0 / math.log10(n), 0.7)


def importance_weights(log_p: ArrayLike, log_q: ArrayLike) -> ImportanceWeights:
    """Weigh draws of q by log p - log q, smooth the weights, and estimate ELBO and evidence.

    Args:
        log_p: log joint density of each draw, shape (S,); -inf outside the support.
        log_q: log density of each draw under the guide that made it, shape (S,).

    Returns:
        The weights and what follows from them. With no finite draw, ``elbo`` and ``log_evidence``
        are -inf, ``khat``, ``gap`` and the standard errors inf.

    Raises:
        ValueError: if the shapes are not one and the same (S,), or S is below 100.

    Example:
        >>> x = np.random.default_rng(0).normal(size=2000)      # q = N(0, 1), p = N(0.1, 1)
        >>> result = importance_weights(-0.5 * (x - 0.1) ** 2, -0.5 * x**2)
        >>> abs(result.gap - 0.005) < 0.002, result.share > 0.98
        (True, True)
    """
    p, q = np.asarray(log_p, dtype=np.float64), np.asarray(log_q, dtype=np.float64)
    if p.ndim != 1 or p.shape != q.shape:
        raise ValueError(
            f"Expected log_p and log_q as vectors of one length, got shapes {p.shape} and "
            f"{q.shape}: sum over event dimensions and flatten the draws."
        )
    n = p.size
    if n < MIN_DRAWS:
        raise ValueError(
            f"Expected at least {MIN_DRAWS} draws to judge importance weights, got {n}: draw more."
        )
    with np.errstate(over="ignore", invalid="ignore"):
        ratio = p - q
        # A ratio whose square overflows is a fault like NaN; both compare as False.
        finite = np.abs(ratio) < LARGEST_RATIO
    n_zero = int((np.isneginf(p) & np.isfinite(q)).sum())
    n_invalid = n - int(finite.sum()) - n_zero
    lw = ratio[finite]
    log_weights = np.full(n, -np.inf)
    applicable = not _no_tail(lw)
    log_weights[finite], khat = psislw(lw) if applicable else (lw - _logsumexp(lw), 0.0)
    log_weights.flags.writeable = False
    return ImportanceWeights(
        log_weights=log_weights,
        khat=khat,
        khat_applicable=applicable,
        n=n,
        n_zero=n_zero,
        n_invalid=n_invalid,
        kish_ess=_kish(log_weights[finite]),
        share=_kish(lw) / n,
        **_estimates(lw, n - n_invalid),
    )


def resample(log_weights: ArrayLike, n: int, rng: np.random.Generator) -> NDArray[np.intp]:
    """Choose n draws in proportion to their weights, by systematic sampling.

    Each draw is chosen n w times, rounded up or down at random: without replacement as long as no
    weight exceeds 1/n, and still in proportion where one does. (Plain sampling without
    replacement is biased towards equal weights as soon as the effective number of draws is not
    far above n.)

    Args:
        log_weights: shape (S,), need not be normalised; -inf is never chosen.
        n: number of draws to choose.
        rng: numpy's generator.

    Returns:
        Indices (n,), in the order of the draws; repeated where a weight exceeds 1/n.

    Raises:
        ValueError: if no weight is positive, or n is below 1.

    Example:
        >>> log_weights = np.array([np.log(2.0), 0.0, 0.0, -np.inf])
        >>> resample(log_weights, 4, np.random.default_rng(0)).tolist()
        [0, 0, 1, 2]
    """
    lw = _vector(log_weights)
    if n < 1 or not np.isfinite(lw).any():
        raise ValueError(
            f"Expected n >= 1 and a positive weight, got n={n} and "
            f"{int(np.isfinite(lw).sum())} positive weights: draw more."
        )
    # The draws' order must not matter: neighbours in it are chosen together too rarely.
    order = rng.permutation(lw.size)
    w = np.exp(lw[order] - lw.max())
    edges = np.cumsum(w) / w.sum()
    points = (np.arange(n) + rng.random()) / n
    chosen = np.searchsorted(edges, points, side="right").clip(max=lw.size - 1)
    return np.sort(order[chosen])


def weighted_mcse(log_weights: ArrayLike, h: ArrayLike) -> NDArray[np.float64] | np.float64:
    """Monte Carlo standard error of a self-normalised weighted mean.

    The square root of sum w^2 (h - h_bar)^2, weights summing to one. ArviZ's ``mcse`` on resampled
    draws counts draws only, and comes out several times too small.

    Args:
        log_weights: shape (S,), any normalisation; -inf leaves a draw out, whatever its h.
        h: the quantity at each draw, shape ``(S, *shape)``.

    Returns:
        The standard error of each element, shape ``(*shape)``.

    Raises:
        ValueError: if the lengths differ, or the weights hold NaN, +inf or nothing positive.

    Example:
        >>> h = np.random.default_rng(0).normal(size=(400, 3))
        >>> bool(np.allclose(weighted_mcse(np.zeros(400), h), h.std(0) / 20))
        True
    """
    lw, values = _vector(log_weights), np.asarray(h, dtype=np.float64)
    positive = np.isfinite(lw)
    if values.shape[:1] != lw.shape or not positive.any():
        raise ValueError(
            f"Expected h of shape ({lw.size}, ...) and a positive weight, got {values.shape} and "
            f"{int(positive.sum())} positive ones: pass the draws that the weights belong to."
        )
    w, inside = np.exp(lw[positive] - _logsumexp(lw[positive])), values[positive]
    centred = inside - np.tensordot(w, inside, axes=1)
    return np.sqrt(np.tensordot(w**2, centred**2, axes=1))


def _vector(log_weights: ArrayLike) -> NDArray[np.float64]:
    lw = np.asarray(log_weights, dtype=np.float64)
    if lw.ndim != 1 or np.isnan(lw).any() or np.isposinf(lw).any():
        raise ValueError(
            f"Expected log weights as a vector of finite numbers or -inf, got shape {lw.shape} or "
            "a NaN or +inf in it: take them from importance_weights."
        )
    return lw


def _logsumexp(x: NDArray[np.float64]) -> float:
    top = x.max()
    return float(top + np.log(np.exp(x - top).sum()))


def _kish(lw: NDArray[np.float64]) -> float:
    if lw.size == 0:
        return 0.0
    w = np.exp(lw - lw.max())
    return float(w.sum() ** 2 / (w**2).sum())


def _no_tail(lw: NDArray[np.float64]) -> bool:
    """Whether weights are so nearly constant that k-hat means nothing and nothing is wrong."""
    if lw.size < MIN_PSIS_DRAWS:
        return False
    if np.var(lw) < CONSTANT_VARIANCE:
        return True
    tail = tail_length(lw.size)
    top = np.sort(lw)[-tail:]
    # Few values in the tail are harmless if they're common. One draw that outweighs thousands of
    # equal ones also makes two values, and must not pass: so none may hold a tail's fair part.
    return np.unique(top).size < MIN_DISTINCT and top[-1] - _logsumexp(lw) < -math.log(tail)


def _estimates(lw: NDArray[np.float64], n_valid: int) -> dict[str, float]:
    """ELBO, log evidence, gap and their standard errors; zeros count in n_valid only."""
    n = lw.size
    if n == 0:
        figures = {"elbo": -math.inf, "log_evidence": -math.inf, "gap": math.inf}
        return figures | {f"{name}_se": math.inf for name in figures}
    inside = n / n_valid
    spread = float(np.var(lw, ddof=1)) if n > 1 else math.inf
    elbo = float(np.mean(lw)) + math.log(inside)
    log_evidence = _logsumexp(lw) - math.log(n_valid)
    # Squared coefficient of variation of all valid weights, zeros included; one weight says none.
    variation = max(n_valid / _kish(lw) - 1.0, 0.0) if n > 1 else math.inf
    gap_se = math.inf
    if n >= MIN_DRAWS:
        # Within a batch the share inside the support cancels between evidence and ELBO.
        gaps = [_logsumexp(b) - math.log(b.size) - b.mean() for b in np.array_split(lw, BATCHES)]
        gap_se = float(np.std(gaps, ddof=1) / math.sqrt(BATCHES))
    return {
        "elbo": elbo,
        "elbo_se": math.sqrt(spread / n + (1.0 - inside) / (inside * n_valid)),
        "log_evidence": log_evidence,
        "log_evidence_se": math.sqrt(variation / max(n_valid - 1, 1)),
        "gap": log_evidence - elbo,
        "gap_se": gap_se,
    }
