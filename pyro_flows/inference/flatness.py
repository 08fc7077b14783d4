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
# From here to ten times as far, standard deviations, a density that can be integrated falls by
# more than a factor of ten: 1 / x itself can't be.
NEAR, FAR = 10.0, 100.0


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

    Cost: ``4 * 16`` evaluations of the log joint for each coordinate of such a site; none where
    all priors are proper.
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
        near, far = z.clone(), z.clone()
        near[:, index] += sign * NEAR * sd
        far[:, index] += sign * FAR * sd
        before, after = log_joint.in_chunks(torch.cat([near, far])).chunk(2)
        stays = torch.isfinite(before) & (after - before > -math.log(FAR / NEAR))
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
