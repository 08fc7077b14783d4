# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Look for further modes, and for the mixture of Gaussians that holds those that weigh.

Nothing drawn from a guide that sits on one mode can tell that there is another: only starts from
elsewhere can. They are thrown around the modes known so far, from 3 to 100 of their standard
deviations away, and climb; until a round of them finds nothing new.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_flows.guides import LogJoint
from pyro_flows.inference.newton import Climb, climb, lower

ROUNDS = 12
NEAREST, FARTHEST = 3.0, 100.0
# Modes closer than this, in standard deviations of either, are one.
SAME = 0.5
# What weighs less than this beside the heaviest is left out of a guide.
LIGHT = math.log(1e-3)
MOST_MODES = 64
# A mixture must be better than one Gaussian by so much, nats, to be worth its cost.
WORTH = 0.05


@dataclass(frozen=True)
class Modes:
    """Distinct maxima of a log joint, heaviest first.

    Attributes:
        locs: ``(M, D)``.
        scales: factors of Laplace's covariance, ``(M, D, D)``.
        evidence: Laplace's log evidence of each, ``(M,)``.
    """

    locs: Tensor
    scales: Tensor
    evidence: Tensor

    def __len__(self) -> int:
        return len(self.locs)

    def __getitem__(self, index: Tensor | slice) -> Modes:
        return Modes(self.locs[index], self.scales[index], self.evidence[index])

    @property
    def weighty(self) -> Modes:
        """Those that weigh something beside the heaviest."""
        return self[self.evidence > self.evidence[:1] + LIGHT] if len(self) else self


@dataclass(frozen=True)
class Mixture:
    """Gaussians with weights: ``(K, D)``, ``(K, D, D)`` lower-triangular, ``(K,)``."""

    locs: Tensor
    scale_trils: Tensor
    weights: Tensor

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """So many fixed draws of each Gaussian, ``(K n, D)``, and what each is worth."""
        dim = self.locs.shape[-1]
        generator = torch.Generator().manual_seed(2)
        half = torch.randn(count // 2, dim, generator=generator, dtype=torch.float64)
        noise = torch.cat([half, -half]).to(self.locs)
        draws = self.locs[:, None] + noise @ self.scale_trils.mT
        return draws.flatten(0, 1), (self.weights / len(noise)).repeat_interleave(len(noise))

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of points ``(P, D)``."""
        difference = (z - self.locs[:, None]).mT
        white = torch.linalg.solve_triangular(self.scale_trils, difference, upper=False)
        log_det = self.scale_trils.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        each = -0.5 * white.square().sum(-2) - log_det[:, None]
        constant = 0.5 * z.shape[-1] * math.log(2 * math.pi)
        return (each + self.weights.log()[:, None]).logsumexp(0) - constant


@torch.no_grad()
def explore(log_joint: LogJoint, loc: Tensor, scale: Tensor, known: Modes) -> tuple[Modes, int]:
    """Look for modes from starts far and wide.

    Args:
        log_joint: the model's.
        loc: where to start from if no mode is known, ``(D,)``.
        scale: the factor of a covariance there.
        known: modes known already.

    Returns:
        All modes, heaviest first, and the gradients it took.

    Cost: a round of starts takes some ten Hessians each.
    """
    dim, gradients, modes = len(loc), 0, known
    count = 64 if dim <= 4 else 32 if dim <= 10 else 16 if dim <= 50 else 8
    for _ in range(ROUNDS):
        near = modes.weighty
        locs, scales = (near.locs, near.scales) if len(near) else (loc[None], scale[None])
        pick = torch.randint(len(locs), (count,)).to(loc.device)
        factor = torch.logspace(math.log10(NEAREST), math.log10(FARTHEST), count).to(loc)
        noise = torch.randn(count, dim, 1, dtype=loc.dtype).to(loc)
        starts = locs[pick] + factor[:, None] * (scales[pick] @ noise).squeeze(-1)
        starts = starts[torch.isfinite(log_joint.in_chunks(starts))]
        if not len(starts):
            break
        paths = climb(log_joint, starts)
        gradients += paths.gradients
        before = len(modes.weighty)
        modes = merge(modes, paths)
        if len(modes.weighty) <= before or len(modes.weighty) > MOST_MODES:
            break
    return modes, gradients


def merge(known: Modes | None, paths: Climb) -> Modes:
    """The modes known and those that paths ended at, each once, heaviest first."""
    locs, scales, evidence = paths.modes, paths.mode_scales, paths.evidence
    if known is not None:
        locs = torch.cat([known.locs, locs])
        scales = torch.cat([known.scales, scales])
        evidence = torch.cat([known.evidence, evidence])
    order = evidence.argsort(descending=True)
    locs, scales, evidence = locs[order], scales[order], evidence[order]
    # Distances of all from each, in that one's standard deviations.
    white = torch.linalg.solve(scales, (locs - locs[:, None]).mT) if len(locs) else locs
    distance = white.norm(dim=-2) if len(locs) else locs.new_zeros(0, 0)
    near = torch.minimum(distance, distance.mT) < SAME * math.sqrt(locs.shape[-1])
    kept: list[int] = []
    taken = torch.zeros(len(locs), dtype=torch.bool, device=locs.device)
    for index in range(len(locs)):
        if not bool(taken[index]):
            kept.append(index)
            taken |= near[index]
    index = torch.tensor(kept, dtype=torch.long, device=locs.device)
    return Modes(locs[index], scales[index], evidence[index])


@torch.no_grad()
def elbo_of_mixture(log_joint: LogJoint, mixture: Mixture, draws: int = 256) -> float:
    """ELBO of a mixture on fixed draws of each Gaussian; -inf if not finite."""
    z, weight = mixture.sample(draws)
    ratio = log_joint.in_chunks(z) - mixture.log_prob(z)
    inside = torch.isfinite(ratio)
    share = weight[inside].sum()
    if not bool(share > 0):
        return -math.inf
    return float((weight * torch.where(inside, ratio, 0.0)).sum() / share + share.log())


@torch.no_grad()
def weigh(log_joint: LogJoint, locs: Tensor, scale_trils: Tensor) -> Mixture:
    """Gaussians with the weights that each one's own evidence gives it.

    The evidence of a Gaussian's surroundings is its importance-sampling estimate, with what lies
    nearer to another Gaussian left to that one.
    """
    count = len(locs)
    equal = Mixture(locs, scale_trils, locs.new_full((count,), 1.0 / count))
    for _ in range(3):
        z, _ = equal.sample(256)
        ratio = (log_joint.in_chunks(z) - equal.log_prob(z)).reshape(count, -1)
        ratio = torch.where(torch.isfinite(ratio), ratio, -math.inf)
        log_mass = equal.weights.log() + ratio.logsumexp(-1)
        weights = torch.softmax(log_mass, 0).clamp_min(1e-6)
        equal = Mixture(locs, scale_trils, weights / weights.sum())
    return equal


def lower_factors(modes: Modes) -> Tensor:
    """Cholesky factors of the modes' covariances, ``(M, D, D)``."""
    return torch.stack([lower(scale) for scale in modes.scales])
