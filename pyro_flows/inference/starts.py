# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Where a search for the posterior's mass begins."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pyro_flows.errors import InfeasibleModelError
from pyro_flows.guides import LogJoint, named_sites, structure, unconstrain
from pyro_flows.inference.gaussian import Gaussian


def over_dispersed(log_joint: LogJoint, plain: Gaussian, *, scaled: bool = False) -> Tensor:
    """The plain start and over-dispersed points around it where the log joint is finite.

    Args:
        log_joint: the model's.
        plain: where the guide starts; moved where the log joint isn't finite there.
        scaled: whether its scale is that of the posterior, as far as is known, and units are its.

    Raises:
        InfeasibleModelError: it isn't finite anywhere it was tried.
    """
    dim = len(plain.loc)
    count = (8 if dim <= 50 else 4) if log_joint.mode != "sequential" else 2
    tries = torch.randn(256, dim, dtype=plain.loc.dtype, device="cpu").to(plain.loc)
    # Spread from 0.1 to 3, so that some land where hard constraints leave little room.
    spread = torch.logspace(
        -1, math.log10(3.0), 256, base=10.0, dtype=plain.loc.dtype, device="cpu"
    )
    tries = tries @ plain.scale_tril.T if scaled else tries
    points = torch.cat([plain.loc[None], plain.loc + spread.to(plain.loc)[:, None] * tries])
    # Around zero, as Stan starts: a prior's median may be where no data would have it.
    zero = 2 - 4 * torch.rand(count // 4, dim, dtype=plain.loc.dtype, device="cpu").to(plain.loc)
    prior = _prior_draws(log_joint, count // 2)
    points = torch.cat([points, zero, *prior])
    value = log_joint.in_chunks(points)
    finite = torch.isfinite(value)
    if not bool(finite.any()):
        blame = log_joint.blame(plain.loc)
        raise InfeasibleModelError(
            "The model's log density is not finite anywhere it was tried: the start and "
            f"{len(points) - 1} other points (at the start it is {float(value[0]):g}). {blame} "
            "Check supports, scales and data; or start elsewhere by init_loc_fn=."
        )
    if not bool(finite[0]):
        plain.loc = points[finite][value[finite].argmax()].clone()
    # The widest ones, then those around zero, then the prior's own: over-dispersed on purpose,
    # also where the prior is much wider than a unit of the unconstrained scale.
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
