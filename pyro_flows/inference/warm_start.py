# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Start a flow from the best Gaussian that can be found quickly.

Two affine-invariant stages, so that standard deviations from 0.02 to 9,700 are all one to them:

1. Newton's method with exact Hessians from several over-dispersed points. Each point on each path
   is a candidate Gaussian (location there, covariance from the Hessian made positive); the one
   with the best ELBO wins. On funnels, whose density has no maximum, that is a point passed on
   the way, as in Pathfinder (Zhang et al. 2022, arXiv:2108.03782).
2. Natural-gradient ascent of the Gaussian's ELBO, with the sticking-the-landing residual
   (grad log p + whitened noise), whose noise vanishes where the posterior is Gaussian, and the
   positive-definite retraction of Lin et al. (2020, arXiv:2002.10060).

What comes out is never worse than the plain start: the better ELBO on the same draws is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pyro_flows.errors import GuideError, InfeasibleModelError
from pyro_flows.guides import AutoFlow, LogJoint, named_sites, structure, unconstrain
from pyro_flows.inference.modes import (
    MOST_MODES,
    SAME,
    WORTH,
    Mixture,
    Modes,
    elbo_of_mixture,
    explore,
    lower_factors,
    merge,
    weigh,
)
from pyro_flows.inference.newton import Climb, climb, lower

NATURAL_STEPS = 200
# Modes whose Gaussians are fitted one by one before they become a mixture.
MOST_REFINED = 8
# A Hessian costs D gradients of a D-vector; beyond this the natural gradient goes alone.
LARGEST_HESSIAN = 400
# A standard deviation that grows by this factor in the last three quarters of NATURAL_STEPS, and
# still in the last half, is not settling. (Settled ones stay within a few per cent; where half a
# line is flat, as in a separated logistic regression, it grows four to ten times, in jerks.)
GROWTH, STILL = 3.0, 1.3
LARGEST_GROWTH = 1e9


@dataclass
class Gaussian:
    """A Gaussian on the unconstrained vector, and how it was found.

    Attributes:
        loc: shape ``(D,)``.
        scale_tril: Cholesky factor of the covariance, ``(D, D)``.
        elbo: its ELBO, on a few hundred draws.
        plain_elbo: that of the plain start.
        gradients: evaluations of the log joint's gradient spent (a Hessian counts as D).
        growing: coordinates whose spread kept growing: a sign of an improper posterior.
        modes: ends of Newton paths at a maximum, ``(M, D)``, in the model's own coordinates.
        mode_evidence: Laplace's log evidence at each of them, ``(M,)``.
        history: ELBO after each natural-gradient step.
        centring: degree of centring of each coordinate in which it was found; None if the model
            has no hierarchy that the guide can use.
        mixture: several Gaussians that are better than one, where modes lie apart.
    """

    loc: Tensor
    scale_tril: Tensor
    elbo: float = -math.inf
    plain_elbo: float = -math.inf
    gradients: int = 0
    growing: Tensor | None = None
    modes: Tensor | None = None
    mode_evidence: Tensor | None = None
    history: list[float] = field(default_factory=list)
    centring: Tensor | None = None
    mixture: Mixture | None = None


def warm_start(guide: AutoFlow, *args: Any, **kwargs: Any) -> Gaussian:
    """Set a guide's affine to the best Gaussian found, before plain SVI.

    Args:
        guide: an ``AutoFlow``; set up here if it isn't.
        *args: the model's arguments.
        **kwargs: the same.

    Returns:
        The Gaussian, with what it cost.

    Cost: some thousands of gradients, most of a second for small models.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(3.0, 0.01))
        >>> guide = AutoFlow(model)
        >>> start = warm_start(guide)
        >>> round(float(guide.median()["x"]), 1)
        3.0
    """
    if not isinstance(guide, AutoFlow):
        raise GuideError(
            f"warm_start expected an AutoFlow, but got {type(guide).__name__}: it sets the affine "
            "at the end of the flow. Use guide = AutoFlow(model)."
        )
    guide.setup(*args, **kwargs)
    guide._check_unchanged(args, kwargs)
    log_joint = LogJoint(guide.bare_model, guide, args, kwargs, through=guide.noncentring)
    return find_gaussian(log_joint, guide)


