# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""From numbers to a judgement a user can act on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .psis import ImportanceWeights

__all__ = ["Verdict", "judge"]

Status = Literal["reliable", "corrected", "not reliable"]

# A gap of 0.00125 nats bounds a mean's shift by about 0.05 posterior standard deviations.
RELIABLE_GAP = 0.00125
LARGEST_INVALID_SHARE = 1e-3
# Fewer effective draws than this say too little of a tail (the usual floor for MCMC, too).
FEWEST_EFFECTIVE = 400

TRAIN_LONGER = "train longer: FlowVI(..., max_steps=20_000), and no smaller max_gradients"


@dataclass(frozen=True)
class Verdict:
    """Whether the draws that are handed over can be used.

    Attributes:
        status: "reliable" (the guide's own draws), "corrected" (the guide's draws, importance
            resampled), or "not reliable".
        reasons: what the status rests on, sentences.
        advice: what to try, sentences; empty if nothing needs doing.
    """

    status: Status
    reasons: tuple[str, ...]
    advice: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"Verdict: {self.status}"]
        lines += [f"  {reason}" for reason in self.reasons]
        lines += [f"  Try: {advice}" for advice in self.advice]
        return "\n".join(lines)


def judge(
    weights: ImportanceWeights,
    *,
    faults: Sequence[tuple[str, str]] = (),
    notes: Sequence[str] = (),
) -> Verdict:
    """Judge a guide by its importance weights and by faults found elsewhere.

    * Any fault (improper posterior, missed mode, random log joint), or more than 0.1 % invalid
      draws: not reliable.
    * Gap plus two standard errors at most 0.00125 nats: reliable, raw draws.
    * Else k-hat below its threshold, and weights worth at least 400 draws: corrected by importance
      resampling.
    * Else not reliable.

    Weights can't show what no draw has visited: a far-away mode must come in as a fault, found
    from starts elsewhere.

    Args:
        weights: of draws of the guide.
        faults: pairs (reason, advice) from checks other than the weights.
        notes: further reasons that change nothing, such as a check that couldn't be made.

    Returns:
        The verdict.

    Example:
        >>> lw = np.random.default_rng(0).normal(scale=0.2, size=10_000)
        >>> judge(importance_weights(lw, np.zeros(10_000))).status
        'corrected'
    """
    share_invalid = weights.n_invalid / weights.n
    if share_invalid > LARGEST_INVALID_SHARE:
        faults = [
            *faults,
            (
                f"{weights.n_invalid} of {weights.n} draws have a NaN or infinite log density.",
                "find the site that gives NaN (pyro.enable_validation(True)); run in float64.",
            ),
        ]
    gap = f"gap log evidence - ELBO {weights.gap:.4f} ± {2 * weights.gap_se:.4f} nats"
    shown = f"{weights.khat:.2f}" if weights.khat_applicable else "not applicable"
    khat = f"k-hat {shown} (threshold {weights.threshold:.2f}, {weights.n} draws)"
    share = f"effective share {weights.share:.1%}"
    figures = (f"{gap}.", f"{khat}; {share}.", *notes)
    if weights.n_zero:
        inside = 1 - weights.n_zero / weights.n
        figures += (f"{inside:.2%} of the guide's draws are inside the support.",)
    if faults:
        reasons = tuple(reason for reason, _ in faults)
        return Verdict("not reliable", (*reasons, *figures), tuple(a for _, a in faults))
    if weights.gap + 2 * weights.gap_se <= RELIABLE_GAP:
        if weights.khat >= weights.threshold:
            largest = weights.n * math.exp(weights.log_weights.max())
            figures += (
                "That k-hat is of weights that no draw is given here; the largest is "
                f"{largest:.1f} times their mean.",
            )
        return Verdict("reliable", ("The guide's draws can be used as they are.", *figures))
    # Smoothing hides a single draw that outweighs all others: the unsmoothed weights count, too.
    effective = min(weights.kish_ess, weights.share * weights.n)
    if weights.khat < weights.threshold and effective >= FEWEST_EFFECTIVE:
        return Verdict(
            "corrected",
            ("The guide is close; its draws are corrected by importance resampling.", *figures),
        )
    return Verdict(
        "not reliable",
        ("The guide misses part of the posterior, and reweighting can't mend it.", *figures),
        (
            f"{TRAIN_LONGER}.",
            "a richer flow: FlowVI(..., flow='nsf').",
            "reparametrise the model (pyro.infer.reparam.LocScaleReparam), or run NUTS in the "
            "flow's coordinates: NeuTraReparam(posterior.guide).",
        ),
    )
