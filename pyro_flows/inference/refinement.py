# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Gaussians fitted at the places that a search for modes came to."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows.guides import LogJoint
from pyro_flows.inference.gaussian import Gaussian, elbo_of, elbos_of, natural_gradient
from pyro_flows.inference.modes import LIGHT, SAME, Allowance, Modes
from pyro_flows.inference.newton import Climb, lower

# An end of a path at no maximum is tried where log p is so much higher than known Gaussians tell;
# so many at most, and so many in a row that come to nothing new.
SURPRISING, MOST_TRIES, MOST_VAIN = 5.0, 8, 3
# An end whose own Gaussian would hold less than what weighs by so much, nats, isn't tried.
FAR_BELOW = 30.0
# Shares of a scale that are tried at an end that is no maximum.
SHRUNKEN = (1.0, 0.3, 0.1, 0.03, 0.01)
# Places that are each given the best Gaussian near them.
MOST_REFINED = 16

# Where a path ended, a scale there, and whether a Gaussian is to climb from there.
End = tuple[Tensor, Tensor, bool]


@torch.no_grad()
def refine(
    log_joint: LogJoint,
    modes: Modes,
    paths: Sequence[Climb],
    best: Gaussian | None = None,
    allowance: Allowance | None = None,
) -> tuple[list[Gaussian], int]:
    """The best Gaussian near each of the heaviest places, and near ends of paths elsewhere.

    A density with a ridge or an edge needn't have a maximum; a Gaussian's ELBO is a bound of the
    mass around it all the same.

    Args:
        log_joint: the model's.
        modes: where to start.
        paths: that led there, and elsewhere.
        best: a Gaussian that is the best near its place already.
        allowance: of gradients; places that it doesn't pay for are left as they are.

    Returns:
        Gaussians that weigh something, each once, heaviest first, and the gradients it took.
    """
    found = [] if best is None else [best]
    gradients, allowance = 0, allowance or Allowance()
    for loc, scale in list(zip(modes.locs, modes.scales, strict=True))[:MOST_REFINED]:
        if best is None or not torch.equal(loc, best.loc):
            if found and allowance.used_up():
                break
            made = _refined(log_joint, loc, scale)
            gradients += made.gradients
            allowance.left -= made.gradients
            found.append(made)
    # A Gaussian that left its mode for another one leaves its mode to be tried again, as it is.
    ends = [(loc, scale, False) for loc, scale in zip(modes.locs, modes.scales, strict=True)]
    for path in paths:
        ends += [(*pair, True) for pair in zip(path.stuck, path.stuck_scales, strict=True)]
    vain = 0
    for _ in range(MOST_TRIES):
        floor = max(gaussian.elbo for gaussian in found) + LIGHT
        surprise = _surprise(log_joint, ends, found, floor)
        top = int(surprise.argmax())
        if not float(surprise[top]) > SURPRISING or allowance.used_up():
            break
        loc, scale, climbs = ends.pop(top)
        made = _refined(log_joint, loc, scale, floor, found, climbs=climbs, brief=True)
        gradients += made.gradients
        allowance.left -= made.gradients
        # One still on its way may end at a known one.
        useful = made.settled and not made.given_up and made.elbo > floor
        vain = 0 if useful else vain + 1
        if useful:
            found.append(made)
        if not ends or vain == MOST_VAIN:
            break
    found.sort(key=lambda gaussian: -gaussian.elbo)
    kept: list[Gaussian] = []
    for one in found:
        if one.elbo > found[0].elbo + LIGHT and all(_distance(one, k) > SAME for k in kept):
            kept.append(one)
    return kept, gradients


def _refined(
    log_joint: LogJoint,
    loc: Tensor,
    scale: Tensor,
    floor: float = -math.inf,
    known: Sequence[Gaussian] = (),
    *,
    climbs: bool = True,
    brief: bool = False,
) -> Gaussian:
    made = Gaussian(loc, lower(scale))
    if climbs and brief:
        # What the Hessian says where there is no maximum may be far too wide: at an edge no draw
        # would be inside.
        shares = loc.new_tensor(SHRUNKEN)[:, None, None]
        tried = shares * made.scale_tril
        best = elbos_of(log_joint, loc.expand(len(tried), -1), tried, 64).argmax()
        made.scale_tril = tried[best]
    if climbs:
        # Of a maximum the scale is its own; of another end it may be far too small.
        made = natural_gradient(
            log_joint, made, floor=floor, known=known, scaled=not brief, brief=brief
        )
    made.elbo = elbo_of(log_joint, made.loc, made.scale_tril)
    return made


def _surprise(
    log_joint: LogJoint, ends: list[End], gaussians: Sequence[Gaussian], floor: float
) -> Tensor:
    """By how much log p is above what Gaussians of so much mass each make of it, ``(P,)``.

    -inf where a Gaussian of the end's own scale, wide as it may be, would hold far less than
    ``floor``: far out in a tail any density is above a Gaussian's.
    """
    points = torch.stack([loc for loc, _, _ in ends])
    scales = torch.stack([scale for _, scale, _ in ends])
    value = log_joint.in_chunks(points)
    known = torch.stack([gaussian.elbo + gaussian.log_prob(points) for gaussian in gaussians])
    mass = value + torch.linalg.slogdet(scales)[1] + points.shape[-1] * 0.5 * math.log(2 * math.pi)
    sound = log_joint.resolved(points, value) & (mass > floor - FAR_BELOW)
    surprise = (value - torch.logsumexp(known, 0)).nan_to_num(-math.inf)
    return torch.where(sound, surprise, -math.inf)


def _distance(one: Gaussian, other: Gaussian) -> float:
    """Distance of two means in standard deviations of both together."""
    both = lower(torch.cat([one.scale_tril, other.scale_tril], -1))
    step = torch.linalg.solve_triangular(both, (one.loc - other.loc)[:, None], upper=False)
    return float(step.norm())
