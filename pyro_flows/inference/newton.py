# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Newton's method from many points at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_flows.guides import LogJoint

STEP_SIZES = (1.0, 0.5, 0.25, 0.1, 0.03, 0.01, 1e-3, 1e-5)
NEWTON_PASSES = 40
LARGEST = 1e12


@dataclass(frozen=True)
class Climb:
    """Paths from several points uphill.

    Attributes:
        locs: every point passed, ``(N, D)``.
        scales: a covariance's factor from the Hessian at each of them, ``(N, D, D)``.
        modes: ends of paths at a maximum, ``(M, D)``.
        mode_scales: factors there, ``(M, D, D)``.
        evidence: Laplace's log evidence there, ``(M,)``.
        stuck: ends of paths that could climb no higher and are at no maximum, as on a ridge or at
            an edge of the support, ``(E, D)``.
        stuck_scales: factors there, ``(E, D, D)``.
        gradients: evaluations of the log joint's gradient (a Hessian counts as D).
    """

    locs: Tensor
    scales: Tensor
    modes: Tensor
    mode_scales: Tensor
    evidence: Tensor
    stuck: Tensor
    stuck_scales: Tensor
    gradients: int


@torch.no_grad()
def climb(log_joint: LogJoint, z: Tensor) -> Climb:
    """Climb from the rows of ``z`` by saddle-free Newton steps with a line search.

    Args:
        log_joint: the model's.
        z: points ``(P, D)``.

    Returns:
        The paths; empty where the log joint has no second derivatives.
    """
    count, dim = z.shape
    steps = torch.tensor(STEP_SIZES, dtype=z.dtype, device=z.device)
    gradients = 0
    locs, scales = [z[:0]], [z.new_zeros(0, dim, dim)]
    done = torch.zeros(count, dtype=torch.bool, device=z.device)
    top_scale = z.new_zeros(count, dim, dim)
    curvature = z.new_zeros(count)
    active = torch.arange(count, device=z.device)  # the paths that still move
    z = z.clone()
    for _ in range(NEWTON_PASSES):
        here = z[active]
        try:
            value, gradient, hessian = log_joint.value_grad_hessian(here)
        except (RuntimeError, NotImplementedError):  # an operation without second derivatives
            break
        gradients += len(here) * (dim + 1)
        scale, direction, positive, log_det = precondition(-hessian, gradient)
        ok = torch.isfinite(value) & torch.isfinite(direction).all(-1)
        ok = ok & torch.isfinite(scale).flatten(1).all(-1)
        decrement = (direction * gradient).sum(-1)
        locs.append(here[ok])
        scales.append(scale[ok])
        arrived = ok & positive & (decrement.abs() < 1e-4)
        done[active], top_scale[active], curvature[active] = arrived, scale, log_det
        candidates = (
            here[:, None] + steps[:, None] * torch.where(ok[:, None], direction, 0.0)[:, None]
        )
        reached = log_joint.in_chunks(candidates.reshape(-1, dim)).reshape(len(here), -1)
        reached = torch.where(torch.isfinite(reached), reached, -math.inf)
        top, index = reached.max(-1)
        better = ok & (top > value)
        chosen = candidates[torch.arange(len(here), device=z.device), index]
        # Where it has arrived, a last small step would leave the scale behind.
        moves = better & ~arrived
        z[active] = torch.where(moves[:, None], chosen, here)
        active = active[moves]
        if not len(active):
            break
    modes, stuck = z[done], ~done & torch.isfinite(top_scale).flatten(1).all(-1)
    stuck = stuck & (top_scale.flatten(1) != 0).any(-1)
    evidence = log_joint.in_chunks(modes) if len(modes) else z.new_zeros(0)
    evidence = evidence + 0.5 * dim * math.log(2 * math.pi) - 0.5 * curvature[done]
    return Climb(
        locs=torch.cat(locs),
        scales=torch.cat(scales),
        modes=modes,
        mode_scales=top_scale[done],
        evidence=evidence,
        stuck=z[stuck],
        stuck_scales=top_scale[stuck],
        gradients=gradients,
    )


def precondition(hessian: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A covariance factor and an ascent direction from a Hessian of -log p, by rows.

    The Hessian is scaled to unit diagonal first, so that its eigenvalues tell shape from scale;
    negative ones are reflected (saddle-free Newton).
    """
    bad = ~torch.isfinite(hessian).flatten(1).all(-1)
    eye = torch.eye(hessian.shape[-1], dtype=hessian.dtype, device=hessian.device)
    hessian = torch.where(bad[:, None, None], eye, hessian)
    d = hessian.diagonal(dim1=-2, dim2=-1).abs().clamp_min(1e-20).sqrt()
    eigenvalues, vectors = eigh(hessian / (d[:, :, None] * d[:, None, :]))
    tiny = 100 * torch.finfo(hessian.dtype).eps * hessian.shape[-1]
    positive = (eigenvalues > tiny).all(-1) & ~bad
    modified = torch.where(eigenvalues > tiny, eigenvalues, eigenvalues.abs().clamp_min(1e-3))
    scale = vectors / modified.sqrt()[:, None, :] / d[:, :, None]
    direction = (scale @ (scale.mT @ gradient[..., None])).squeeze(-1)
    return scale, direction, positive, modified.log().sum(-1) + 2 * d.log().sum(-1)


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and vectors of symmetric matrices ``(*, D, D)``, whatever is in them.

    Entries that no direction should hang on (infinite, or beyond a million million) are cut down,
    and eigenvalues that the algorithm can't tell apart are set apart by rounding's measure.
    """
    matrix = matrix.nan_to_num(0.0).clamp(-LARGEST, LARGEST)
    try:
        return torch.linalg.eigh(matrix)
    except RuntimeError:  # torch.linalg.LinAlgError
        size = matrix.abs().amax((-2, -1), keepdim=True)
        tiny = 1e3 * torch.finfo(matrix.dtype).eps * size
        apart = torch.linspace(0, 1, matrix.shape[-1], device="cpu").to(matrix).diag_embed()
        return torch.linalg.eigh(matrix + tiny * apart)


def lower(factor: Tensor) -> Tensor:
    """The Cholesky factor of ``factor factor^T``, without forming the product."""
    lower = torch.linalg.qr(factor.mT)[1].mT
    sign = lower.diagonal().sign()
    return lower * torch.where(sign == 0, 1.0, sign)
