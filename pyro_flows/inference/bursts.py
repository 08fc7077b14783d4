# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Short bursts of Hamiltonian Monte Carlo from a guide's draws: do their marginals stay?

Draws of the posterior stay draws of it under any of its transitions, so nothing drifts but by
chance. Draws that aren't move towards it: a scale that was too small grows, a tail that was cut
off fills. Importance weights see what draws have visited; a burst also sees what lies next to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_flows.guides import LogJoint

CHAINS, TRAJECTORIES, LEAPFROGS = 256, 4, 5
# Steps are halved until so many proposals are accepted, so many times at most.
ACCEPTED, HALVINGS = 0.6, 8


@dataclass(frozen=True)
class Drift:
    """How far the marginals of some draws moved.

    Attributes:
        mean: of each coordinate's mean, in standard deviations of the draws, ``(D,)``.
        mean_se: its standard error.
        log_sd: of each coordinate's log standard deviation, ``(D,)``.
        log_sd_se: its standard error.
        ends: where the draws arrived, ``(C, D)``, in the log joint's coordinates.
        accepted: share of proposals that were accepted.
        gradients: evaluations of the log joint's gradient.
    """

    mean: Tensor
    mean_se: Tensor
    log_sd: Tensor
    log_sd_se: Tensor
    ends: Tensor
    accepted: float
    gradients: int

    def beyond(self, most: float, errors: float) -> tuple[float, int]:
        """The largest drift that is more than ``most`` by ``errors`` standard errors, and where.

        Returns:
            The drift and the coordinate; 0 and -1 if there is none.
        """
        size = torch.maximum(self.mean.abs(), self.log_sd.abs())
        sure = (self.mean.abs() - errors * self.mean_se > most) | (
            self.log_sd.abs() - errors * self.log_sd_se > most
        )
        if not bool(sure.any()):
            return 0.0, -1
        worst = int(torch.where(sure, size, -math.inf).argmax())
        return float(size[worst]), worst


@torch.no_grad()
def burst(log_joint: LogJoint, z: Tensor) -> Drift:
    """Move draws by a few trajectories, and compare where they were with where they are.

    Args:
        log_joint: the model's, deterministic.
        z: independent draws ``(C, D)`` in its coordinates, of finite density.

    Returns:
        The drift, in the model's own coordinates.

    Cost: ``C * 21`` gradients as a rule, and ``C * 5`` for each time that steps are halved.
    """
    scale = _scale(z)
    value, gradient = log_joint.value_and_grad(z)
    gradients, here = len(z), z
    # Steps of several sizes, so that narrow places move as well as wide ones.
    spread = torch.logspace(-0.5, 0.25, len(z), dtype=z.dtype, device="cpu").to(z)[:, None]
    spread = spread[torch.randperm(len(z), device="cpu").to(z.device)]
    size, accepted = 0.9 * z.shape[-1] ** -0.25, 0.0
    for _ in range(HALVINGS):
        proposal = _trajectory(log_joint, here, value, gradient, scale, size * spread)
        gradients += LEAPFROGS * len(z)
        accepted = float(proposal[-1].double().mean())
        if accepted >= ACCEPTED:
            break
        size *= 0.5
    here, value, gradient = _moved(here, value, gradient, proposal)
    for _ in range(TRAJECTORIES - 1):
        proposal = _trajectory(log_joint, here, value, gradient, scale, size * spread)
        gradients += LEAPFROGS * len(z)
        here, value, gradient = _moved(here, value, gradient, proposal)
    through = log_joint.through
    before, after = (z, here) if through is None else (through(z), through(here))
    mean, sd = before.mean(0), before.std(0)
    first, last = (before - mean) / sd, (after - mean) / sd
    shift, growth = last - first, 0.5 * (last.square() - first.square())
    errors = [part.std(0) / math.sqrt(len(z)) for part in (shift, growth)]
    return Drift(shift.mean(0), errors[0], growth.mean(0), errors[1], here, accepted, gradients)


def _scale(z: Tensor) -> Tensor:
    """A Cholesky factor of the draws' covariance; diagonal where there are too few of them."""
    sd = z.std(0).clamp_min(torch.finfo(z.dtype).tiny)
    if len(z) < 4 * z.shape[-1]:
        return sd.diag()
    correlation = torch.corrcoef(z.T).reshape(len(sd), len(sd)).nan_to_num(0.0)
    eye = torch.eye(len(sd), device="cpu").to(z)
    factor, failed = torch.linalg.cholesky_ex(0.999 * correlation + 0.001 * eye)
    return sd.diag() if bool(failed) else sd[:, None] * factor


def _trajectory(
    log_joint: LogJoint,
    z: Tensor,
    value: Tensor,
    gradient: Tensor,
    scale: Tensor,
    size: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Leapfrog steps of every chain: where to, value, gradient, and whether it is accepted."""
    momentum = torch.randn(z.shape, dtype=z.dtype, device="cpu").to(z)
    energy = value - 0.5 * momentum.square().sum(-1)
    for _ in range(LEAPFROGS):
        momentum = momentum + 0.5 * size * (gradient @ scale)
        z = z + size * (momentum @ scale.T)
        value, gradient = log_joint.value_and_grad(z)
        momentum = momentum + 0.5 * size * (gradient @ scale)
    gain = value - 0.5 * momentum.square().sum(-1) - energy
    accepted = torch.rand(len(z), dtype=z.dtype, device="cpu").to(z).log() < gain  # a NaN isn't
    accepted = accepted & torch.isfinite(value) & torch.isfinite(gradient).all(-1)
    return z, value, gradient, accepted


def _moved(
    z: Tensor,
    value: Tensor,
    gradient: Tensor,
    proposal: tuple[Tensor, Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    to, to_value, to_gradient, accepted = proposal
    return (
        torch.where(accepted[:, None], to, z),
        torch.where(accepted, to_value, value),
        torch.where(accepted[:, None], to_gradient, gradient),
    )
