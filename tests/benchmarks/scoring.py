# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""How a posterior is scored: gap, share, k-hat and errors, as arrays in and a dict out.

Notation: ``lw = log p - log q`` at draws from the guide q, p the unnormalised joint.

- ELBO = mean(lw); lnZ_IS = ln mean exp(lw); gap_IS = lnZ_IS - ELBO; gap_known = log Z - ELBO.
- A draw with log p = -inf lies outside the support: it has weight 0 and stays in S for lnZ_IS and
  the share. The ELBO is that of q restricted to the support, mean(lw | finite) + ln(share finite).
- NaN, +inf and a non-finite log q are faults. They are left out and counted, never taken for
  zero; above 0.1 % of the draws nothing is judged.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

N_BATCHES_SE = 20  # batches behind the standard error of gap_IS
N_BATCHES = 10  # batches behind the medians of share and k-hat
BATCH_SIZE = 10_000
MAX_FAULTS = 1e-3
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
# Errors above these make draws wrong; see judge_truth.
WRONG = {"mean": 0.2, "log_sd": 0.2, "quantile": 0.1, "modes": 0.1, "log_z": 0.1}


def score(
    log_p: ArrayLike,
    log_q: ArrayLike,
    log_z: float | None = None,
    log_z_se: float = 0.0,
    *,
    khat: Callable[[Array], float | None] | None = None,
) -> dict[str, Any]:
    """Scores fresh draws of a guide.

    Args:
        log_p: Log joint at the draws, of shape ``(S,)``; S = 100,000 is the protocol's.
        log_q: Log density of the guide at the draws, of shape ``(S,)``.
        log_z: The log normalising constant, where it is known.
        log_z_se: Its standard error; 0 says that it is exact.
        khat: A function from log weights to Pareto k-hat, None for "not applicable". By default
            that of ``pyro_flows.diagnostics.psis``.

    Returns:
        A dict of plain numbers, with None for what doesn't apply:

        - ``elbo``, ``elbo_se``, ``ln_z_is``, ``ln_z_is_se``;
        - ``gap_is``, ``gap_is_se``, ``gap_known``, ``gap_known_se``;
        - ``judged``: ``"gap_known"``, ``"gap_is"``, or ``"none"`` where neither counts;
        - ``gap``, ``gap_se``: the one that is judged;
        - ``share``, ``share_min``: Kish's effective share, the median and least of 10 batches;
        - ``khat``: the median of 10 batches; ``khat_applicable``: False for constant weights;
        - ``batch_size``, ``n``, ``n_inf`` (draws outside the support), ``n_nan`` (faults),
          ``share_finite``.
    """
    lw, n_inf, n_nan = _log_weights(log_p, log_q)
    finite = lw[np.isfinite(lw)]
    counts = {
        "n": len(lw) + n_nan,
        "n_inf": n_inf,
        "n_nan": n_nan,
        "share_finite": len(finite) / max(len(lw), 1),
    }
    if len(finite) < 2 * N_BATCHES_SE or n_nan > MAX_FAULTS * counts["n"]:
        return {**dict.fromkeys(_ESTIMATES), "judged": "none", **counts}

    elbo, elbo_se = _elbo(lw)
    ln_z_is, ln_z_is_se = _ln_z(lw)
    gap_is = ln_z_is - elbo
    gap_is_se = _batch_se(lw, lambda batch: _ln_z(batch)[0] - _elbo(batch)[0])
    gap_known = gap_known_se = None
    if log_z is not None:
        gap_known = log_z - elbo
        gap_known_se = math.hypot(elbo_se, log_z_se)
    judged = _judged(ln_z_is, ln_z_is_se, log_z, log_z_se)
    gap, gap_se = {
        "gap_known": (gap_known, gap_known_se),
        "gap_is": (gap_is, gap_is_se),
        "none": (None, None),
    }[judged]

    size = min(BATCH_SIZE, len(lw) // N_BATCHES)
    batches = lw[: size * N_BATCHES].reshape(N_BATCHES, size)
    shares = [kish_share(batch) for batch in batches]
    k_hat, applicable = _median_khat(batches, khat or package_khat())
    return {
        "elbo": elbo,
        "elbo_se": elbo_se,
        "ln_z_is": ln_z_is,
        "ln_z_is_se": ln_z_is_se,
        "gap_is": gap_is,
        "gap_is_se": gap_is_se,
        "gap_known": gap_known,
        "gap_known_se": gap_known_se,
        "gap": gap,
        "gap_se": gap_se,
        "share": float(np.median(shares)),
        "share_min": min(shares),
        "khat": k_hat,
        "khat_applicable": applicable,
        "batch_size": size,
        "judged": judged,
        **counts,
    }


_ESTIMATES = (
    *("elbo", "elbo_se", "ln_z_is", "ln_z_is_se", "gap_is", "gap_is_se", "gap_known"),
    *("gap_known_se", "gap", "gap_se", "share", "share_min", "khat", "khat_applicable"),
    "batch_size",
)


def kish_share(lw: ArrayLike) -> float:
    """Gives Kish's effective share of unsmoothed weights, (sum w)^2 / (S sum w^2)."""
    lw = np.asarray(lw, dtype=np.float64)
    peak = lw.max()
    if not np.isfinite(peak):
        return 0.0
    w = np.exp(lw - peak)
    return float(w.sum() ** 2 / (len(w) * (w**2).sum()))


def package_khat() -> Callable[[Array], float | None] | None:
    """Gives the package's own k-hat as a function of log weights, or None without the package."""
    try:
        from pyro_flows.diagnostics.psis import importance_weights
    except ImportError:
        return None

    def khat(lw: Array) -> float | None:
        result = importance_weights(lw, np.zeros_like(lw))
        return float(result.khat) if result.khat_applicable else None

    return khat


def moment_errors(
    draws_unconstrained: ArrayLike,
    ref_unconstrained: ArrayLike,
    *,
    ess: float | None = None,
    ref_ess: float | None = None,
) -> dict[str, Any]:
    """Compares means and sds with those of reference draws, on the unconstrained scale.

    Args:
        draws_unconstrained: Draws to be judged, of shape ``(S, D)``.
        ref_unconstrained: Reference draws, of shape ``(n_ref, D)``.
        ess: What the draws are worth; by default S, as for independent draws.
        ref_ess: What the reference draws are worth; by default n_ref.

    Returns:
        Arrays of shape ``(D,)``: ``mean_error`` = (mean - mean_ref) / sd_ref with its bar
        0.05 + 3 se in ``mean_bar``, ``log_sd_error`` = ln(sd / sd_ref) with ``log_sd_bar``; and
        ``met``, whether every coordinate meets both bars.
    """
    draws, ref = _same_width(draws_unconstrained, ref_unconstrained)
    n = 1.0 / (ref_ess or len(ref)) + 1.0 / (ess or len(draws))
    centre, scale = ref.mean(0), ref.std(0, ddof=1)
    kurtosis = (((ref - centre) / scale) ** 4).mean(0)
    mean_error = (draws.mean(0) - centre) / scale
    log_sd_error = np.log(draws.std(0, ddof=1) / scale)
    mean_bar = np.full_like(mean_error, 0.05 + 3 * math.sqrt(n))
    log_sd_bar = 0.05 + 3 * np.sqrt((kurtosis - 1) / 4 * n)
    met = (np.abs(mean_error) <= mean_bar) & (np.abs(log_sd_error) <= log_sd_bar)
    return {
        "mean_error": mean_error,
        "mean_bar": mean_bar,
        "log_sd_error": log_sd_error,
        "log_sd_bar": log_sd_bar,
        "met": bool(met.all()),
    }


def quantile_errors(draws: ArrayLike, ref: ArrayLike) -> Array:
    """Gives F_q(x_p) - p at the reference quantiles p = .05, .25, .5, .75, .95.

    Args:
        draws: Draws to be judged, of shape ``(S, D)``, constrained. (Where the constraining maps
            act on one coordinate at a time, as exp does, the unconstrained scale gives the same.)
        ref: Reference draws, of shape ``(n_ref, D)``, on the same scale.

    Returns:
        The errors, of shape ``(5, D)``; the bar is 0.02 in absolute value.
    """
    draws, ref = _same_width(draws, ref)
    at = np.quantile(ref, QUANTILES, axis=0)
    return (draws[None] <= at[:, None]).mean(1) - np.array(QUANTILES)[:, None]


def tail_index(x: ArrayLike) -> float:
    """The Pareto shape of the larger tail of ``|x - median|``: moments below 1 / shape exist."""
    from pyro_flows.diagnostics.arviz_seam import psislw

    x = np.asarray(x, dtype=np.float64)
    distance = np.abs(x - np.median(x))
    distance = distance[distance > 0]
    return float(psislw(np.log(distance))[1]) if len(distance) > 100 else math.inf


def total_variation(shares: ArrayLike, reference: ArrayLike) -> float:
    """Half the sum of the differences of two lists of shares."""
    return 0.5 * float(np.abs(np.asarray(shares) - np.asarray(reference)).sum())


def evidence_error(lw: ArrayLike, log_z: float, size: int = 2000) -> float:
    """The mean absolute error of lnZ_IS from ``size`` draws, over all batches of that size."""
    lw = np.asarray(lw, dtype=np.float64)
    batches = lw[: len(lw) // size * size].reshape(-1, size)
    return float(np.mean([abs(_ln_z(batch)[0] - log_z) for batch in batches]))


def judge_truth(errors: dict[str, float | None]) -> str:
    """Whether draws are in truth "right", "wrong" or between ("grey").

    Args:
        errors: The largest errors, None or absent where one can't be judged: ``mean`` in sds,
            ``log_sd``, ``quantile``, ``modes`` (total variation), ``log_z``.

    Returns:
        "wrong" if any is above its limit, "right" if all are under half of it; "unknown" if there
        is none.
    """
    shares = [
        abs(value) / limit
        for name, limit in WRONG.items()
        if (value := errors.get(name)) is not None
    ]
    if not shares:
        return "unknown"
    if any(math.isnan(share) for share in shares):
        return "wrong"  # of draws that aren't numbers nothing is right
    return "wrong" if max(shares) > 1 else "right" if max(shares) < 0.5 else "grey"


def meets(estimate: float | None, se: float | None, bar: float) -> bool:
    """Says whether an estimate that should be small meets its bar: estimate + 2 s.e. <= bar."""
    return estimate is not None and estimate + 2 * (se or 0.0) <= bar


def _log_weights(log_p: ArrayLike, log_q: ArrayLike) -> tuple[Array, int, int]:
    log_p = np.asarray(log_p, dtype=np.float64)
    log_q = np.asarray(log_q, dtype=np.float64)
    if log_p.ndim != 1 or log_p.shape != log_q.shape:
        raise ValueError(
            f"log_p and log_q should be two arrays of one shape (S,); got {log_p.shape} and "
            f"{log_q.shape}."
        )
    fault = np.isnan(log_p) | (log_p == np.inf) | ~np.isfinite(log_q)
    log_p, log_q = log_p[~fault], log_q[~fault]
    return log_p - log_q, int((log_p == -np.inf).sum()), int(fault.sum())


def _elbo(lw: Array) -> tuple[float, float]:
    finite = lw[np.isfinite(lw)]
    share = len(finite) / len(lw)
    variance = finite.var(ddof=1) / len(finite) + (1 - share) / (share * len(lw))
    return float(finite.mean() + math.log(share)), math.sqrt(variance)


def _ln_z(lw: Array) -> tuple[float, float]:
    peak = lw.max()
    w = np.exp(lw - peak)
    return (
        float(peak + math.log(w.mean())),
        float(w.std(ddof=1) / (w.mean() * math.sqrt(len(w)))),
    )


def _batch_se(lw: Array, estimate: Callable[[Array], float]) -> float:
    parts = np.array_split(lw, N_BATCHES_SE)
    values = [estimate(part) for part in parts if np.isfinite(part).sum() >= 2]
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))


