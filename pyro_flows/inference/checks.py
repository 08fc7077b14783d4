# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What importance weights can't show of a guide: each fault with its reason and an advice."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor

from pyro_flows.diagnostics import ImportanceWeights, Remark, resample
from pyro_flows.diagnostics.verdict import EXACT, RELIABLE_GAP, TRAIN_LONGER
from pyro_flows.guides import structure
from pyro_flows.guides.unpack import coordinate_sites
from pyro_flows.inference.bursts import CHAINS, burst
from pyro_flows.inference.flatness import flat_directions
from pyro_flows.inference.modes import missed_mass
from pyro_flows.inference.objectives import Objective
from pyro_flows.inference.posterior import Pool
from pyro_flows.inference.warm_start import Start
from pyro_flows.training import Report

# Draws that are looked for around a place.
NEARBY = 4000
# Of the mass, the share that may lie where the guide doesn't reach.
LARGEST_MISSED = 0.01
# How far a mean may drift, standard deviations, or a log standard deviation; by so many standard
# errors, since the largest of many coordinates is looked at.
LARGEST_DRIFT, DRIFT_ERRORS = 0.1, 4.0
# Of points where bursts end, the share that may weigh more than all but so many of the pool's
# draws; by so many standard errors.
LARGEST_UNREACHED, SELDOM, UNREACHED_ERRORS = 0.02, 10, 2.0
# Of a guide that isn't good enough yet: a spread so many times that of the Gaussian it started as.
LARGEST_WIDENING = 3.0
# Of draws, the share whose log joint rounding may decide.
LARGEST_ROUNDED = 0.05
# Bursts of which fewer proposals are accepted say nothing.
LEAST_ACCEPTED = 0.2
UNMOVED = Remark(
    "Not checked by short runs of Hamiltonian Monte Carlo.", anchor="not-checked-by-short-runs"
)
IMPROPER, MISSED_MODES = "improper-posterior", "missed-modes"
PROPER = "give those sites a proper prior, or check that the data determine them."


def known_faults(
    objective: Objective, start: Start | None, report: Report, missed: float | None
) -> list[Remark]:
    """What the importance weights can't show."""
    guide, log_joint = objective.guide, objective.log_joint
    faults = list[Remark]()
    if start is not None and start.growing is not None:
        sites = _names(guide, start.growing)
        reason = f"The posterior may be improper: the spread of {sites} keeps growing."
        faults.append(Remark(reason, PROPER, IMPROPER))
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
            Remark(
                f"The log joint is random ({what}), so the guide's draws can't be weighed.",
                "make the subsample size an argument of the model; fit once more with all data.",
                "random-log-joint",
            )
        )
    if missed is not None and missed > LARGEST_MISSED:
        faults.append(
            Remark(
                f"Starts from elsewhere found at least {missed:.1%} of the mass where the guide "
                "hardly ever draws: modes may be missing.",
                "another seed; more steps; or break the symmetry of the model (an ordered prior).",
                MISSED_MODES,
            )
        )
    if start is not None and start.unseen is not None:
        faults.append(
            Remark(
                f"{start.unseen}: modes may be missing.",
                "break the symmetry of the model (an ordered prior), or use a method that tempers "
                "(sequential Monte Carlo, parallel tempering).",
                MISSED_MODES,
            )
        )
    if report.interrupted and not report.steps:
        reason = "Training was interrupted before its first step."
        faults.append(Remark(reason, "run it again.", "interrupted"))
    return faults


def improper(objective: Objective, pool: Pool) -> list[Remark]:
    """Whether the density stays up along a site with a flat prior."""
    x = torch.as_tensor(pool.z[:NEARBY], device="cpu").to(next(objective.guide.parameters()))
    sites = ", ".join(f"'{name}'" for name in flat_directions(objective.log_joint, x))
    if not sites:
        return []
    reason = (
        f"The posterior may be improper: the prior of {sites} is flat, and far away the density "
        "falls no faster than 1/x, or not at all."
    )
    return [Remark(reason, PROPER, IMPROPER)]