@torch.no_grad()
def find_gaussian(log_joint: LogJoint, guide: AutoFlow) -> Gaussian:
    """Set the guide's affine, and its degree of centring, to the best Gaussian found.

    In a hierarchical model the search is made in the model's own coordinates and in non-centred
    ones; the better ELBO decides, since both are bounds of the same evidence.

    Args:
        log_joint: the model's, ``through`` the guide's non-centring layer if it has one.
        guide: set up; changed in place.

    Raises:
        InfeasibleModelError: the log joint isn't finite anywhere it was tried.
    """
    if guide.modes > 1:  # what is searched for first is one Gaussian
        loc = guide._init_loc().to(guide.affine.loc)
        guide.split(loc[None], 0.1 * torch.eye(len(loc)).to(loc)[None], torch.ones(1))
    layer, loc = guide.noncentring, guide.affine.loc.detach().clone()
    scale = guide.affine.scale_tril.detach().clone()
    if layer is None:
        best = _search(log_joint, Gaussian(loc, scale))
    else:
        cost, best = 0, Gaussian(loc, scale)
        centred = torch.ones(layer.dim).to(loc)
        x = layer(loc)
        for degree in (centred, 1 - centred):
            layer.set_centring(degree)
            log_joint.forget()
            found = _search(log_joint, Gaussian(layer.inv(x), scale))
            found.centring = degree
            if found.modes is not None:
                found.modes = layer(found.modes)
            cost += found.gradients
            if best.centring is None or found.elbo > best.elbo:
                best = found
        best.gradients = cost
        layer.set_centring(centred if best.centring is None else best.centring)
        log_joint.forget()
    guide.affine.set(best.loc, best.scale_tril)
    return best


@torch.no_grad()
def find_start(log_joint: LogJoint, guide: AutoFlow) -> Gaussian:
    """:func:`find_gaussian`; then look for further modes, and split the guide if some weigh.

    Args:
        log_joint: the model's, ``through`` the guide's non-centring layer if it has one.
        guide: set up; changed in place.
    """
    best = find_gaussian(log_joint, guide)
    if len(best.loc) > LARGEST_HESSIAN or log_joint.stochastic or best.growing is not None:
        return best
    best.modes = best.mode_evidence = None
    known = merge(None, climb(log_joint, best.loc[None]))
    modes, spent = explore(log_joint, best.loc, best.scale_tril, known)
    best.gradients += spent
    if not len(modes):
        return best
    best.modes, best.mode_evidence = modes.locs, modes.evidence
    if log_joint.through is not None:
        best.modes = log_joint.through(modes.locs)
    best.mixture = _mixture(log_joint, modes.weighty[:MOST_MODES], best)
    if best.mixture is not None:
        guide.split(best.mixture.locs, best.mixture.scale_trils, best.mixture.weights)
    return best


def _mixture(log_joint: LogJoint, modes: Modes, single: Gaussian) -> Mixture | None:
    """A Gaussian for each mode, or None if one Gaussian for all is as good."""
    if len(modes) < 2:
        return None
    trils = lower_factors(modes)
    candidates = [weigh(log_joint, modes.locs, trils)]
    if len(modes) <= MOST_REFINED:
        refined = []
        for loc, tril in zip(modes.locs, trils, strict=True):
            refined.append(_natural_gradient(log_joint, Gaussian(loc, tril)))
            single.gradients += refined[-1].gradients
        refined = _distinct(refined)
        locs = torch.stack([g.loc for g in refined])
        candidates.append(weigh(log_joint, locs, torch.stack([g.scale_tril for g in refined])))
    elbos = [elbo_of_mixture(log_joint, mixture) for mixture in candidates]
    top = max(range(len(elbos)), key=elbos.__getitem__)
    if len(candidates[top].weights) < 2 or elbos[top] < single.elbo + WORTH:
        return None
    return candidates[top]


def _distinct(gaussians: list[Gaussian]) -> list[Gaussian]:
    """Gaussians that didn't end up in one place."""
    kept: list[Gaussian] = []
    for one in gaussians:
        apart = [
            torch.linalg.solve_triangular(
                lower(torch.cat([one.scale_tril, other.scale_tril], -1)),
                (one.loc - other.loc)[:, None],
                upper=False,
            ).norm()
            for other in kept
        ]
        if all(float(distance) > SAME for distance in apart):
            kept.append(one)
    return kept


