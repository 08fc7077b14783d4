# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What the figures of merit of a fit say, in words."""

from __future__ import annotations

import math

from .page import Html, element
from .psis import ImportanceWeights

__all__ = ["figures_of_merit"]


def figures_of_merit(
    weights: ImportanceWeights, *, ess: float, remark: str = ""
) -> dict[str, tuple[str, str]]:
    """ELBO, log evidence, gap, k-hat and effective draws: the number, and what it says.

    Args:
        weights: of draws of the guide.
        ess: the effective number of draws.
        remark: why log evidences can't be compared, if they can't.

    Returns:
        Name to (number, sentence), for ``page.facts``.

    Example:
        >>> lw = np.random.default_rng(0).normal(scale=0.2, size=10_000)
        >>> weights = importance_weights(lw, np.zeros(10_000))
        >>> figures_of_merit(weights, ess=9600.0)["effective draws"]
        ('9,600', 'Of a pool of 10,000, weighted.')
    """
    works = weights.khat < weights.threshold
    relative = remark.strip(" ()")
    evidence = "In nats, by importance sampling. "
    if not works:
        evidence += "Its error is larger than shown, by how much is unknown: k-hat is high."
    elif relative:
        evidence += relative[0].upper() + relative[1:] + "."
    else:
        evidence += "It compares models of one data set."
    khat = "The weights are constant: there is no tail to fit."
    if weights.khat_applicable:
        khat = f"Below {weights.threshold:.2f}: reweighting can correct the draws."
        if not works:
            khat = f"Not below {weights.threshold:.2f}: reweighting can't correct the draws."
        khat += " It says nothing of modes that no draw has visited."
    pool = "used as they are" if ess == weights.n else "weighted"
    return {
        "ELBO": (
            _plus_minus(weights.elbo, weights.elbo_se),
            "In nats, a lower bound of the log evidence, by the guide itself.",
        ),
        "log evidence": (_plus_minus(weights.log_evidence, weights.log_evidence_se), evidence),
        "gap": (_plus_minus(weights.gap, weights.gap_se), _gap_in_words(weights.gap, works=works)),
        "k-hat": (f"{weights.khat:.2f}" if weights.khat_applicable else "n/a", khat),
        "effective draws": (f"{ess:,.0f}", f"Of a pool of {weights.n:,}, {pool}."),
    }


def _gap_in_words(gap: float, *, works: bool) -> str:
    text = "Log evidence less ELBO: the guide's divergence from the posterior"
    if not works:
        return f"{text}, known no better than the log evidence."
    if not 0 <= gap < 0.5:
        return f"{text}."
    shift = f"{math.sqrt(2 * gap):.2g}"
    return f"{text}. A Gaussian whose mean is off by {shift} sd has as much."


def _plus_minus(value: float, error: float) -> Html:
    places = 4 if abs(value) < 1000 else 2
    error_text = element("span", f"± {error:.{places}f}", class_="quiet")
    return Html(f"{value:,.{places}f} {error_text}")
