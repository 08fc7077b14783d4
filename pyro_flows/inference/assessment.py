# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Is a guide any good? Its weights, starts from elsewhere, and bursts from its draws."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.typing import NDArray
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor

from pyro_flows.diagnostics import ImportanceWeights, Verdict, importance_weights, judge, resample
from pyro_flows.diagnostics.verdict import RELIABLE_GAP
from pyro_flows.errors import GuideError, InfeasibleModelError
from pyro_flows.guides import AutoFlow, LogJoint, structure
from pyro_flows.guides.unpack import coordinate_sites
from pyro_flows.inference.bursts import CHAINS, burst
from pyro_flows.inference.flatness import flat_directions
from pyro_flows.inference.modes import missed_mass
from pyro_flows.inference.objectives import Objective
from pyro_flows.inference.posterior import Pool, Posterior
from pyro_flows.inference.randomness import seeded
from pyro_flows.inference.symmetries import find_symmetries
from pyro_flows.inference.warm_start import Start, look_around
from pyro_flows.training import Report

# A pool ten times the draws handed over, so that resampling without replacement has a choice.
POOL = 40_000
SLOW_POOL = 2_000
# Draws that are looked for around a place.
NEARBY = 4000
# Of the mass, the share that may lie where the guide doesn't reach.
LARGEST_MISSED = 0.01
# How far a mean may drift, standard deviations, or a log standard deviation; by so many standard
# errors, since the largest of many coordinates is looked at.
LARGEST_DRIFT, DRIFT_ERRORS = 0.1, 4.0
# Of a guide that isn't good enough yet: a spread so many times that of the Gaussian it started as.
LARGEST_WIDENING = 3.0
# Bursts of which fewer proposals are accepted say nothing.
LEAST_ACCEPTED = 0.2
UNMOVED = "Not checked by short runs of Hamiltonian Monte Carlo."
# Added to a seed, so that it isn't one that a guide was trained by.
OTHER_NUMBERS = 1_000_003

Faults = list[tuple[str, str]]


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
    begun, report = time.perf_counter(), Report(stop_reason="not trained here")
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
    missed = _missed_mass(objective, start, weights, pool)
    faults = _faults(objective, start, report, missed)
    notes = ["Not checked for further modes."] if missed is None else []
    if missed is not None and start is not None and start.cut:
        notes = ["The search for further modes was cut short: it had used its gradients."]
    gradients = 0
    if not log_joint.stochastic:
        z = torch.as_tensor(pool.z[:8], device="cpu").to(next(objective.guide.parameters()))
        notes += find_symmetries(log_joint, z)
    if judge(weights, faults=faults).status == "not reliable":  # why? It needs no burst
        if report.gaining and start is not None:
            faults += _widening(objective, start)
        if not log_joint.stochastic:
            faults = _flat(objective, pool) + faults
    else:
        more, notes_too, gradients = _drifting(objective, pool, weights)
        faults, notes = faults + more, notes + notes_too
    return Assessment(pool, weights, judge(weights, faults=faults, notes=notes), gradients)


def glance(objective: Objective) -> Assessment:
    """The weights alone, for one who doesn't wait for more."""
    pool = _pool(objective, SLOW_POOL)
    weights = importance_weights(pool.log_p, pool.log_q)
    fault = (
        "The checks of the guide were interrupted.",
        "let them end: pyro_flows.assess(model, posterior.guide, ...).",
    )
    return Assessment(pool, weights, judge(weights, faults=[fault]), 0)


