# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""From numbers to a judgement a user can act on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from .anchors import more
from .psis import ImportanceWeights

__all__ = ["Remark", "Verdict", "judge"]

Status = Literal["reliable", "corrected", "not reliable"]

# A gap of 0.00125 nats bounds a mean's shift by about 0.05 posterior standard deviations.
RELIABLE_GAP = 0.00125
LARGEST_INVALID_SHARE = 1e-3
# Fewer effective draws than this say too little of a tail (the usual floor for MCMC, too).
FEWEST_EFFECTIVE = 400

TRAIN_LONGER = (
    "train longer: FlowVI(..., max_steps=20_000), without num_steps or a small max_gradients"
)
EXACT = (
    "draw exactly, from the flow: pyro_flows.neutra_nuts(posterior); where the flow is a mixture, "
    "independence_metropolis(posterior)"
)
ADVICE = (
    f"{TRAIN_LONGER}.",
    "a richer flow: FlowVI(..., flow='nsf').",
    "reparametrise the model (pyro.infer.reparam.LocScaleReparam).",
    f"{EXACT}.",
)


@dataclass(frozen=True)
class Remark:
    """What a check has found out about a guide.

    Attributes:
        reason: a sentence.
        advice: what to try; "" if nothing needs doing.
        anchor: the section of ``docs/explanation/warnings.md`` that says more; "" for none.

    Example:
        >>> Remark("A mode is missing.", "another seed.", "missed-modes").advice
        'another seed.'
    """

    reason: str
    advice: str = ""
    anchor: str = ""


RELIABLE = Remark("The guide's draws can be used as they are.")
CORRECTED = Remark(
    "The guide is close; its draws are corrected by importance resampling.",
    anchor="corrected-draws",
)
OUT_OF_REACH = Remark(
    "The guide misses part of the posterior, and reweighting can't mend it.",
    anchor="k-hat-too-high",
)


@dataclass(frozen=True)
class Verdict:
    """Whether the draws that are handed over can be used.

    Attributes:
        status: "reliable" (the guide's own draws), "corrected" (the guide's draws, importance
            resampled), or "not reliable".
        reasons: what the status rests on, sentences.
        advice: what to try, sentences; empty if nothing needs doing.
        anchors: sections of ``docs/explanation/warnings.md`` that say more.

    Example:
        >>> print(Verdict("corrected", ("The guide is close.",)))
        Verdict: corrected
          The guide is close.
    """

    status: Status
    reasons: tuple[str, ...]
    advice: tuple[str, ...] = ()
    anchors: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"Verdict: {self.status}"]
        lines += [f"  {reason}" for reason in self.reasons]
        lines += [f"  Try: {advice}" for advice in self.advice]
        lines += [f"  {more(anchor)}" for anchor in self.anchors]
        return "\n".join(lines)


def judge(
    weights: ImportanceWeights,
    *,
    faults: Sequence[Remark] = (),
    notes: Sequence[Remark] = (),
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
        faults: from checks other than the weights; each gives its advice.
        notes: further reasons that change nothing, such as a check that couldn't be made.

    Returns:
        The verdict.

    Example:
        >>> lw = np.random.default_rng(0).normal(scale=0.2, size=10_000)
        >>> judge(importance_weights(lw, np.zeros(10_000))).status
        'corrected'
        >>> fault = Remark("A mode is missing.", "another seed.", "missed-modes")
        >>> judge(importance_weights(lw, np.zeros(10_000)), faults=[fault]).status
        'not reliable'
    """
    share_invalid = weights.n_invalid / weights.n
    if share_invalid > LARGEST_INVALID_SHARE:
        invalid = Remark(
            f"{weights.n_invalid} of {weights.n} draws have a NaN or infinite log density.",
            "find the site that gives NaN (pyro.enable_validation(True)); run in float64.",
            "invalid-draws",
        )
        faults = [*faults, invalid]
    figures = [*_figures(weights), *notes]
    if weights.n_zero:
        inside = 1 - weights.n_zero / weights.n
        text = f"{inside:.2%} of the guide's draws are inside the support."
        figures.append(Remark(text, anchor="draws-outside-the-support"))
    if faults:
        return _verdict("not reliable", [*faults, *figures])
    if weights.gap + 2 * weights.gap_se <= RELIABLE_GAP:
        if weights.khat >= weights.threshold:
            largest = weights.n * math.exp(weights.log_weights.max())
            text = (
                "That k-hat is of weights that no draw is given here; the largest is "
                f"{largest:.1f} times their mean."
            )
            figures.append(Remark(text, anchor="k-hat-of-unused-weights"))
        return _verdict("reliable", [RELIABLE, *figures])
    # Smoothing hides a single draw that outweighs all others: the unsmoothed weights count, too.
    effective = min(weights.kish_ess, weights.share * weights.n)
    if weights.khat < weights.threshold and effective >= FEWEST_EFFECTIVE:
        return _verdict("corrected", [CORRECTED, *figures])
    return _verdict("not reliable", [OUT_OF_REACH, *figures], ADVICE)


def _figures(weights: ImportanceWeights) -> list[Remark]:
    gap = f"gap log evidence - ELBO {weights.gap:.4f} ± {weights.gap_se:.4f} nats"
    shown = f"{weights.khat:.2f}" if weights.khat_applicable else "not applicable"
    khat = f"k-hat {shown} (threshold {weights.threshold:.2f}, {weights.n} draws)"
    return [Remark(f"{gap}."), Remark(f"{khat}; effective share {weights.share:.1%}.")]


def _verdict(status: Status, remarks: list[Remark], advice: tuple[str, ...] = ()) -> Verdict:
    return Verdict(
        status,
        tuple(one.reason for one in remarks),
        advice or tuple(one.advice for one in remarks if one.advice),
        tuple(dict.fromkeys(one.anchor for one in remarks if one.anchor)),
    )
