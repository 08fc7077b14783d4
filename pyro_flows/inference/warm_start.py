# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Start a flow from the best Gaussian that can be found quickly.

Two affine-invariant stages, so that standard deviations from 0.02 to 9,700 are all one to them:

1. Newton's method with exact Hessians from several over-dispersed points. Each point on each path
   is a candidate Gaussian (location there, covariance from the Hessian made positive); the one
   with the best ELBO wins. On funnels, whose density has no maximum, that is a point passed on
   the way, as in Pathfinder (Zhang et al. 2022, arXiv:2108.03782).
2. Natural-gradient ascent of the Gaussian's ELBO.

Then starts from elsewhere look for further modes; where some weigh, the guide becomes a mixture.

What comes out is never worse than the plain start: the better ELBO on the same draws is kept.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_flows.errors import GuideError
from pyro_flows.guides import AutoFlow, LogJoint
from pyro_flows.inference.gaussian import Gaussian, elbo_of, elbos_of, natural_gradient
from pyro_flows.inference.mixtures import Mixture, find_mixture
from pyro_flows.inference.modes import MOST_MODES, Allowance, Modes, explore, maxima, merge
from pyro_flows.inference.newton import Climb, climb, lower
from pyro_flows.inference.refinement import refine
from pyro_flows.inference.starts import over_dispersed

# A Hessian costs D gradients of a D-vector; beyond this the natural gradient goes alone.
LARGEST_HESSIAN = 400
# Further starts where the first leads to no Gaussian that settles.
RESTARTS = 2


@dataclass
class Start(Gaussian):
    """The best Gaussian, and what was learned on the way to it.

    Attributes:
        plain_elbo: ELBO of the plain start.
        centring: degree of centring of each coordinate in which it was found; None if the model
            has no hierarchy that the guide can use.
        places: where the density is high, in the log joint's coordinates; None if it wasn't looked
            for.
        mixture: several Gaussians that are better than one, where modes lie apart.
        cut: the search for further modes ended for want of gradients.
        unseen: why there are likely to be more modes than it found, in words.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(3.0, 0.01))
        >>> start = warm_start(AutoFlow(model))
        >>> start.elbo > start.plain_elbo, start.gradients > 0
        (True, True)
    """

    plain_elbo: float = -math.inf
    centring: Tensor | None = None
    places: Modes | None = None
    mixture: Mixture | None = None
    cut: bool = False
    unseen: str | None = None


def warm_start(guide: AutoFlow, *args: Any, **kwargs: Any) -> Gaussian:
    """Set a guide's affine to the best Gaussian found, before plain SVI.

    Args:
        guide: an ``AutoFlow``; set up here if it isn't.
        *args: the model's arguments.
        **kwargs: the same.

    Returns:
        The Gaussian, with what it cost.

    Raises:
        GuideError: the guide isn't an ``AutoFlow``.
        InfeasibleModelError: the log joint isn't finite anywhere it was tried.

    Cost: some thousands of gradients, most of a second for small models.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(3.0, 0.01))
        >>> guide = AutoFlow(model)
        >>> start = warm_start(guide)
        >>> round(float(guide.median()["x"]), 1)
        3.0
    """
    if not isinstance(guide, AutoFlow):
        raise GuideError(
            f"warm_start expected an AutoFlow, but got {type(guide).__name__}: it sets the affine "
            "at the end of the flow. Use guide = AutoFlow(model)."
        )
    guide.setup(*args, **kwargs)
    guide._check_unchanged(args, kwargs)
    log_joint = LogJoint(guide.bare_model, guide, args, kwargs, through=guide.noncentring)
    return find_gaussian(log_joint, guide)


