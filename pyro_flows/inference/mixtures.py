# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Gaussians with weights, where a posterior has modes that lie apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_flows.guides import LogJoint
from pyro_flows.inference.gaussian import Gaussian
from pyro_flows.inference.modes import Modes
from pyro_flows.inference.newton import lower

# A mixture must be better than one Gaussian by so much, nats, to be worth its cost.
WORTH = 0.01
# So many of the lightest are tried without.
DROPPED = 4
# Gaussians of less weight are left out.
LIGHTEST = 1e-3


@dataclass(frozen=True)
class Mixture:
    """Gaussians with weights: ``(K, D)``, ``(K, D, D)`` lower-triangular, ``(K,)``."""

    locs: Tensor
    scale_trils: Tensor
    weights: Tensor

    def sample(self, count: int) -> tuple[Tensor, Tensor]:
        """So many fixed draws of each Gaussian, ``(K n, D)``, and what each is worth."""
        dim = self.locs.shape[-1]
        generator = torch.Generator(device="cpu").manual_seed(2)
        half = torch.randn(count // 2, dim, generator=generator, dtype=torch.float64, device="cpu")
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
def find_mixture(
    log_joint: LogJoint, single: Gaussian, modes: Modes, refined: Sequence[Gaussian]
) -> Mixture | None:
    """The best of mixtures of the Gaussians at modes; None if one Gaussian for all is as good.

    Args:
        log_joint: the model's.
        single: the best single Gaussian.
        modes: those that weigh something, with Laplace's Gaussians.
        refined: Gaussians fitted near the heaviest of them, heaviest first.
    """
    candidates = []
    if len(modes) > 1:
        trils = torch.stack([lower(scale) for scale in modes.scales])
        candidates.append(weigh(log_joint, modes.locs, trils))
    # With and without the last few: a Gaussian too narrow for its place is given too much weight.
    for count in range(len(refined), max(1, len(refined) - DROPPED - 1), -1):
        locs = torch.stack([gaussian.loc for gaussian in refined[:count]])
        trils = torch.stack([gaussian.scale_tril for gaussian in refined[:count]])
        candidates.append(weigh(log_joint, locs, trils))
    best, top = None, single.elbo + WORTH
    for mixture in candidates:
        elbo = elbo_of_mixture(log_joint, mixture)
        if elbo > top:
            best, top = mixture, elbo
    return best


@torch.no_grad()
def elbo_of_mixture(log_joint: LogJoint, mixture: Mixture, draws: int = 256) -> float:
    """ELBO of a mixture on fixed draws of each Gaussian; -inf if not finite."""
    z, weight = mixture.sample(draws)
    ratio = log_joint.least(z, log_joint.in_chunks(z)) - mixture.log_prob(z)
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
    mixture = Mixture(locs, scale_trils, locs.new_full((count,), 1.0 / count))
    for _ in range(3):
        z, _ = mixture.sample(256)
        ratio = (log_joint.in_chunks(z) - mixture.log_prob(z)).reshape(count, -1)
        ratio = torch.where(torch.isfinite(ratio), ratio, -math.inf)
        # The mean of the weights, but for the few that are largest: a Gaussian much narrower
        # than its surroundings would else be worth whatever one draw says.
        ratio = torch.minimum(ratio, ratio.quantile(0.95, dim=-1, keepdim=True))
        log_mass = mixture.weights.log() + ratio.logsumexp(-1)
        weights = torch.softmax(log_mass, 0)
        mixture = Mixture(locs, scale_trils, weights.clamp_min(1e-6))
    heavy = mixture.weights > LIGHTEST
    weights = mixture.weights[heavy]
    return Mixture(locs[heavy], scale_trils[heavy], weights / weights.sum())
