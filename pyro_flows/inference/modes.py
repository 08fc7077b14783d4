# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Look for further modes: places of high density that no draw from elsewhere visits.

Nothing drawn from a guide that sits on one mode can tell that there is another: only starts from
elsewhere can. Points are scattered around the modes known so far, from 3 to 100 of their standard
deviations away; the highest of each shell, and as many at random, climb; until a round of them
finds nothing new.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_flows.guides import LogJoint
from pyro_flows.inference.gaussian import Gaussian
from pyro_flows.inference.newton import Climb, climb, lower

# Rounds at most; and those without news that end it.
ROUNDS, IDLE = 12, 2
NEAREST, FARTHEST = 3.0, 100.0
# Modes closer than this, in standard deviations of either, are one.
SAME = 0.5
# What weighs less than this beside the heaviest is left out of a guide.
LIGHT = math.log(1e-3)
MOST_MODES = 64
# A search that is over may have met a few modes only once; and modes that it didn't meet weigh so
# little beside those it did.
FEW_SINGLES, LEAST_UNSEEN = 4, 0.01
# Draws within so many standard deviations, times the root of the dimension, are around a place.
AROUND = 1.5
# A draw at which q is too low by this, nats, is one that q doesn't reach.
MISSED = 3.0
# Points that a round looks at, to choose where to climb from; four times as many in so few
# dimensions.
SCATTER, FEW_DIMENSIONS = 16_384, 5


@dataclass(frozen=True)
class Modes:
    """Distinct places of high density, heaviest first.

    Attributes:
        locs: centres of Gaussians there, ``(M, D)``: maxima, as a rule.
        scales: factors of their covariances, ``(M, D, D)``.
        evidence: log evidence of each, ``(M,)``, by Laplace's approximation or as a bound.
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
        return self[self.evidence >= self.evidence[:1] + LIGHT] if len(self) else self

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density at points ``(P, D)`` of Gaussians of so much mass each, summed."""
        total = torch.full_like(z[:, 0], -math.inf)
        for loc, scale, evidence in zip(self.locs, self.scales, self.evidence, strict=True):
            gaussian = Gaussian(loc, lower(scale)).log_prob(z)
            total = torch.logaddexp(total, evidence + gaussian)
        return total


@dataclass
class Allowance:
    """Gradients that a search may still take, and whether it ended for want of them.

    Attributes:
        left: so many may still be taken; what has begun is ended all the same.
        cut: something would have begun that could no longer be paid for.
    """

    left: float = math.inf
    cut: bool = False

    def used_up(self) -> bool:
        """Whether nothing more may begin; to be asked only where something would."""
        self.cut = self.cut or self.left <= 0
        return self.left <= 0


@dataclass(frozen=True)
class Exploration:
    """What a search for modes came to.

    Attributes:
        modes: all of them, heaviest first.
        paths: that it took.
        gradients: what they cost.
    """

    modes: Modes
    paths: list[Climb]
    gradients: int

    def unseen(self, log_joint: LogJoint, known: Gaussian) -> str | None:
        """Whether modes that no path met are likely to weigh something, in words.

        Their number is at least f1^2 / (2 f2), where f1 modes were met once and f2 twice (Chao
        1984, "Nonparametric estimation of the number of classes in a population"); they weigh what
        those met once do. Bumps that one Gaussian reaches are none of them.

        Args:
            log_joint: the model's.
            known: the best Gaussian, with its ELBO.
        """
        if len(self.modes) <= FEW_SINGLES or not self.paths:
            return None
        height = log_joint.in_chunks(self.modes.locs) - known.log_prob(self.modes.locs)
        modes = self.modes[height > known.elbo + MISSED]
        if len(modes) <= FEW_SINGLES:
            return None
        ends = torch.cat([path.modes for path in self.paths])
        white = torch.linalg.solve(modes.scales, (ends - modes.locs[:, None]).mT)
        count = (white.norm(dim=-2) < SAME * math.sqrt(ends.shape[-1])).sum(-1)
        once, twice = int((count == 1).sum()), int((count == 2).sum())
        share = modes.evidence.softmax(0)
        weight = float(share[count == 1].sum()) * once / (2 * max(twice, 1))
        if once > FEW_SINGLES and weight > LEAST_UNSEEN:
            return f"Of {len(modes)} modes that the search met, {once} were met only once"
        beyond = modes.weighty[MOST_MODES:]
        if len(beyond) and float(share[MOST_MODES:].sum()) > LEAST_UNSEEN:
            return f"Of {len(modes.weighty)} modes a guide can have {MOST_MODES}"
        return None


@torch.no_grad()
def explore(log_joint: LogJoint, known: Modes, allowance: Allowance | None = None) -> Exploration:
    """Look for modes from starts far and wide.

    Args:
        log_joint: the model's.
        known: places known already, at least one.
        allowance: of gradients; without one rounds end by themselves.

    Cost: a round of starts takes some ten Hessians each.
    """
    dim, gradients, modes, every = known.locs.shape[-1], 0, known, []
    count = 64 if dim <= 4 else 32 if dim <= 10 else 16 if dim <= 50 else 8
    idle, allowance = 0, allowance or Allowance()
    for _ in range(ROUNDS):
        if allowance.used_up():
            break
        near = modes.weighty
        starts = _scatter(log_joint, near, count)
        if not len(starts):
            break
        paths = climb(log_joint, starts)
        gradients += paths.gradients
        allowance.left -= paths.gradients
        every.append(paths)
        before = len(modes.weighty)
        modes = merge([modes, maxima(paths)])
        idle = idle + 1 if len(modes.weighty) <= before else 0
        if idle == IDLE or len(modes.weighty) > MOST_MODES:
            break
    return Exploration(modes, every, gradients)