@torch.no_grad()
def find_modes(log_joint: LogJoint, loc: Tensor) -> Gaussian:
    """Maxima of the log joint, from over-dispersed starts around a point.

    For guides that aren't set from outside, so that a mode that they miss is known all the same.

    Args:
        log_joint: the model's.
        loc: a packed vector.

    Returns:
        ``modes``, ``mode_evidence`` and what they cost; location and scale are of no use.
    """
    plain = Gaussian(loc, 0.1 * torch.eye(len(loc)).to(loc))
    starts = _starts(log_joint, plain)
    if len(loc) <= LARGEST_HESSIAN and not log_joint.stochastic:
        paths = climb(log_joint, starts)
        plain.gradients = paths.gradients
        plain.modes, plain.mode_evidence = paths.modes, paths.evidence
    return plain


def _search(log_joint: LogJoint, plain: Gaussian) -> Gaussian:
    """The best Gaussian found from a plain one, in the log joint's coordinates."""
    starts = _starts(log_joint, plain)
    best, spent, modes, evidence = plain, 0, None, None
    plain.plain_elbo = plain.elbo = elbo_of(log_joint, plain.loc, plain.scale_tril)
    if len(plain.loc) <= LARGEST_HESSIAN and not log_joint.stochastic:
        paths = climb(log_joint, starts)
        best, spent = _best_on(log_joint, paths, plain), paths.gradients + 32 * len(paths.locs)
        modes, evidence = paths.modes, paths.evidence
    natural = _natural_gradient(log_joint, best)
    natural.gradients += spent
    natural.elbo = elbo_of(log_joint, natural.loc, natural.scale_tril)
    natural.plain_elbo = plain.elbo
    natural.modes, natural.mode_evidence = modes, evidence
    if natural.elbo < best.elbo:
        # Too noisy, or no better: keep what it came from, and what was learned on the way.
        natural.loc, natural.scale_tril, natural.elbo = best.loc, best.scale_tril, best.elbo
    return natural


def _best_on(log_joint: LogJoint, paths: Climb, plain: Gaussian) -> Gaussian:
    """The best of the Gaussians around the points of some paths, and of the plain one."""
    if not len(paths.locs):
        return plain
    top = int(_elbos(log_joint, paths.locs, paths.scales, 32).argmax())
    loc, factor = paths.locs[top], lower(paths.scales[top])
    elbo = elbo_of(log_joint, loc, factor)
    return Gaussian(loc, factor, elbo) if elbo > plain.elbo else plain


def elbo_of(log_joint: LogJoint, loc: Tensor, scale: Tensor, draws: int = 256) -> float:
    """ELBO of a Gaussian on fixed draws, the same for every call; -inf if not finite."""
    return float(_elbos(log_joint, loc[None], scale[None], draws)[0])


