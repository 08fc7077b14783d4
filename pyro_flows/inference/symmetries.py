# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Symmetries of a posterior, which make some of its marginal means say nothing.

The labels of a mixture's components can be exchanged, the signs of a factor model's loadings and
scores turned together: the density is the same. A candidate is tried at a few draws and away from
them. What holds everywhere to rounding is no accident, if the density resolves these values at
all; that it does, a change of the same values that is no symmetry must show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations, islice, product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_flows.guides import LogJoint, constrain, named_sites, unconstrain

Values = dict[str, Tensor]  # of shape (P, *site_shape)
Change = Callable[[Values], Values]
Sites = list[tuple[str, Any]]
Part = tuple[str, tuple[int, ...]]  # a site, or one element of it

DRAWS = 3
# Rounding, in units of eps and of log p. Where that is more than COARSEST nats, a real difference
# might hide in it; and what is no symmetry must make CLEARLY more.
ROUNDING, COARSEST, CLEARLY = 100.0, 0.1, 100.0
# Longer axes are data's, as a rule; subsets of more sites or elements than this would be many.
LONGEST_AXIS, MOST_SITES, MOST_ELEMENTS, MOST_CANDIDATES = 50, 8, 16, 64
ROWS = 256  # of one call


class Labels(NamedTuple):
    """What has a value for each label: an axis of a site; sites; or one site w, as w and 1 - w."""

    names: tuple[str, ...]
    axis: int | None = None


class Candidate(NamedTuple):
    """What may be a symmetry.

    Attributes:
        sentence: to say if it is one.
        covers: what that is about. Another one about less says nothing new.
        changes: under which the density must stay.
        controls: for each part a change of it alone, under which the density must not stay.
    """

    sentence: str
    covers: set[str]
    changes: list[Change]
    controls: dict[Labels | Part, Change]


@torch.no_grad()
def find_symmetries(log_joint: LogJoint, z: Tensor) -> list[str]:
    """Sentences about sites that a symmetry of the posterior makes alike.

    Args:
        log_joint: the model's, deterministic.
        z: a few draws ``(P, D)``, unconstrained, in the model's own coordinates.

    Returns:
        One sentence for each symmetry found, none for a posterior without any.

    Cost: a dozen evaluations of the log joint for each candidate, 256 in one call.
    """
    sites = named_sites(log_joint.guide)
    candidates = [*_exchanges(sites), *_turns(sites)]
    points, draws = _points(z)
    rows = [{n: value for n, _, value, _ in constrain(log_joint.guide, row)} for row in points]
    values = {name: torch.stack([row[name] for row in rows]) for name, _ in sites}
    every = [change for one in candidates for change in one.changes]
    before, *others = _densities(log_joint, values, [dict, *every])
    tolerance = ROUNDING * torch.finfo(before.dtype).eps * before.abs().clamp_min(1.0)
    sound = torch.isfinite(before) & (tolerance <= COARSEST)
    if not (bool(sound[:draws].any()) and bool(sound[draws:].any())):
        return []
    same = iter([bool(((other - before).abs() <= tolerance)[sound].all()) for other in others])
    holding = [one for one in candidates if all([next(same) for _ in one.changes])]
    controls = {part: change for one in holding for part, change in one.controls.items()}
    others = _densities(log_joint, values, [*controls.values()])
    resolved = set()
    for part, other in zip(controls, others, strict=True):
        gap = (other - before).abs()[sound]
        if bool((torch.isfinite(gap) & (gap > CLEARLY * tolerance[sound])).any()):
            resolved.add(part)
    return _widest([one for one in holding if resolved.issuperset(one.controls)])


def _widest(found: list[Candidate]) -> list[str]:
    """Sentences of those that no wider one implies; of equally wide ones the simplest."""
    kept: list[Candidate] = []
    for one in sorted(found, key=lambda one: (-len(one.covers), len(one.controls))):
        if not any(one.covers <= other.covers for other in kept):
            kept.append(one)
    return [one.sentence for one in kept]