@torch.no_grad()
def find_gaussian(log_joint: LogJoint, guide: AutoFlow) -> Start:
    """Set the guide's affine, and its degree of centring, to the best Gaussian found.

    In a hierarchical model the search is made in non-centred coordinates and in the model's own;
    the better ELBO decides, since both are bounds of the same evidence.

    Args:
        log_joint: the model's, ``through`` the guide's non-centring layer if it has one.
        guide: set up; changed in place.

    Raises:
        InfeasibleModelError: the log joint isn't finite anywhere it was tried.

    Example:
        >>> def model():
        ...     pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        >>> guide = AutoFlow(model).setup()
        >>> find_gaussian(LogJoint(model, guide), guide).loc.shape
        torch.Size([1])
    """
    if guide.modes > 1:  # what is searched for first is one Gaussian
        loc = guide._init_loc().to(guide.affine.loc)
        guide.split(
            loc[None],
            0.1 * torch.eye(len(loc), device="cpu").to(loc)[None],
            torch.ones(1, device="cpu"),
        )
    layer, loc = guide.noncentring, guide.affine.loc.detach().clone()
    scale = guide.affine.scale_tril.detach().clone()
    if layer is None:
        best = search_from(log_joint, Gaussian(loc, scale))
    else:
        centred = torch.ones(layer.dim, device="cpu").to(loc)
        x, found = layer(loc), list[tuple[Start, Tensor]]()
        for degree in (1 - centred, centred):
            layer.set_centring(degree)
            log_joint.forget()
            floor = found[0][0].elbo if found else -math.inf
            found.append((search_from(log_joint, Gaussian(layer.inv(x), scale), floor), degree))
            if found[-1][0].exact:
                break
        best, best.centring = max(found, key=lambda pair: pair[0].elbo)
        best.gradients = sum(start.gradients for start, _ in found)
        layer.set_centring(best.centring)
        log_joint.forget()
    guide.affine.set(best.loc, best.scale_tril)
    return best


@torch.no_grad()
def find_start(log_joint: LogJoint, guide: AutoFlow, allowance: float = math.inf) -> Start:
    """:func:`find_gaussian`; then look for further modes, and split the guide if some weigh.

    Args:
        log_joint: the model's, ``through`` the guide's non-centring layer if it has one.
        guide: set up; changed in place.
        allowance: gradients after which nothing further is begun.

    Example:
        >>> def model():
        ...     x = pyro.sample("x", dist.Normal(0.0, 5.0))
        ...     pyro.sample("y", dist.Normal(x**2, 1.0), obs=torch.tensor(9.0))
        >>> guide = AutoFlow(model).setup()
        >>> start = find_start(LogJoint(model, guide), guide)
        >>> guide.modes
        2
    """
    best = find_gaussian(log_joint, guide)
    if best.places is None or best.growing is not None:
        return best
    here = Modes(best.loc[None], best.scale_tril[None], best.loc.new_tensor([best.elbo]))
    known = Gaussian(best.loc, best.scale_tril, best.elbo)
    left = Allowance(allowance - best.gradients)
    found = _explored(log_joint, merge([here, best.places]), known, left)
    best.gradients += found.gradients
    best.cut, best.unseen = left.cut, found.unseen
    if found.refined and found.refined[0].elbo > best.elbo:  # the first search had missed it
        top = found.refined[0]
        best.loc, best.scale_tril, best.elbo = top.loc, top.scale_tril, top.elbo
        best.growing = top.growing
        guide.affine.set(best.loc, best.scale_tril)
    best.places = found.places
    best.mixture = find_mixture(log_joint, best, found.weighty, found.refined)
    if best.mixture is not None:
        guide.split(best.mixture.locs, best.mixture.scale_trils, best.mixture.weights)
    return best


def _places(gaussians: list[Gaussian], like: Tensor) -> Modes:
    dim = len(like)
    evidence = like.new_tensor([gaussian.elbo for gaussian in gaussians])
    locs = [gaussian.loc for gaussian in gaussians]
    scales = [gaussian.scale_tril for gaussian in gaussians]
    if not gaussians:
        return Modes(like.new_zeros(0, dim), like.new_zeros(0, dim, dim), evidence)
    return Modes(torch.stack(locs), torch.stack(scales), evidence)