def _elbos(log_joint: LogJoint, loc: Tensor, scale: Tensor, draws: int) -> Tensor:
    """ELBOs of many Gaussians, ``(K, D)`` and ``(K, D, D)`` to ``(K,)``."""
    dim = loc.shape[-1]
    generator = torch.Generator().manual_seed(1)
    half = torch.randn(draws // 2, dim, generator=generator, dtype=torch.float64).to(loc)
    noise = torch.cat([half, -half])
    z = loc[:, None] + noise @ scale.mT
    log_p = log_joint.in_chunks(z.reshape(-1, dim)).reshape(z.shape[:-1])
    # log q of the same draws, not its mean: where the posterior is Gaussian the noise cancels.
    log_q = -0.5 * noise.square().sum(-1) - 0.5 * dim * math.log(2 * math.pi)
    ratio, finite = log_p - log_q, torch.isfinite(log_p)
    share = finite.to(ratio.dtype).mean(-1)
    inside = torch.where(finite, ratio, 0.0).mean(-1) / share
    # Of the Gaussian restricted to the support, as everywhere.
    result = inside + share.log() + torch.linalg.slogdet(scale)[1]
    return torch.where(torch.isfinite(result), result, -math.inf)


def _starts(log_joint: LogJoint, plain: Gaussian) -> Tensor:
    """The plain start and over-dispersed points around it where the log joint is finite."""
    dim = len(plain.loc)
    count = (8 if dim <= 50 else 4) if log_joint.mode != "sequential" else 2
    tries = torch.randn(256, dim, dtype=plain.loc.dtype).to(plain.loc)
    # Spread from 0.1 to 3, so that some land where hard constraints leave little room.
    spread = torch.logspace(-1, math.log10(3.0), 256, base=10.0, dtype=plain.loc.dtype)
    points = torch.cat([plain.loc[None], plain.loc + spread.to(plain.loc)[:, None] * tries])
    prior = _prior_draws(log_joint, count // 2)
    points = torch.cat([points, *prior])
    value = log_joint.in_chunks(points)
    finite = torch.isfinite(value)
    if not bool(finite.any()):
        blame = log_joint.blame(plain.loc)
        raise InfeasibleModelError(
            "The model's log density is not finite anywhere it was tried: the start and 256 "
            f"points around it (at the start it is {float(value[0]):g}). {blame} "
            "Check supports, scales and data; or start elsewhere by init_loc_fn=."
        )
    if not bool(finite[0]):
        plain.loc = points[finite][value[finite].argmax()].clone()
    # The widest ones last, the prior's own after them: over-dispersed on purpose, also where the
    # prior is much wider than a unit of the unconstrained scale.
    good = points[1:][finite[1:]]
    return torch.cat([plain.loc[None], good[-(count - 1) :]])


def _prior_draws(log_joint: LogJoint, count: int) -> list[Tensor]:
    """Draws from the model's prior, ``(1, D)`` each; none where it can't be sampled."""
    guide, draws = log_joint.guide, []
    parameter = next(guide.parameters())
    for _ in range(count):
        try:
            trace: Any = structure.trace_model(
                log_joint.model, *log_joint.args, **log_joint.kwargs
            )
            values = {name: trace.nodes[name]["value"] for name, _ in named_sites(guide)}
            x = unconstrain(guide, values)[0].to(parameter)
        except (NotImplementedError, RuntimeError, ValueError, KeyError):
            return []
        x = x if log_joint.through is None else log_joint.through.inv(x)
        if bool(torch.isfinite(x).all()):
            draws.append(x[None])
    return draws


def _natural_gradient(log_joint: LogJoint, start: Gaussian) -> Gaussian:
    """Ascend the ELBO of a Gaussian in its own whitened coordinates."""
    loc, scale, dim = start.loc.clone(), start.scale_tril.clone(), len(start.loc)
    particles = max(64, 2 * dim)
    if log_joint.mode == "sequential":
        particles = 16
    history, spreads, gradients = [], [], 0
    steps, step = NATURAL_STEPS, 0
    while step < steps:
        rate = 0.3 if step < 0.6 * NATURAL_STEPS else 0.1
        half = torch.randn(particles // 2, dim, dtype=loc.dtype, device=loc.device)
        noise = torch.cat([half, -half])
        value, gradient = log_joint.value_and_grad(loc + noise @ scale.T)
        gradients += particles
        residual = gradient @ scale + noise
        finite = torch.isfinite(value) & torch.isfinite(residual).all(-1)
        residual = torch.where(finite[:, None], residual, 0.0)
        count = finite.sum().clamp_min(1)
        entropy = scale.diagonal().log().sum() + 0.5 * dim * (1 + math.log(2 * math.pi))
        history.append(float(torch.where(finite, value, 0.0).sum() / count + entropy))
        drift = rate * residual.sum(0) / count
        moment = residual.T @ noise / count
        change = -0.5 * rate * (moment + moment.T)
        # Trust region: a step no longer than a standard deviation per coordinate, a precision at
        # most halved, so that a start far away is approached and not overshot.
        drift = drift * (math.sqrt(dim) / drift.norm()).clamp(max=1.0)
        eigenvalues, vectors = torch.linalg.eigh(change)
        eigenvalues = eigenvalues.clamp(-0.5, 2.0)
        precision = 1 + eigenvalues + 0.5 * eigenvalues**2
        loc = loc + scale @ drift
        scale = lower((scale @ vectors) * precision.rsqrt())
        step += 1
        if step % (NATURAL_STEPS // 4) == 0:
            spreads.append(scale.norm(dim=-1))
            # Still growing at the end: look on, to tell a slow start from an improper posterior.
            if step == steps and steps < 3 * NATURAL_STEPS and _grows(spreads).any():
                steps += NATURAL_STEPS
    result = Gaussian(loc, scale, gradients=gradients, history=history)
    # What grows without end stops where the floating type does, so its size counts too.
    growing = _grows(spreads) | (spreads[-1] > LARGEST_GROWTH * start.scale_tril.norm(dim=-1))
    result.growing = growing if steps > NATURAL_STEPS and bool(growing.any()) else None
    return result


def _grows(spreads: list[Tensor]) -> Tensor:
    """Which coordinates' standard deviations grew by a large factor, and still do."""
    first, middle, _, last = spreads[-4:]
    return (last > GROWTH * first) & (last > STILL * middle)
