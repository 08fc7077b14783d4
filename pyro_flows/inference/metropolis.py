# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Metropolis with a guide's independent draws as proposals: exact, and without gradients."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_flows.diagnostics import ImportanceWeights, Remark, importance_weights, judge
from pyro_flows.inference import exact
from pyro_flows.inference.posterior import Posterior

# Below this share of accepted proposals, or above that share of a chain in one place, it sticks.
LEAST_ACCEPTED, LONGEST_STAY = 0.05, 0.05


def independence_metropolis(
    posterior: Posterior,
    num_samples: int = 1000,
    *,
    warmup_steps: int = 500,
    num_chains: int = 4,
    thin: int = 10,
    seed: int | None = None,
) -> Any:
    """Exact draws by Metropolis, with independent draws of the guide as proposals.

    A proposal x' is accepted with probability min(1, w(x') / w(x)), where w = p / q: no gradient,
    no step size, and jumps between modes are as easy as any other, so it is the method for a
    mixture of flows. It is good where the weights have light tails (k-hat below 0.7). Where they
    don't, a chain that comes to a place that the guide hardly ever draws stays there for long.

    Args:
        posterior: from ``FlowVI(model).run(...)`` or ``assess``, of any guide.
        num_samples: draws of each chain.
        warmup_steps: proposals at the beginning that are thrown away; a chain begins at a draw of
            the guide.
        num_chains: number of chains.
        thin: proposals for each draw. A proposal is cheap: no gradient, and all at once.
        seed: of all random numbers; by default it follows from the posterior's. The global random
            state is left as it was.

    Returns:
        ``arviz.InferenceData`` or ``xarray.DataTree``: groups as of ``Posterior.to_arviz``, but
        for the prior's, with ``num_chains`` chains. sample_stats: ``lp`` (unconstrained),
        ``log_weight`` (log p - log q), ``accepted`` (whether it is another point than the draw
        before), ``acceptance_rate`` (of the proposals since then). Attributes: ``rhat_max``,
        ``ess_bulk_min``, ``ess_tail_min`` (the worst over all elements of all latents),
        ``acceptance_rate``, ``longest_stay`` (proposals in a row that were refused, at the most),
        ``khat`` (of the proposals' weights), ``invalid_proposals`` (NaN or +inf, refused),
        ``gradients`` (none), ``evaluations`` (of the log joint), ``gradients_training``,
        ``seconds``, ``warnings``.

    Raises:
        GuideError: the log joint is random, or no draw of the guide is inside the support.
        OptionError: a number that makes no sense.

    Warns:
        UserWarning: chains stick, R-hat is above 1.01, or effective draws are few.

    Cost: ``num_chains * (warmup_steps + thin * num_samples)`` evaluations of the log joint, and
        as many draws of the guide; 42,000 by default.

    Reference: Tierney, Markov chains for exploring posterior distributions, Annals of Statistics
    22(4), 1994; Liu, Metropolized independent sampling, Statistics and Computing 6, 1996.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        >>> posterior = FlowVI(model, num_steps=20, progress=False).run()
        >>> exact = independence_metropolis(posterior, num_samples=500)
        >>> dict(exact.posterior["x"].sizes), exact.attrs["rhat_max"] < 1.01
        ({'chain': 4, 'draw': 500, 'x_dim_0': 2}, True)
    """
    begun, name = time.perf_counter(), "independence_metropolis"
    seed = exact.check(
        name,
        posterior,
        seed,
        num_samples=num_samples,
        warmup_steps=warmup_steps,
        num_chains=num_chains,
        thin=thin,
    )
    rng = np.random.default_rng(seed)
    steps = warmup_steps + thin * num_samples
    # Not the seed itself: draws of the guide's by the same numbers may be elsewhere.
    z, log_p, log_q = posterior.sample_guide(num_chains * steps, seed=int(rng.integers(2**31)))
    place = _walk((log_p - log_q).reshape(steps, num_chains), rng)
    if (place[warmup_steps] < 0).any():
        raise exact.no_finite_start(name)
    moved = place == np.arange(steps)[:, None]
    stay = np.arange(steps)[:, None] - place
    moved, stay, place = (array[warmup_steps:] for array in (moved, stay, place))
    weights = importance_weights(log_p, log_q)
    attrs = {
        "inference_method": "independence Metropolis",
        "acceptance_rate": float(moved.mean()),
        "longest_stay": int(stay.max()),
        "khat": weights.khat,
        "invalid_proposals": weights.n_invalid,
        "gradients": 0,
        "evaluations": num_chains * steps,
        "warmup_steps": warmup_steps,
        "thin": thin,
    }
    # Row and chain of each draw, (chains, draws).
    index = (place[thin - 1 :: thin] * num_chains + np.arange(num_chains)).T
    rates = moved.reshape(num_samples, thin, num_chains).mean(1).T
    stats = {
        "lp": log_p[index],
        "log_weight": (log_p - log_q)[index],
        "accepted": rates > 0,
        "acceptance_rate": rates,
    }
    remarks = _remarks(attrs, weights, thin * num_samples)
    return exact.chains_to_arviz(
        posterior, z[index], stats, attrs, remarks, seed=seed, begun=begun
    )


def _walk(log_weight: NDArray[Any], rng: np.random.Generator) -> NDArray[np.intp]:
    """Which of its proposals each chain is at after each step; -1 before any can be taken.

    Args:
        log_weight: of proposals, ``(steps, chains)``. What isn't finite is refused.
        rng: numpy's generator.

    Returns:
        Steps, shape ``(steps, chains)``.
    """
    with np.errstate(divide="ignore"):
        least = np.log(rng.random(log_weight.shape))
    log_weight = np.where(np.isfinite(log_weight), log_weight, -math.inf)
    here = np.full(log_weight.shape[1], -math.inf)
    place = np.full(log_weight.shape, -1)
    at = place[0].copy()
    with np.errstate(invalid="ignore"):  # from nowhere to nowhere: NaN, no move
        for step, new in enumerate(log_weight):
            move = new - here > least[step]
            here, at = np.where(move, new, here), np.where(move, step, at)
            place[step] = at
    return place


def _remarks(attrs: dict[str, Any], weights: ImportanceWeights, steps: int) -> list[Remark]:
    stay = attrs["longest_stay"] / steps
    if (
        attrs["acceptance_rate"] >= LEAST_ACCEPTED
        and stay <= LONGEST_STAY
        and judge(weights).status != "not reliable"
    ):
        return []
    return [
        Remark(
            f"The proposals don't reach everywhere: {attrs['acceptance_rate']:.0%} were accepted, "
            f"one chain stayed in its place for {stay:.0%} of its length, and k-hat is "
            f"{weights.khat:.2f} (threshold {weights.threshold:.2f}). A part of the posterior "
            "that the guide hardly ever draws may be missing.",
            "neutra_nuts(posterior); or train the fit longer.",
            "chains-stick",
        )
    ]