def _points(z: Tensor) -> tuple[Tensor, int]:
    """Draws and points away from them ``(P, D)``, and how many of the first rows are draws.

    Around the draws, at unit distance and at that of their own spread; and around zero, since in
    a funnel's neck or an improper posterior's tail much looks alike, wherever the draws are.
    """
    few = z[:DRAWS]
    generator = torch.Generator(device="cpu").manual_seed(0)
    shape = (3, *few.shape)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(z)
    own = [few + z.std(0) * noise[2]] if len(z) > len(few) else []
    return torch.cat([few, few + noise[0], noise[1], *own]), len(few)


def _exchanges(sites: Sites) -> Iterator[Candidate]:
    """Permutations of elements, of sites, and of both together."""
    simplices = {name for name, site in sites if _base(site) is constraints.simplex}
    for size, labels in sorted(_labels(sites).items()):
        copied = [0, 0, *range(2, size)]
        # Together these make every permutation.
        orders = [[1, 0]] if size == 2 else [[*range(1, size), 0], [1, 0, *range(2, size)]]
        for group in islice(_groups(labels), MOST_CANDIDATES):
            what = [("" if axis is None else "elements of ", names) for names, axis in group]
            yield Candidate(
                f"{_described(group, size)} can be exchanged: all have the same marginals. If "
                "they are labels, their means are meaningless: sort the draws.",
                {kind + name for kind, names in what for name in names},
                [_ordered(group, order, simplices) for order in orders],
                {one: _ordered((one,), copied, simplices) for one in group},
            )


def _labels(sites: Sites) -> dict[int, list[Labels]]:
    """What could be labelled, by the number of labels."""
    found: dict[int, list[Labels]] = {}
    alike: dict[tuple[Any, ...], list[str]] = {}
    for name, site in sites:
        shape = site["value"].shape
        for axis, size in enumerate(shape):
            found.setdefault(size, []).append(Labels((name,), axis))
        alike.setdefault((type(site["fn"].support), type(_base(site)), shape), []).append(name)
    for names in alike.values():
        found.setdefault(len(names), []).append(Labels(tuple(names)))
        if 2 < len(names) <= MOST_SITES:
            found.setdefault(2, []).extend(map(Labels, combinations(names, 2)))
    if 2 in found:
        interval = type(constraints.unit_interval)
        found[2] += [Labels((name,)) for name, site in sites if type(_base(site)) is interval]
    return {size: labels for size, labels in found.items() if 1 < size <= LONGEST_AXIS}


def _groups(labels: list[Labels]) -> Iterator[tuple[Labels, ...]]:
    """Which may be permuted together: all, all but one, each alone, and few."""
    for size in dict.fromkeys((len(labels), len(labels) - 1, 1, 2, 3)):
        for group in combinations(labels, size) if size else ():
            names = [name for one in group for name in one.names]
            axes = [one for one in group if one.axis is not None]
            # A share alone has no labels. Nothing moves twice, but for the axes of a matrix.
            once = len(axes) == size or len(set(names)) == len(names)
            if once and (axes or len(names) > size):
                yield group


def _described(group: tuple[Labels, ...], size: int) -> str:
    axes = tuple(dict.fromkeys(names[0] for names, axis in group if axis is not None))
    parts = [f"the {size} elements of {_listed(axes)}"] if axes else []
    for names, axis in group:
        share = f" and 1 - '{names[0]}'" if len(names) == 1 else ""
        parts += [_listed(names) + share] if axis is None else []
    more = f", together with {', and with '.join(parts[1:])}," if len(parts) > 1 else ""
    return f"{parts[0][0].upper()}{parts[0][1:]}{more}"


def _ordered(group: tuple[Labels, ...], order: list[int], simplices: set[str]) -> Change:
    """Each label's values from the label that ``order`` names, which may name one twice."""

    def change(values: Values) -> Values:
        changed = dict(values)
        for names, axis in group:
            first = names[0]
            if axis is not None:
                index = torch.tensor(order, device=values[first].device)
                value = changed[first].index_select(axis + 1, index)
                value = value / value.sum(-1, keepdim=True) if first in simplices else value
                changed[first] = value
            elif len(names) > 1:
                changed |= {name: values[names[i]] for name, i in zip(names, order, strict=True)}
            else:
                twice = torch.full_like(values[first], 0.5)
                changed[first] = 1 - values[first] if order == [1, 0] else twice
        return changed

    return change