def _judged(ln_z_is: float, ln_z_is_se: float, log_z: float | None, log_z_se: float) -> str:
    if log_z is None:
        return "none"
    if log_z_se == 0:
        return "gap_known"
    agrees = abs(ln_z_is - log_z) <= max(0.01, 4 * math.hypot(ln_z_is_se, log_z_se))
    return "gap_is" if agrees else "none"


def _median_khat(
    batches: Array, khat: Callable[[Array], float | None] | None
) -> tuple[float | None, bool | None]:
    if khat is None:
        return None, None
    # Constant weights have no tail, hence no k-hat: that counts as better than any number.
    values = [khat(batch) for batch in batches]
    median = float(np.median([-np.inf if k is None else k for k in values]))
    return (None, False) if median == -np.inf else (median, True)


def _same_width(draws: ArrayLike, ref: ArrayLike) -> tuple[Array, Array]:
    draws = np.asarray(draws, dtype=np.float64)
    ref = np.asarray(ref, dtype=np.float64)
    if draws.ndim != 2 or ref.ndim != 2 or draws.shape[1] != ref.shape[1]:
        raise ValueError(
            "Draws and reference should have shapes (S, D) and (n_ref, D) with one D; got "
            f"{draws.shape} and {ref.shape}."
        )
    return draws, ref
