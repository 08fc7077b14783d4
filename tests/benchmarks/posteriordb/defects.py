# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Guides made wrong on purpose, each by one defect, so that a verdict can be tried on them.

All are ``AutoFlow``s of a target. The first, "none", is trained as ``FlowVI`` trains; the defects
that spoil a good guide start from it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pyro
import torch
from torch import Tensor

from pyro_flows import AutoFlow, FlowVI, transforms
from pyro_flows.distributions import Flow
from pyro_flows.guides import LogJoint
from pyro_flows.inference import Objective, find_gaussian
from pyro_flows.inference.randomness import seeded

from .target import Target

Guide: TypeAlias = AutoFlow

STEPS = 1200
SHRUNK, SHIFT, CLIP = 0.8, 0.3, 4.0


def guides(target: Target, seed: int) -> Iterator[tuple[str, Guide]]:
    """Gives a good guide, then those with one defect each, named."""
    pyro.clear_param_store()
    engine = FlowVI(target.model, seed=seed, max_steps=STEPS, progress=False)
    posterior = engine.run(*target.args, **target.kwargs)
    good: Any = posterior.guide
    yield "none", good
    if good.modes == 1:
        for name, spoil in _SPOILS.items():
            yield name, spoil(good, seed)
    for name, make in _MADE.items():
        if name != "one mode" or target.modes is not None:
            with seeded(seed):
                made = make(target)
            if made is not None:
                yield name, made


# Spoiled after training


def _shrink(good: Guide, seed: int) -> Guide:
    """All standard deviations too small by a fifth."""
    guide = copy.deepcopy(good)
    affine = guide.affine
    affine.set(affine.loc.detach(), SHRUNK * affine.scale_tril.detach())
    return guide


def _shift(good: Guide, seed: int) -> Guide:
    """Moved by 0.3 standard deviations in a random direction."""
    guide = copy.deepcopy(good)
    affine = guide.affine
    loc, scale = affine.loc.detach(), affine.scale_tril.detach()
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(len(loc), generator=generator, dtype=torch.float64).to(loc)
    affine.set(loc + SHIFT * scale @ (direction / direction.norm()), scale)
    return guide


def _clip(good: Guide, seed: int) -> Guide:
    """What comes to the affine is bounded by 4, softly, so that tails are cut off."""
    guide = copy.deepcopy(good)
    layers, base = list(guide._flow.transform.layers), guide._flow.base
    where = layers.index(guide.affine)
    layers.insert(where, _Clip(guide.latent_dim).to(guide.affine.loc))
    guide.set_state((Flow(layers, base), Flow(layers, base).state_dict()))
    return guide


class _Clip(transforms.Layer):
    """``y = 4 tanh(x / 4)`` of every coordinate; nothing beyond 4 comes out or has a density."""

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y = CLIP * torch.tanh(x / CLIP)
        return y, torch.log1p(-((y / CLIP) ** 2)).sum(-1)

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        inside = (y / CLIP).clamp(-1 + 1e-12, 1 - 1e-12)
        x = CLIP * torch.atanh(inside)
        ladj = -torch.log1p(-(inside**2))
        ladj = torch.where((y / CLIP).abs() < 1, ladj, -torch.inf)
        return x, ladj.sum(-1)


_SPOILS: dict[str, Callable[[Guide, int], Guide]] = {
    "shrunk": _shrink,
    "shifted": _shift,
    "clipped": _clip,
}


# Made with too little, or trained badly


def _plain(target: Target, **options: Any) -> tuple[Guide, LogJoint]:
    guide = AutoFlow(target.model, dtype=torch.float64, **options)
    guide.setup(*target.args, **target.kwargs)
    log_joint = LogJoint(
        target.model, guide, target.args, target.kwargs, through=guide.noncentring
    )
    return guide, log_joint


def _full_gaussian(target: Target) -> Guide:
    """The best Gaussian in the model's own coordinates."""
    guide, _ = _plain(target)
    if guide.noncentring is not None:
        guide._set_flow([Flow(list(guide._flow.transform.layers[:-1]))], None)
    log_joint = LogJoint(target.model, guide, target.args, target.kwargs)
    find_gaussian(log_joint, guide)
    return guide


def _mean_field(target: Target) -> Guide:
    """The best Gaussian's mean with independent coordinates, as ``AutoNormal`` has them."""
    guide = _full_gaussian(target)
    scale = guide.affine.scale_tril.detach()
    precision = torch.cholesky_inverse(scale).diagonal()
    guide.affine.set(guide.affine.loc.detach(), precision.rsqrt().diag())
    return guide


def _one_mode(target: Target) -> Guide:
    """A flow trained from one Gaussian, whatever modes there are."""
    guide, log_joint = _plain(target)
    find_gaussian(log_joint, guide)
    _train(Objective(guide, log_joint), 400, 0.03)
    return guide


def _stopped_early(target: Target) -> Guide:
    """A cold start, and one step in twenty of what training takes."""
    guide, log_joint = _plain(target)
    _train(Objective(guide, log_joint), STEPS // 20, 0.03)
    return guide


def _too_fast(target: Target) -> Guide:
    """Twenty times the learning rate, with nothing that keeps the best state."""
    guide, log_joint = _plain(target)
    find_gaussian(log_joint, guide)
    _train(Objective(guide, log_joint), 400, 0.6)
    return guide


def _train(objective: Objective, steps: int, rate: float) -> None:
    optimiser = torch.optim.Adam(objective.parameters, lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        objective.gradient(64)
        optimiser.step()


_MADE: dict[str, Callable[[Target], Guide | None]] = {
    "full Gaussian": _full_gaussian,
    "mean field": _mean_field,
    "one mode": _one_mode,
    "stopped early": _stopped_early,
    "too fast": _too_fast,
}
