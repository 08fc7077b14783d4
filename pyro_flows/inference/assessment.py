# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Is a guide any good? Its weights, starts from elsewhere, and bursts from its draws."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide.guides import AutoContinuous

from pyro_flows.diagnostics import (
    ImportanceWeights,
    Remark,
    Verdict,
    importance_weights,
    judge,
)
from pyro_flows.errors import GuideError, InfeasibleModelError
from pyro_flows.guides import AutoFlow, LogJoint
from pyro_flows.inference import checks
from pyro_flows.inference.objectives import Objective
from pyro_flows.inference.posterior import Pool, Posterior
from pyro_flows.inference.randomness import seeded
from pyro_flows.inference.symmetries import find_symmetries
from pyro_flows.inference.warm_start import Start, look_around
from pyro_flows.training import Report

# A pool ten times the draws handed over, so that resampling without replacement has a choice.
POOL = 40_000
SLOW_POOL = 2_000
# Why training ended, of a guide that came trained.
NOT_TRAINED = "not trained here"
# Added to a seed, so that it isn't one that a guide was trained by.
OTHER_NUMBERS = 1_000_003
UNSEARCHED = Remark("Not checked for further modes.", anchor="not-checked-for-further-modes")
CUT_SHORT = Remark(
    "The search for further modes was cut short: it had used its gradients.",
    anchor="search-cut-short",
)


@dataclass(frozen=True)
class Assessment:
    """What was found out about a guide.

    Attributes:
        pool: draws of it, unconstrained, in the model's own coordinates.
        weights: their importance weights.
        verdict: the judgement.
        gradients: what it cost.
    """

    pool: Pool
    weights: ImportanceWeights
    verdict: Verdict
    gradients: int


def assess(
    model: Callable[..., Any], guide: AutoContinuous, *args: Any, seed: int = 0, **kwargs: Any
) -> Posterior:
    """Judge a guide that was trained elsewhere, as :class:`FlowVI` judges its own.

    Args:
        model: the Pyro model, whole: a guide may have been made for a part of it.
        guide: an ``AutoContinuous``, such as ``AutoFlow``, ``AutoDiagonalNormal`` or
            ``AutoMultivariateNormal``, trained; it is left as it is.
        *args: the model's arguments.
        seed: of all random numbers; the global random state is left as it was.
        **kwargs: the model's arguments by name.

    Returns:
        A posterior like that of ``FlowVI.run``: verdict, draws (corrected where that helps),
        summary, ArviZ.

    Raises:
        GuideError: the guide isn't trained, or has no density.

    Cost: mostly 10,000 to 50,000 gradients, and 40,000 evaluations of the log joint.

    Example:
        >>> from pyro.infer.autoguide import AutoDiagonalNormal
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0])
        >>> guide = AutoDiagonalNormal(model)
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
        >>> losses = [svi.step(y) for _ in range(5)]
        >>> assess(model, guide, y).verdict.status
        'not reliable'
    """
    if not isinstance(guide, AutoContinuous):
        raise GuideError(
            f"assess expected an AutoContinuous, but got {type(guide).__name__}. Use AutoFlow, "
            "AutoMultivariateNormal or AutoDiagonalNormal, which know the posterior's density."
        )
    if guide.prototype_trace is None:
        raise GuideError(
            "assess expected a trained guide, but this one hasn't seen its model's arguments yet. "
            "Train it first, by SVI, or use FlowVI(model).run(...), which trains and judges."
        )
    begun, report = time.perf_counter(), Report(stop_reason=NOT_TRAINED)
    # Numbers of its own, whatever seed the guide was trained by. A guide of NaN is judged, too.
    with seeded(seed + OTHER_NUMBERS), pyro.validation_enabled(False):
        check_density(guide, args, kwargs)
        if isinstance(guide, AutoFlow):
            guide._check_unchanged(args, kwargs)
        through = guide.noncentring if isinstance(guide, AutoFlow) else None
        log_joint = LogJoint(model, guide, args, kwargs, through=through)
        objective = Objective(guide, log_joint, args, kwargs)
        start = elsewhere(objective)
        found = examine(objective, start, report)
    return Posterior(
        guide=guide,
        log_joint=log_joint,
        pool=found.pool,
        weights=found.weights,
        verdict=found.verdict,
        report=report,
        cost={
            "gradients": found.gradients + start.gradients,
            "seconds": time.perf_counter() - begun,
        },
        seed=seed,
        args=args,
        kwargs=kwargs,
    )