def _turns(sites: Sites) -> Iterator[Candidate]:
    """Signs of all sites that have one, of each, of two or all but one; of single elements."""
    real = {name: site["value"] for name, site in sites if _has_signs(_base(site))}
    parts: dict[str, list[Part]] = {name: [(name, ())] for name in real}
    if sum(value.numel() for value in real.values()) <= MOST_ELEMENTS:
        for name, value in real.items():
            parts[name] += [(name, index) for index in product(*map(range, value.shape))]
    count = len(real)
    for size in dict.fromkeys((count, 1, 2 if count <= MOST_SITES else 1, count - 1)):
        for names in islice(combinations(real, size) if size > 0 else (), MOST_CANDIDATES):
            yield Candidate(
                f"The signs of {_listed(names)} can be turned: their means are zero whatever "
                "their size. If signs are labels, turn the draws alike first.",
                # Sites whose means are zero can be exchanged, for all that their means say.
                {*names, *(f"sign of {part}" for name in names for part in parts[name])},
                [_scaled([(name, ()) for name in names], -1.0)],
                {(name, ()): _scaled([(name, ())], -0.5) for name in names},
            )
    for part in [part for some in parts.values() for part in some if part[1]]:
        label = f"{part[0]}[{','.join(map(str, part[1]))}]"
        yield Candidate(
            f"The sign of '{label}' can be turned: its mean is zero whatever its size. If the "
            "sign is a label, turn the draws alike first.",
            {f"sign of {part}"},
            [_scaled([part], -1.0)],
            {part: _scaled([part], -0.5)},
        )


def _scaled(parts: list[Part], factor: float) -> Change:
    """Sites, or single elements of them, times a factor."""

    def change(values: Values) -> Values:
        changed = values | {name: values[name].clone() for name, _ in parts}
        for name, index in parts:
            where: Any = (slice(None), *index)
            changed[name][where] *= factor
        return changed

    return change


def _densities(log_joint: LogJoint, values: Values, changes: list[Change]) -> list[Tensor]:
    """Log densities ``(P,)`` after each of the changes, those of many in one call."""
    points = len(next(iter(values.values())))
    found: list[Tensor] = []
    while len(found) < len(changes):
        some = [change(values) for change in changes[len(found) :][: max(1, ROWS // points)]]
        stacked = {name: torch.cat([one[name] for one in some]) for name in values}
        found += _density(log_joint, stacked).split(points)
    return found


def _density(log_joint: LogJoint, values: Values) -> Tensor:
    """Log joint density ``(P,)`` of constrained values, without the Jacobian of the constraints.

    NaN outside the support, and where the log joint can't tell the values from others.
    """
    guide, through = log_joint.guide, log_joint.through
    checks = [torch.isfinite(value) for value in values.values()]
    checks += [site["fn"].support.check(values[name]) for name, site in named_sites(guide)]
    inside = torch.stack([check.reshape(len(check), -1).all(1) for check in checks]).all(0)
    density = torch.full_like(inside, torch.nan, dtype=next(iter(values.values())).dtype)
    if bool(inside.any()):
        x, ladj = unconstrain(guide, {name: value[inside] for name, value in values.items()})
        finite = torch.isfinite(x).all(-1)
        z = torch.where(finite[:, None], x, 0.0)
        if through is not None:
            z = through.inv(z)
            ladj = ladj + through.forward_and_ladj(z)[1]
        try:
            value = log_joint.in_chunks(z)
            sound = finite & log_joint.resolved(z, value)
        except (RuntimeError, ValueError):  # a model that fails at odd points
            return density
        density[inside] = torch.where(sound, value - ladj, torch.nan).to(density)
    return density


def _base(site: Any) -> Any:
    """The constraint on a site's smallest parts."""
    support = site["fn"].support
    return getattr(support, "base_constraint", support)


def _has_signs(support: Any) -> bool:
    """Whether it is the reals, or an interval around zero."""
    if type(support) is not type(constraints.unit_interval):
        return support is constraints.real
    return bool(torch.as_tensor(support.lower_bound == -support.upper_bound, device="cpu").all())


def _listed(names: tuple[str, ...]) -> str:
    quoted = [f"'{name}'" for name in names]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"