@torch.no_grad()
def look_around(log_joint: LogJoint, here: Start) -> None:
    """Places of high density, from over-dispersed starts around some draws' mean and spread.

    Args:
        log_joint: the model's, deterministic.
        here: where the draws are; ``places``, ``growing`` and ``gradients`` are filled in, the
            first not where the model is too large.
    """
    if len(here.loc) > LARGEST_HESSIAN:
        return
    # Three times as wide as the draws at the least: elsewhere is where they aren't.
    wide = Gaussian(here.loc.clone(), 3 * here.scale_tril)
    starts = over_dispersed(log_joint, wide, scaled=True)
    paths = climb(log_joint, starts)
    elbo = elbo_of(log_joint, here.loc, here.scale_tril)
    around = Modes(here.loc[None], here.scale_tril[None], here.loc.new_tensor([elbo]))
    found = _explored(log_joint, merge([around, maxima(paths)]))
    here.places, here.gradients = found.places, paths.gradients + found.gradients
    here.unseen = found.unseen
    here.growing = found.refined[0].growing if found.refined else None


@dataclass(frozen=True)
class _Explored:
    """Modes that weigh something, Gaussians fitted there, both as places, and what it took.

    ``unseen`` tells why there are likely to be more.
    """

    weighty: Modes
    refined: list[Gaussian]
    places: Modes
    gradients: int
    unseen: str | None


def _explored(
    log_joint: LogJoint,
    known: Modes,
    best: Gaussian | None = None,
    allowance: Allowance | None = None,
) -> _Explored:
    search = explore(log_joint, known, allowance)
    weighty = search.modes.weighty[:MOST_MODES]
    refined, more = refine(log_joint, weighty, search.paths, best, allowance)
    places = merge([_places(refined, known.locs[0]), weighty])
    unseen = search.unseen(log_joint, refined[0]) if refined else None
    return _Explored(weighty, refined, places, search.gradients + more, unseen)


def search_from(log_joint: LogJoint, plain: Gaussian, floor: float = -math.inf) -> Start:
    """The best Gaussian found from a plain one, in the log joint's coordinates.

    One that took all its steps is on hard ground, where another start may lead higher.
    """
    best = _search_once(log_joint, plain, floor)
    for _ in range(RESTARTS):
        if best.settled or best.growing is not None:
            break
        other = _search_once(log_joint, plain, max(floor, best.elbo))
        spent = best.gradients + other.gradients
        places = [found.places for found in (best, other) if found.places is not None]
        best = max(best, other, key=lambda start: start.elbo)
        best.gradients, best.places = spent, merge(places) if places else None
    return best


def _search_once(log_joint: LogJoint, plain: Gaussian, floor: float) -> Start:
    starts = over_dispersed(log_joint, plain)
    best, spent, places = plain, 0, None
    plain_elbo = plain.elbo = elbo_of(log_joint, plain.loc, plain.scale_tril)
    if len(plain.loc) <= LARGEST_HESSIAN and not log_joint.stochastic:
        paths = climb(log_joint, starts)
        best, spent = _best_on(log_joint, paths, plain), paths.gradients
        places = maxima(paths)
    natural = natural_gradient(log_joint, best, floor=floor, scaled=best is not plain)
    natural.elbo = elbo_of(log_joint, natural.loc, natural.scale_tril)
    # Too noisy, or no better: keep what it came from, and what was learned on the way.
    top = natural if natural.elbo >= best.elbo else best
    return Start(
        loc=top.loc,
        scale_tril=top.scale_tril,
        elbo=top.elbo,
        gradients=spent + natural.gradients,
        growing=natural.growing,
        history=natural.history,
        exact=natural.exact and top is natural,
        settled=natural.settled,
        plain_elbo=plain_elbo,
        places=places,
    )


def _best_on(log_joint: LogJoint, paths: Climb, plain: Gaussian) -> Gaussian:
    """The best of the Gaussians around the points of some paths, and of the plain one."""
    if not len(paths.locs):
        return plain
    top = int(elbos_of(log_joint, paths.locs, paths.scales, 32).argmax())
    loc, factor = paths.locs[top], lower(paths.scales[top])
    elbo = elbo_of(log_joint, loc, factor)
    return Gaussian(loc, factor, elbo) if elbo > plain.elbo else plain