def check_density(guide: AutoContinuous, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raise GuideError for a guide that is a single point."""
    posterior = guide.get_posterior(*args, **kwargs)
    if isinstance(getattr(posterior, "base_dist", posterior), dist.Delta):
        raise GuideError(
            f"Expected a guide with a density, but got {type(guide).__name__}, a single point. "
            "Use AutoFlow(model); of AutoLaplaceApproximation, "
            "guide.laplace_approximation(*args)."
        )


@torch.no_grad()
def elsewhere(objective: Objective) -> Start:
    """Look for places of high density, from over-dispersed starts around a guide's draws."""
    log_joint = objective.log_joint
    z, log_p, _ = objective.draw_inner(1024)
    inside = z[torch.isfinite(log_p)]
    if len(inside) < 2:
        inside = z
    loc, sd = inside.mean(0), inside.std(0)
    least = 1e3 * torch.finfo(sd.dtype).eps * loc.abs() + torch.finfo(sd.dtype).tiny
    start = Start(loc, torch.maximum(sd, least).nan_to_num(1.0).diag())
    # Where nothing is finite the weights will say so.
    if not log_joint.stochastic:
        with suppress(InfeasibleModelError):
            look_around(log_joint, start)
    return start


def examine(objective: Objective, start: Start | None, report: Report) -> Assessment:
    """Draw from a guide, weigh the draws, try what weights can't show, and judge.

    Args:
        objective: the guide and its log joint.
        start: what the warm start learned; None if it was interrupted.
        report: of the training.
    """
    log_joint = objective.log_joint
    pool = _pool(objective, POOL if log_joint.mode != "sequential" else SLOW_POOL)
    weights = importance_weights(pool.log_p, pool.log_q)
    missed = checks.missed(objective, start, weights, pool)
    faults = checks.known_faults(objective, start, report, missed)
    notes = [UNSEARCHED] if missed is None else []
    if missed is not None and start is not None and start.cut:
        notes = [CUT_SHORT]
    gradients = 0
    if not log_joint.stochastic:
        z = torch.as_tensor(pool.z[:8], device="cpu").to(next(objective.guide.parameters()))
        found = find_symmetries(log_joint, z)
        notes += [Remark(sentence, anchor="symmetries") for sentence in found]
    if judge(weights, faults=faults).status == "not reliable":  # why? It needs no burst
        if report.gaining and start is not None:
            faults += checks.widening(objective, start)
        if not log_joint.stochastic:
            faults = checks.rounding(objective) + checks.improper(objective, pool) + faults
    else:
        more, notes_too, gradients = checks.drifting(objective, pool, weights)
        faults, notes = faults + more, notes + notes_too
    return Assessment(pool, weights, judge(weights, faults=faults, notes=notes), gradients)


def glance(objective: Objective) -> Assessment:
    """The weights alone, for one who doesn't wait for more."""
    pool = _pool(objective, SLOW_POOL)
    weights = importance_weights(pool.log_p, pool.log_q)
    fault = Remark(
        "The checks of the guide were interrupted.",
        "let them end: pyro_flows.assess(model, posterior.guide, ...).",
        "interrupted",
    )
    return Assessment(pool, weights, judge(weights, faults=[fault]), 0)


def _pool(objective: Objective, size: int) -> Pool:
    parts = [objective.draw(min(size, 4000)) for _ in range(-(-size // 4000))]
    z, log_p, log_q = (torch.cat(part)[:size] for part in zip(*parts, strict=True))
    as_numpy = [part.detach().cpu().double().numpy() for part in (z, log_p, log_q)]
    return Pool(*as_numpy)