def _pool(objective: Objective, size: int) -> Pool:
    parts = [objective.draw(min(size, 4000)) for _ in range(-(-size // 4000))]
    z, log_p, log_q = (torch.cat(part)[:size] for part in zip(*parts, strict=True))
    as_numpy = [part.detach().cpu().double().numpy() for part in (z, log_p, log_q)]
    return Pool(*as_numpy)


def _faults(
    objective: Objective, start: Start | None, report: Report, missed: float | None
) -> Faults:
    """What the importance weights can't show: (reason, advice) pairs."""
    guide, log_joint, faults = objective.guide, objective.log_joint, []
    if start is not None and start.growing is not None:
        sites = _names(guide, start.growing)
        faults.append(
            (
                f"The posterior may be improper: the spread of {sites} keeps growing.",
                "give those sites a proper prior, or check that the data determine them.",
            )
        )
    if log_joint.stochastic:
        plates = structure.subsampled_plates(
            structure.trace_model(guide.model, *log_joint.args, **log_joint.kwargs)
        )
        what = (
            f"plate {', '.join(map(repr, plates))} is subsampled"
            if plates
            else ("the model draws random numbers of its own")
        )
        faults.append(
            (
                f"The log joint is random ({what}), so the guide's draws can't be weighed.",
                "make the subsample size an argument of the model; fit once more with all data.",
            )
        )
    if missed is not None and missed > LARGEST_MISSED:
        faults.append(
            (
                f"Starts from elsewhere found at least {missed:.1%} of the mass where the guide "
                "hardly ever draws: modes may be missing.",
                "another seed; more steps; or break the symmetry of the model (an ordered prior).",
            )
        )
    if report.interrupted and not report.steps:
        faults.append(("Training was interrupted before its first step.", "run it again."))
    return faults


def _flat(objective: Objective, pool: Pool) -> Faults:
    """Whether the density stays up along a site with a flat prior."""
    x = torch.as_tensor(pool.z[:NEARBY], device="cpu").to(next(objective.guide.parameters()))
    sites = ", ".join(f"'{name}'" for name in flat_directions(objective.log_joint, x))
    if not sites:
        return []
    reason = (
        f"The posterior may be improper: the prior of {sites} is flat, and far away the density "
        "falls no faster than 1/x, or not at all."
    )
    return [(reason, "give those sites a proper prior, or check that the data determine them.")]


def _widening(objective: Objective, start: Start) -> Faults:
    """Whether training, which could have gone on, has made some coordinates much wider."""
    if getattr(objective.guide, "modes", 1) > 1 or start.places is None:
        return []  # the start was not one Gaussian, or is of other coordinates
    z, _, _ = objective.draw_inner(2048)
    # Quartiles, since tails may hold anything; 1.35 standard deviations apart in a Gaussian.
    low, high = torch.quantile(z, z.new_tensor([0.25, 0.75]), dim=0)
    wide = (high - low) / 1.35 > LARGEST_WIDENING * start.scale_tril.norm(dim=-1)
    if not bool(wide.any()):
        return []
    sites = _names(objective.guide, wide)
    reason = (
        f"The spread of {sites} was still growing when training stopped: the posterior may be "
        "improper, or has long tails."
    )
    return [(reason, "train longer: FlowVI(..., max_steps=20_000); or give proper priors.")]


def _names(guide: AutoContinuous, marked: Tensor) -> str:
    """The sites of some coordinates, in quotes."""
    pairs = zip(coordinate_sites(guide), marked.tolist(), strict=True)
    return ", ".join(dict.fromkeys(f"'{name}'" for name, is_marked in pairs if is_marked))


def _missed_mass(
    objective: Objective, start: Start | None, weights: ImportanceWeights, pool: Pool
) -> float | None:
    """The share of the mass at places found by the warm start that the guide doesn't reach.

    Returns:
        None if it couldn't be looked for.
    """
    if start is None or start.places is None or start.growing is not None:
        return None
    log_joint = objective.log_joint
    z = torch.as_tensor(pool.z[:NEARBY], device="cpu").to(start.places.locs)
    z = z if log_joint.through is None else log_joint.through.inv(z)
    try:
        return missed_mass(log_joint, objective.log_q, start.places, weights.log_evidence, z)
    except (NotImplementedError, KeyError):  # Pyro's own transforms that have no inverse
        return None


def _drifting(
    objective: Objective, pool: Pool, weights: ImportanceWeights
) -> tuple[Faults, list[str], int]:
    """Whether bursts from the draws that would be handed over move their marginals.

    Returns:
        Faults, notes, and the gradients it took.
    """
    log_joint = objective.log_joint
    if not weights.khat_applicable:
        return [], [], 0  # exact, in a guide with a density
    if log_joint.mode == "sequential":
        return [], [UNMOVED], 0  # too slow
    index = torch.as_tensor(_handed_over(pool, weights), device="cpu")
    z = torch.as_tensor(pool.z, device="cpu")[index].to(next(objective.guide.parameters()))
    z = z if log_joint.through is None else log_joint.through.inv(z)
    drift = burst(log_joint, z)
    size, where = drift.beyond(LARGEST_DRIFT, DRIFT_ERRORS)
    if drift.accepted < LEAST_ACCEPTED:
        return [], [UNMOVED], drift.gradients
    if where < 0:
        return [], [], drift.gradients
    marked = torch.arange(z.shape[-1], device="cpu") == where
    fault = (
        f"Short runs of Hamiltonian Monte Carlo from the draws move them: the marginal of "
        f"{_names(objective.guide, marked)} drifts by {size:.2f} standard deviations.",
        "train longer: FlowVI(..., max_steps=20_000); or run NUTS in the flow's coordinates: "
        "NeuTraReparam(posterior.guide).",
    )
    return [fault], [], drift.gradients


def _handed_over(pool: Pool, weights: ImportanceWeights) -> NDArray[np.intp]:
    """Indices of as many draws as chains, raw or resampled as they would be handed over."""
    if weights.gap + 2 * weights.gap_se <= RELIABLE_GAP:
        return np.flatnonzero(np.isfinite(pool.log_p))[:CHAINS]
    return np.unique(resample(weights.log_weights, CHAINS, np.random.default_rng(0)))
