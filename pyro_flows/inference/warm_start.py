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

STEP_SIZES = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 1e-3, 1e-5)
NEWTON_PASSES = 40
NATURAL_STEPS = 200
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
        _, plain.gradients, plain.modes, plain.mode_evidence = _newton(log_joint, starts, plain)
    return plain


def _search(log_joint: LogJoint, plain: Gaussian) -> Gaussian:
    """The best Gaussian found from a plain one, in the log joint's coordinates."""
    starts = _starts(log_joint, plain)
    best, newton_gradients, modes, evidence = plain, 0, None, None
    plain.plain_elbo = plain.elbo = elbo_of(log_joint, plain.loc, plain.scale_tril)
    if len(plain.loc) <= LARGEST_HESSIAN and not log_joint.stochastic:
        best, newton_gradients, modes, evidence = _newton(log_joint, starts, plain)
    natural = _natural_gradient(log_joint, best)
    natural.gradients += newton_gradients
    natural.elbo = elbo_of(log_joint, natural.loc, natural.scale_tril)
    natural.plain_elbo = plain.elbo
    natural.modes, natural.mode_evidence = modes, evidence
    if natural.elbo < best.elbo:
        # Too noisy, or no better: keep what it came from, and what was learned on the way.
        natural.loc, natural.scale_tril, natural.elbo = best.loc, best.scale_tril, best.elbo
    return natural


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


def _newton(
    log_joint: LogJoint, z: Tensor, plain: Gaussian
) -> tuple[Gaussian, int, Tensor | None, Tensor | None]:
    """Newton paths from the rows of ``z``; the best Gaussian on them, cost, and maxima found."""
    count, dim = z.shape
    steps = torch.tensor(STEP_SIZES, dtype=z.dtype, device=z.device)
    best, gradients = plain, 0
    path: list[tuple[Tensor, Tensor]] = []
    converged = torch.zeros(count, dtype=torch.bool, device=z.device)
    curvature = torch.zeros(count, dtype=z.dtype, device=z.device)
    for _ in range(NEWTON_PASSES):
        try:
            value, gradient, hessian = log_joint.value_grad_hessian(z)
        except (RuntimeError, NotImplementedError):  # an operation without second derivatives
            break
        gradients += count * (dim + 1 + len(STEP_SIZES))
        scale, direction, positive, log_det = _precondition(-hessian, gradient)
        ok = torch.isfinite(value) & torch.isfinite(direction).all(-1)
        ok = ok & torch.isfinite(scale).flatten(1).all(-1)
        decrement = (direction * gradient).sum(-1)
        path.append((z[ok], scale[ok]))
        converged = ok & positive & (decrement.abs() < 1e-4)
        curvature = log_det
        candidates = (
            z[:, None] + steps[:, None] * torch.where(ok[:, None], direction, 0.0)[:, None]
        )
        reached = log_joint.in_chunks(candidates.reshape(-1, dim)).reshape(count, -1)
        reached = torch.where(torch.isfinite(reached), reached, -math.inf)
        top, index = reached.max(-1)
        better = ok & (top > value)
        chosen = candidates[torch.arange(count, device=z.device), index]
        z = torch.where(better[:, None], chosen, z)
        if bool((converged | ~better).all()):
            break
    if not path:
        return best, gradients, None, None
    loc, scale = torch.cat([p[0] for p in path]), torch.cat([p[1] for p in path])
    elbos = _elbos(log_joint, loc, scale, 32)
    gradients += 32 * len(loc)
    top_index = int(elbos.argmax())
    factor = _lower(scale[top_index])
    elbo = elbo_of(log_joint, loc[top_index], factor)
    if elbo > best.elbo:
        best = Gaussian(loc[top_index], factor, elbo)
    if not bool(converged.any()):
        return best, gradients, None, None
    modes = z[converged]
    evidence = log_joint.in_chunks(modes) + 0.5 * dim * math.log(2 * math.pi)
    return best, gradients, modes, evidence - 0.5 * curvature[converged]


def _precondition(hessian: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A covariance factor and an ascent direction from a Hessian of -log p, by rows.

    The Hessian is scaled to unit diagonal first, so that its eigenvalues tell shape from scale;
    negative ones are reflected (saddle-free Newton).
    """
    bad = ~torch.isfinite(hessian).flatten(1).all(-1)
    eye = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
    hessian = torch.where(bad[:, None, None], eye, hessian)
    d = hessian.diagonal(dim1=-2, dim2=-1).abs().clamp_min(1e-20).sqrt()
    eigenvalues, vectors = torch.linalg.eigh(hessian / (d[:, :, None] * d[:, None, :]))
    tiny = 100 * torch.finfo(hessian.dtype).eps * hessian.shape[-1]
    positive = (eigenvalues > tiny).all(-1) & ~bad
    modified = torch.where(eigenvalues > tiny, eigenvalues, eigenvalues.abs().clamp_min(1e-3))
    scale = vectors / modified.sqrt()[:, None, :] / d[:, :, None]
    direction = (scale @ (scale.mT @ gradient[..., None])).squeeze(-1)
    return scale, direction, positive, modified.log().sum(-1) + 2 * d.log().sum(-1)


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
        scale = _lower((scale @ vectors) * precision.rsqrt())
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


def _lower(factor: Tensor) -> Tensor:
    """The Cholesky factor of ``factor factor^T``, without forming the product."""
    lower = torch.linalg.qr(factor.mT)[1].mT
    sign = lower.diagonal().sign()
    return lower * torch.where(sign == 0, 1.0, sign)