def rounding(objective: Objective) -> list[Remark]:
    """Whether the numbers are too short to say what the log joint of the draws is."""
    z, log_p, _ = objective.draw_inner(1024)
    share = 1 - float(objective.log_joint.resolved(z, log_p).double().mean())
    if share < LARGEST_ROUNDED:
        return []
    reason = (
        f"The log joint of {share:.0%} of the draws is rounding's: it changes when they do by one "
        "unit in the last place."
    )
    advice = "centre and scale the data"
    if z.dtype != torch.float64:
        advice = "fit in double precision: torch.set_default_dtype(torch.float64), x.double()"
    return [Remark(reason, f"{advice}.", "rounding")]


def widening(objective: Objective, start: Start) -> list[Remark]:
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
    return [Remark(reason, f"{TRAIN_LONGER}; or give proper priors.", "spread-still-growing")]


def _names(guide: AutoContinuous, marked: Tensor) -> str:
    """The sites of some coordinates, in quotes."""
    pairs = zip(coordinate_sites(guide), marked.tolist(), strict=True)
    return ", ".join(dict.fromkeys(f"'{name}'" for name, is_marked in pairs if is_marked))


def missed(
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


def drifting(
    objective: Objective, pool: Pool, weights: ImportanceWeights
) -> tuple[list[Remark], list[Remark], int]:
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
    away, error = unreached(objective, pool, weights, drift.ends)
    if away - UNREACHED_ERRORS * error > LARGEST_UNREACHED:
        fault = Remark(
            f"Of short runs of Hamiltonian Monte Carlo from the draws {away:.0%} end where the "
            "guide has next to no density: it doesn't reach a part of the posterior.",
            f"{TRAIN_LONGER}; or a richer flow: FlowVI(..., flow='nsf').",
            "tail-cut-off",
        )
        return [fault], [], drift.gradients
    if where < 0:
        return [], [], drift.gradients
    marked = torch.arange(z.shape[-1], device="cpu") == where
    fault = Remark(
        f"Short runs of Hamiltonian Monte Carlo from the draws move them: the marginal of "
        f"{_names(objective.guide, marked)} drifts by {size:.2f} standard deviations.",
        f"{TRAIN_LONGER}; or {EXACT}.",
        "drifting-marginal",
    )
    return [fault], [], drift.gradients


def unreached(
    objective: Objective, pool: Pool, weights: ImportanceWeights, ends: Tensor
) -> tuple[float, float]:
    """The share of points that weigh more than nearly all of the guide's draws do.

    A tail that the guide cuts off leaves no trace in its draws, nor in their weights. From the
    draws nearest to it, a burst gets there.

    Args:
        objective: the guide's.
        pool: its draws.
        weights: their weights.
        ends: points of the posterior, nearly, shape ``(C, D)``, in the log joint's coordinates.

    Returns:
        The share beyond what the weights foretell, and its standard error; zeros if the guide has
        no density at points that it didn't draw.
    """
    try:
        log_q = objective.log_q(ends)
    except (NotImplementedError, KeyError):  # Pyro's own transforms that have no inverse
        return 0.0, 0.0
    ratio = (objective.log_joint.in_chunks(ends) - log_q).double().cpu().numpy()
    known = pool.log_p - pool.log_q
    finite = np.sort(known[np.isfinite(known)])
    if len(finite) < SELDOM:
        return 0.0, 0.0
    bar = finite[-SELDOM]
    foretold = float(np.exp(weights.log_weights[known > bar]).sum())
    share = float((~(ratio <= bar)).mean())  # a density of NaN is none
    return share - foretold, float(np.sqrt(share * (1 - share) / len(ends)))


def _handed_over(pool: Pool, weights: ImportanceWeights) -> NDArray[np.intp]:
    """Indices of as many draws as chains, raw or resampled as they would be handed over."""
    if weights.gap + 2 * weights.gap_se <= RELIABLE_GAP:
        return np.flatnonzero(np.isfinite(pool.log_p))[:CHAINS]
    return np.unique(resample(weights.log_weights, CHAINS, np.random.default_rng(0)))
