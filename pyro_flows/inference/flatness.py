# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Sites with a flat prior along which the density doesn't fall: no posterior exists there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pyro_flows.guides import LogJoint, named_sites
from pyro_flows.guides.unpack import coordinate_sites

DRAWS, MOST_COORDINATES = 16, 50
# So many standard deviations away, and further by factors of ten. In each of these a density that
# can be integrated falls by more than ten in the end: 1 / x itself can't be. So far, since the
# draws may be those of a guide that is much too narrow.
NEAREST, DECADES = 10.0, 8
FALL = 1.01 * math.log(10.0)


def flat_priors(log_joint: LogJoint) -> list[str]:
    """Names of the sites whose prior is ``ImproperUniform``, however it is wrapped."""
    sites = named_sites(log_joint.guide)
    return [name for name, site in sites if _is_flat(site["fn"])]


def _is_flat(fn: Any) -> bool:
    while hasattr(fn, "base_dist"):  # to_event, mask, expand_by
        fn = fn.base_dist
    return type(fn).__name__ == "ImproperUniform"


@torch.no_grad()
def flat_directions(log_joint: LogJoint, x: Tensor) -> list[str]:
    """Sites with a flat prior along which the density stays up, far away from any draw.

    Lines through some draws, along one coordinate each; with hierarchies' own location and scale
    taken off, so that a group's scale moves its members along.

    Args:
        log_joint: the model's, deterministic.
        x: draws ``(P, D)``, unconstrained, in the model's own coordinates.

    Cost: some 300 evaluations of the log joint for each coordinate of such a site; none where all
    priors are proper.
    """
    flat = flat_priors(log_joint)
    names = coordinate_sites(log_joint.guide) if flat else []
    where = [i for i, name in enumerate(names) if name in flat][:MOST_COORDINATES]
    if not where:
        return []
    with _non_centred(log_joint):
        z = x if log_joint.through is None else log_joint.through.inv(x)
        z, sd = z[torch.isfinite(z).all(-1)], z.std(0)
        if len(z) < DRAWS:
            return []
        found = [names[i] for i in where if _stays_up(log_joint, z[:DRAWS], i, sd[i])]
    return list(dict.fromkeys(found))


def _stays_up(log_joint: LogJoint, z: Tensor, index: int, sd: Tensor) -> bool:
    """Whether the density along one coordinate falls no faster than 1 / x, from most draws."""
    for sign in (-1, 1):
        points = z.repeat(DECADES + 1, 1, 1)
        steps = torch.tensor([NEAREST * 10.0**k for k in range(DECADES + 1)], device="cpu").to(z)
        points[:, :, index] += sign * sd * steps[:, None]
        value = log_joint.in_chunks(points.flatten(0, 1)).reshape(len(points), -1)
        fall = value[:-1] - value[1:]
        # Beyond a NaN, where the model can't be computed, nothing is known.
        known = ~torch.isnan(fall).cumsum(0).bool()
        moved = points[0, :, index] != z[:, index]
        stays = known[0] & moved & ~(known & ~(fall < FALL)).any(0)
        if int(stays.sum()) > len(z) / 2:
            return True
    return False


@contextmanager
def _non_centred(log_joint: LogJoint) -> Iterator[None]:
    """Take the hierarchy's locations and scales off inside, whatever the guide's degree is."""
    layer: Any = log_joint.through
    if layer is None:
        yield
        return
    degree = layer.centring.clone()
    layer.set_centring(torch.zeros_like(degree))
    log_joint.forget()
    try:
        yield
    finally:
        layer.set_centring(degree)
        log_joint.forget()