def maxima(paths: Climb) -> Modes:
    """The maxima that paths ended at, not merged."""
    return Modes(paths.modes, paths.mode_scales, paths.evidence)


def _scatter(log_joint: LogJoint, near: Modes, count: int) -> Tensor:
    """At most ``count`` points around some modes, of shells of growing width.

    Half of them are the highest of each shell, a quarter those most surprising beside Gaussians at
    the modes, which finds narrow modes in a wide one's tail, and a quarter any.
    """
    locs, dim = near.locs, near.locs.shape[-1]
    total = SCATTER if dim > FEW_DIMENSIONS else 4 * SCATTER  # where points can cover the ground
    total = total if log_joint.mode != "sequential" else count
    pick = torch.randint(len(locs), (total,), device="cpu").to(locs.device)
    shells = torch.logspace(
        math.log10(NEAREST), math.log10(FARTHEST), count // 2, device="cpu"
    ).to(locs)
    total -= total % len(shells)
    factor = shells.repeat(total // len(shells))
    noise = torch.randn(total, dim, 1, dtype=locs.dtype, device="cpu").to(locs)
    pick = pick[:total]
    points = locs[pick] + factor[:, None] * (near.scales[pick] @ noise).squeeze(-1)
    value = log_joint.in_chunks(points)
    value = torch.where(torch.isfinite(value), value, -math.inf)
    surprise = value - near.log_prob(points)
    ring = torch.arange(len(shells), device=locs.device)
    highest = value.reshape(-1, len(shells)).argmax(0) * len(shells) + ring
    strangest = surprise.reshape(-1, len(shells)).argmax(0) * len(shells) + ring
    some = torch.arange(count // 4, device=locs.device) * 2  # of all shells alike
    index = torch.cat([highest, strangest[::2], some])
    return points[index[torch.isfinite(value[index])]]


def merge(parts: Sequence[Modes]) -> Modes:
    """All places, each once, heaviest first."""
    joined = [torch.cat(part) for part in zip(*map(_fields, parts), strict=True)]
    every = Modes(*joined)
    every = every[every.evidence.argsort(descending=True)]
    if not len(every):
        return every
    # Distances of all from each, in that one's standard deviations.
    white = torch.linalg.solve(every.scales, (every.locs - every.locs[:, None]).mT)
    distance = white.norm(dim=-2)
    near = torch.minimum(distance, distance.mT) < SAME * math.sqrt(every.locs.shape[-1])
    taken, kept = torch.zeros_like(near[0]), []
    for index in range(len(every)):
        if not bool(taken[index]):
            kept.append(index)
            taken = taken | near[index]
    return every[torch.tensor(kept, device=every.locs.device)]


def _fields(modes: Modes) -> tuple[Tensor, ...]:
    return modes.locs, modes.scales, modes.evidence


@torch.no_grad()
def missed_mass(
    log_joint: LogJoint,
    log_q: Callable[[Tensor], Tensor],
    places: Modes,
    log_evidence: float,
    z: Tensor,
    draws: int = 1024,
) -> float:
    """The share of the posterior's mass near some place that a guide doesn't reach.

    By importance sampling from the Gaussian at each place: the mass at draws where the guide's
    density is too low by a factor of 20. The largest over the places, so a lower bound. A place
    around which the guide draws is none that it doesn't reach: its tails may be too thin there,
    of which the weights tell.

    Args:
        log_joint: the model's.
        log_q: log density of the guide, ``(P, D) -> (P,)``.
        places: where to look.
        log_evidence: of the posterior, as far as the guide knows it.
        z: draws of the guide ``(P, D)``.
        draws: at each place.
    """
    most = 0.0
    for loc, scale in zip(places.locs, places.scales, strict=True):
        noise = torch.randn(draws, len(loc), dtype=loc.dtype, device="cpu").to(loc)
        x = loc + noise @ scale.mT
        log_p = log_joint.in_chunks(x)
        log_g = -0.5 * (noise.square().sum(-1) + len(loc) * math.log(2 * math.pi))
        log_g = log_g - torch.linalg.slogdet(scale)[1]
        # Where log q is NaN the guide doesn't reach, either.
        out_of_reach = ~(log_p - log_q(x) <= log_evidence + MISSED)
        sound = torch.isfinite(log_p) & log_joint.resolved(x, log_p)
        mass = torch.where(out_of_reach & sound, log_p - log_g, -math.inf)
        share = torch.logsumexp(mass, 0) - math.log(draws) - log_evidence
        found = float(share.exp().nan_to_num(0.0))
        distance = torch.linalg.solve(scale, (z - loc).mT).norm(dim=0)
        near = float((distance < AROUND * math.sqrt(len(loc))).double().mean())
        if math.exp(MISSED) * near < found:
            most = max(most, found)
    # What q doesn't reach isn't in the evidence, either.
    return most / (1 + most)
