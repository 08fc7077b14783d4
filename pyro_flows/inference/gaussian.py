# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A Gaussian on the unconstrained vector: its ELBO, and natural-gradient ascent of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pyro_flows.guides import LogJoint
from pyro_flows.inference.newton import eigh, lower

NATURAL_STEPS = 200
# Steps between looks whether it has settled, the gain between two looks that is none, nats, and
# the most that is taken for noise.
BLOCK, SETTLED, NOISE = 20, 0.002, 0.02
# A Gaussian whose divergence from another is smaller, nats, will be that one.
NEAR = 0.5
# No standard deviation of a settled Gaussian grows by this factor from one look to the next.
STEADY = 1.1
# A variance of log p - log q that is none: a gap of half of it.
EXACT = 1e-8
# A standard deviation that grows by this factor in the last three quarters of NATURAL_STEPS, and
# still in the last half, is not settling. (Settled ones stay within a few per cent; where half a
# line is flat, as in a separated logistic regression, it grows four to ten times, in jerks.)
GROWTH, STILL = 3.0, 1.3
# What grows without end stops where the floating type does: there, this much is too much.
LARGEST_GROWTH = {torch.float64: 1e9, torch.float32: 1e4}


@dataclass
class Gaussian:
    """A Gaussian on the unconstrained vector, and how it was found.

    Attributes:
        loc: shape ``(D,)``.
        scale_tril: Cholesky factor of the covariance, ``(D, D)``.
        elbo: its ELBO, on a thousand draws.
        gradients: evaluations of the log joint's gradient spent (a Hessian counts as D).
        growing: coordinates whose spread kept growing: a sign of an improper posterior.
        history: ELBO after each natural-gradient step.
        exact: whether log p - log q is constant but for rounding.
        settled: whether it stopped before its steps were used up.
        given_up: whether it was left half-way, because it would be of no use.

    Example:
        >>> Gaussian(torch.zeros(2), torch.eye(2)).scale_tril.shape
        torch.Size([2, 2])
    """

    loc: Tensor
    scale_tril: Tensor
    elbo: float = -math.inf
    gradients: int = 0
    growing: Tensor | None = None
    history: list[float] = field(default_factory=list)
    exact: bool = False
    settled: bool = True
    given_up: bool = False

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density at points ``(P, D)``."""
        white = torch.linalg.solve_triangular(self.scale_tril, (z - self.loc).mT, upper=False)
        log_det = self.scale_tril.diagonal().log().sum()
        return -0.5 * (white.square().sum(0) + z.shape[-1] * math.log(2 * math.pi)) - log_det


def elbo_of(log_joint: LogJoint, loc: Tensor, scale: Tensor, draws: int = 1024) -> float:
    """ELBO of a Gaussian on fixed draws, the same for every call; -inf if not finite."""
    return float(elbos_of(log_joint, loc[None], scale[None], draws)[0])


def elbos_of(log_joint: LogJoint, loc: Tensor, scale: Tensor, draws: int) -> Tensor:
    """ELBOs of many Gaussians, ``(K, D)`` and ``(K, D, D)`` to ``(K,)``."""
    dim = loc.shape[-1]
    generator = torch.Generator(device="cpu").manual_seed(1)
    half = torch.randn(draws // 2, dim, generator=generator, dtype=torch.float64, device="cpu").to(
        loc
    )
    noise = torch.cat([half, -half])
    z = loc[:, None] + noise @ scale.mT
    rows = z.reshape(-1, dim)
    log_p = log_joint.in_chunks(rows)
    log_p = log_joint.least(rows, log_p).reshape(z.shape[:-1])
    # log q of the same draws, not its mean: where the posterior is Gaussian the noise cancels.
    log_q = -0.5 * noise.square().sum(-1) - 0.5 * dim * math.log(2 * math.pi)
    ratio, finite = log_p - log_q, torch.isfinite(log_p)
    share = finite.to(ratio.dtype).mean(-1)
    inside = torch.where(finite, ratio, 0.0).mean(-1) / share
    # Of the Gaussian restricted to the support, as everywhere.
    result = inside + share.log() + torch.linalg.slogdet(scale)[1]
    # A Gaussian too narrow for its place is one point or a few, whose density is rounding's.
    distinct = (scale.norm(dim=-1) > 4 * torch.finfo(z.dtype).eps * loc.abs()).all(-1)
    return torch.where(torch.isfinite(result) & distinct, result, -math.inf)


@torch.no_grad()
def natural_gradient(
    log_joint: LogJoint,
    start: Gaussian,
    *,
    floor: float = -math.inf,
    known: Sequence[Gaussian] = (),
    scaled: bool = False,
    brief: bool = False,
) -> Gaussian:
    """Ascend the ELBO of a Gaussian in its own whitened coordinates, until it settles.

    With the sticking-the-landing residual (grad log p + whitened noise), whose noise vanishes
    where the posterior is Gaussian, and the positive-definite retraction of Lin et al. (2020,
    arXiv:2002.10060).

    Args:
        log_joint: the model's.
        start: where from.
        floor: an ELBO below which it is of no use: it is given up when, at the pace of its last
            steps, it wouldn't get there.
        known: it is given up, too, when it is about to become one of these.
        scaled: whether the start's scale comes from second derivatives, so that a much larger one
            is a sign of a posterior that isn't proper.
        brief: take half the usual steps at most.
    """
    ascent = _Ascent(log_joint, start, brief=brief)
    while ascent.step < ascent.steps and not ascent.exact:
        ascent.move()
        if ascent.exact or ascent.step % BLOCK or ascent.step < 2 * BLOCK:
            continue
        if ascent.hopeless(floor, known):
            ascent.here.given_up = True
            break
        if ascent.has_settled():
            break
        ascent.extend()
    return ascent.result(start if scaled else None)


class _Ascent:
    """A Gaussian on its way up, and what was seen on the way."""

    def __init__(self, log_joint: LogJoint, start: Gaussian, *, brief: bool) -> None:
        self.log_joint, self.brief = log_joint, brief
        self.here = Gaussian(start.loc.clone(), start.scale_tril.clone())
        self.particles = max(64, 2 * len(start.loc)) if log_joint.mode != "sequential" else 16
        self.usual = self.steps = NATURAL_STEPS // 2 if brief else NATURAL_STEPS
        self.step = 0
        self.fast, self.exact = True, False
        self.block_spread = start.scale_tril.norm(dim=-1)
        self.spreads: list[Tensor] = []

    def move(self) -> None:
        """One step; none where the Gaussian is exact."""
        here, dim = self.here, len(self.here.loc)
        loc, scale = here.loc, here.scale_tril
        self.fast = self.fast and self.step < self.steps - 0.4 * self.usual
        rate = 0.3 if self.fast else 0.1
        half = torch.randn(self.particles // 2, dim, dtype=loc.dtype, device=loc.device)
        noise = torch.cat([half, -half])
        value, gradient = self.log_joint.value_and_grad(loc + noise @ scale.T)
        here.gradients += self.particles
        residual = gradient @ scale + noise
        finite = torch.isfinite(value) & torch.isfinite(residual).all(-1)
        residual = torch.where(finite[:, None], residual, 0.0)
        count = finite.sum().clamp_min(1)
        # log q of each draw, not its mean: where the posterior is Gaussian the noise cancels.
        log_q = -0.5 * noise.square().sum(-1) - scale.diagonal().log().sum()
        ratio = value - log_q + 0.5 * dim * math.log(2 * math.pi)
        elbo = float(torch.where(finite, ratio, 0.0).sum() / count)
        here.history.append(elbo if bool(finite.any()) else -math.inf)
        self.exact = bool(finite.all()) and float(ratio.var()) < EXACT
        if self.exact:
            return
        drift = rate * residual.sum(0) / count
        moment = residual.T @ noise / count
        # Trust region: a step no longer than a standard deviation per coordinate, a precision at
        # most halved, so that a start far away is approached and not overshot.
        drift = drift * (math.sqrt(dim) / drift.norm()).clamp(max=1.0)
        eigenvalues, vectors = eigh(-0.5 * rate * (moment + moment.T))
        eigenvalues = eigenvalues.clamp(-0.5, 2.0)
        precision = 1 + eigenvalues + 0.5 * eigenvalues**2
        here.loc = loc + scale @ drift
        here.scale_tril = lower((scale @ vectors) * precision.rsqrt())
        self.step += 1
        if self.step % (NATURAL_STEPS // 4) == 0:
            self.spreads.append(here.scale_tril.norm(dim=-1))

    def hopeless(self, floor: float, known: Sequence[Gaussian]) -> bool:
        """Whether it won't reach ``floor`` at its pace, or is about to become one of ``known``."""
        gain, error, last = _pace(self.here.history)
        left = (self.usual - self.step) / BLOCK
        short = self.step < self.usual and last + left * (max(gain, 0.0) + 2 * error) < floor
        return short or any(divergence(self.here, one) < NEAR for one in known)

    def has_settled(self) -> bool:
        """Whether the last block gained nothing, and its scales stay; slows down first."""
        spread = self.here.scale_tril.norm(dim=-1)
        steady = bool((spread < STEADY * self.block_spread).all())
        self.block_spread = spread
        idle = steady and _settled(self.here.history, fast=self.fast)
        if self.step >= self.usual or not idle:
            return False
        settled, self.fast = not self.fast, False
        return settled

    def extend(self) -> None:
        """At the end look on where it still grows, or gains: slow, or an improper posterior?"""
        if self.brief or self.step != self.steps or self.steps >= 3 * self.usual:
            return
        if bool(_grows(self.spreads).any()) or not _settled(self.here.history, fast=True):
            self.steps += self.usual

    def result(self, scaled: Gaussian | None) -> Gaussian:
        """Where it is, with the coordinates that kept growing, from a scaled start above all."""
        here = self.here
        here.exact, here.settled = self.exact, self.step < self.usual
        growing = torch.zeros_like(here.loc, dtype=torch.bool)
        if scaled is not None:
            most = LARGEST_GROWTH.get(here.loc.dtype, 1e4)
            before = scaled.scale_tril.norm(dim=-1)
            growing = here.scale_tril.norm(dim=-1) > most * before
        if self.steps > self.usual and self.step >= self.usual:
            growing = growing | _grows(self.spreads)
        here.growing = growing if bool(growing.any()) and not here.given_up else None
        return here


