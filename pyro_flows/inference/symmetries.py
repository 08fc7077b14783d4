# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Symmetries of a posterior, which make some of its marginal means say nothing.

The labels of a mixture's components can be exchanged, the signs of a factor model's loadings and
scores turned together: the density is the same. A candidate is tried at a few draws; what holds
there to rounding is no accident.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations

import torch
from torch import Tensor

from pyro_flows.guides import LogJoint, constrain, named_sites, unconstrain

Values = dict[str, Tensor]
Change = Callable[[Values], Values]

DRAWS = 3
TOLERANCE = 1e-7
# Longer axes are data's, as a rule, and pairs of more sites than this would be many.
LONGEST_AXIS, MOST_SITES = 50, 8


@torch.no_grad()
def find_symmetries(log_joint: LogJoint, z: Tensor) -> list[str]:
    """Sentences about sites that a symmetry of the posterior makes alike.

    Args:
        log_joint: the model's, deterministic.
        z: a few draws ``(P, D)``, unconstrained, in the model's own coordinates.

    Returns:
        One sentence for each symmetry found, none for a posterior without any.

    Cost: some tens of evaluations of the log joint, fewer than a step of training.
    """
    guide = log_joint.guide
    values = [{name: value for name, _, value, _ in constrain(guide, row)} for row in z[:DRAWS]]
    found: list[tuple[tuple[str, ...], str]] = []
    for sites, sentence, changes in _candidates(log_joint):
        if any(set(sites) <= set(other) for other, _ in found):
            continue
        if all(_same(log_joint, draw, change) for change in changes for draw in values):
            found.append((sites, sentence))
    return [sentence for _, sentence in found]


def _candidates(log_joint: LogJoint) -> Iterator[tuple[tuple[str, ...], str, list[Change]]]:
    """Sites, what to say of them, and the changes under which the density must stay."""
    sites = named_sites(log_joint.guide)
    axes = {
        (name, axis): size
        for name, site in sites
        for axis, size in enumerate(site["value"].shape)
        if 1 < size <= LONGEST_AXIS
    }
    for size in sorted(set(axes.values())):
        every = [key for key, length in axes.items() if length == size]
        groups = [every] if len(every) == 1 else [every, *([key] for key in every)]
        for group in groups:
            names = tuple(dict.fromkeys(name for name, _ in group))
            yield (
                names,
                f"The {size} elements of {_listed(names)} can be exchanged: all have the same "
                "marginals. If they are labels, their means are meaningless: sort the draws.",
                # Together these two make every permutation.
                [_permuted(group, [*range(1, size), 0]), _permuted(group, _swap(size))],
            )
    real = [name for name, site in sites if _is_real(site["fn"].support)]
    few = real if len(real) <= MOST_SITES else []
    for count in (len(few), 2, 1):
        for names in combinations(few, count) if 0 < count <= len(few) else ():
            yield (
                names,
                f"The signs of {_listed(names)} can be turned: their means are zero whatever "
                "their size. If signs are labels, turn the draws alike first.",
                [_flipped(names)],
            )


def _swap(size: int) -> list[int]:
    return [1, 0, *range(2, size)]


def _permuted(group: list[tuple[str, int]], order: list[int]) -> Change:
    def change(values: Values) -> Values:
        changed = dict(values)
        for name, axis in group:
            index = torch.tensor(order, device=values[name].device)
            changed[name] = changed[name].index_select(axis, index)
        return changed

    return change


def _flipped(names: tuple[str, ...]) -> Change:
    return lambda values: {k: -v if k in names else v for k, v in values.items()}


def _same(log_joint: LogJoint, values: Values, change: Change) -> bool:
    before, after = (_density(log_joint, made) for made in (values, change(values)))
    same = (before - after).abs() <= TOLERANCE * before.abs().clamp_min(1.0)
    return bool(same) and bool(torch.isfinite(before))


def _density(log_joint: LogJoint, values: Values) -> Tensor:
    """Log joint density of constrained values, without the Jacobian of the constraints."""
    x, ladj = unconstrain(log_joint.guide, values)
    x, ladj = x[None], ladj[None]
    if log_joint.through is not None:
        z = log_joint.through.inv(x)
        ladj = ladj + log_joint.through.forward_and_ladj(z)[1]
        x = z
    return (log_joint.in_chunks(x) - ladj)[0]


def _is_real(support: object) -> bool:
    return getattr(support, "base_constraint", support) is torch.distributions.constraints.real


def _listed(names: tuple[str, ...]) -> str:
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