def divergence(one: Gaussian, other: Gaussian) -> float:
    """The Kullback-Leibler divergence of one Gaussian from another, nats."""
    scale = torch.linalg.solve_triangular(other.scale_tril, one.scale_tril, upper=False)
    step = torch.linalg.solve_triangular(
        other.scale_tril, (one.loc - other.loc)[:, None], upper=False
    )
    log_det = scale.diagonal().log().sum()
    return float(0.5 * (scale.square().sum() + step.square().sum() - len(step)) - log_det)


def _settled(history: list[float], *, fast: bool) -> bool:
    """Whether the last block gained nothing to speak of, or nothing that is told from noise."""
    gain, error, _ = _pace(history)
    return gain < max(SETTLED, error if fast else min(error, NOISE))


def _pace(history: list[float]) -> tuple[float, float, float]:
    """What the last block gained on the one before, the error of it, and where it is."""
    blocks = torch.tensor(history[-2 * BLOCK :], dtype=torch.float64, device="cpu").chunk(2)
    before, last = (block[torch.isfinite(block)] for block in blocks)
    if len(last) < 2:
        return 0.0, 0.0, -math.inf
    if len(before) < 2:
        return math.inf, 0.0, float(last.mean())
    error = math.sqrt(float(before.var() / len(before) + last.var() / len(last)))
    return float(last.mean() - before.mean()), error, float(last.mean())


def _grows(spreads: list[Tensor]) -> Tensor:
    """Which coordinates' standard deviations grew by a large factor, and still do."""
    first, middle, _, last = spreads[-4:]
    return (last > GROWTH * first) & (last > STILL * middle)
