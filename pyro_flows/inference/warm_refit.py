# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Fits of one model to other data, which begin where a first fit ended."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor

from pyro_flows.diagnostics.verdict import RELIABLE_GAP
from pyro_flows.guides import AutoFlow, LogJoint
from pyro_flows.inference.flow_vi import FlowVI
from pyro_flows.inference.gaussian import Gaussian
from pyro_flows.inference.objectives import Objective
from pyro_flows.inference.posterior import Posterior
from pyro_flows.inference.randomness import seeded
from pyro_flows.inference.warm_start import Start, find_gaussian, search_from
from pyro_flows.training import Report, Schedule, train
from pyro_flows.transforms import CholeskyAffine

Values = dict[str, Tensor]

# Steps of each cycle of a refit, which begins near the end. The gaps, nats, at which importance
# resampling mostly does the rest, and at which draws can be used as they are.
CYCLES, CLOSE = (100, 200, 400, 800), 0.05
RELIABLE = 0.7 * RELIABLE_GAP
PARTICLES, SLOW_PARTICLES = 64, 8


class MainFit:
    """The fit that others start from, and how they are trained.

    Args:
        posterior: the fit. Call it, and make refits, under its model state.
        close: the gap, nats, at which a quick refit's training ends.
        num_steps: steps of each refit; None for cycles.
        max_gradients: the most gradients that each may take.
    """

    def __init__(
        self,
        posterior: Posterior,
        close: float,
        num_steps: int | None,
        max_gradients: int | None,
    ) -> None:
        self.model, self.guide = posterior.log_joint.model, posterior.guide
        self.close, self.num_steps, self.max_gradients = close, num_steps, max_gradients
        self.one_flow = isinstance(self.guide, AutoFlow) and self.guide.modes == 1
        self.gaussian = self._gaussian(posterior)

    def _gaussian(self, posterior: Posterior) -> Gaussian | None:
        """The best Gaussian for the main fit's data; None if its flow isn't about one."""
        if not (isinstance(self.guide, AutoFlow) and self.one_flow):
            return None
        guide = copy.deepcopy(self.guide)
        layer, args, kwargs = guide.noncentring, posterior.args, posterior.kwargs
        with seeded(posterior.seed):
            start = find_gaussian(LogJoint(self.model, guide, args, kwargs, through=layer), guide)
        return start if _same_centring(guide, self.guide) else None

    def guide_of(self, data: Values) -> AutoContinuous:
        """A copy of the guide whose model has seen other data."""
        guide = self.guide
        model, trace = guide._model, guide.prototype_trace
        try:
            # A trace may hold tensors that can't be copied; nothing changes it.
            new = copy.deepcopy(guide, {id(trace): trace})
        finally:
            guide._model = model  # which Pyro's guides lose when they are copied
        new._model = (poutine.condition(guide.model, data=data),)
        if isinstance(new, AutoFlow):
            new._as_given = (poutine.condition(self.model, data=data),)
        return new


class Refit(FlowVI):
    """A fit to other data that begins where the main fit ended.

    A thorough one begins anew: it looks for further modes, as any fit does, and trains until its
    draws can be used as they are. Of a quick one the paths to the best Gaussian may tell that it
    missed some.
    """

    def __init__(self, main: MainFit, data: Values, seed: int, *, thorough: bool) -> None:
        super().__init__(
            poutine.condition(main.model, data=data),
            main.guide_of(data),
            seed=seed,
            num_steps=main.num_steps,
            max_gradients=main.max_gradients,
            compile=False,
            progress=False,
        )
        self.main, self.thorough = main, thorough

    def _guide(self, *args: Any, **kwargs: Any) -> AutoContinuous:
        # It is a copy already.
        return self.guide if isinstance(self.guide, AutoFlow) else super()._guide(*args, **kwargs)

    @torch.no_grad()
    def _warm_start(
        self, guide: AutoContinuous, log_joint: LogJoint, objective: Objective
    ) -> Start | None:
        """The best Gaussian; and the main fit's flow moved there, or a fresh one."""
        if not isinstance(guide, AutoFlow):
            _place(guide, log_joint)
            return super()._warm_start(guide, log_joint, objective)
        if self.thorough:
            self._begin_anew(guide)
            objective.reread()
            return super()._warm_start(guide, log_joint, objective)
        trained = guide.state()
        start = find_gaussian(log_joint, guide)
        if start.growing is not None:
            return start
        guide.split(start.loc[None], start.scale_tril[None], start.loc.new_ones(1))
        objective.reread()
        before = self.main.gaussian
        if start.exact or before is None or not _same_centring(guide, self.main.guide):
            return start
        fresh, score = guide.state(), objective.score()
        guide.set_state(trained)
        _move(guide.affine, before, start)
        objective.reread()
        if objective.score().gain_over(score)[0] <= 0:
            guide.set_state(fresh)
        return start

    @staticmethod
    def _begin_anew(guide: AutoFlow) -> None:
        """A fresh flow, as a first fit begins with."""
        like = next(guide.parameters())
        loc, scale = guide._init_loc().to(like), 0.1 * torch.eye(guide.latent_dim, device="cpu")
        guide.split(loc[None], scale.to(like)[None], like.new_ones(1))

    def _train(
        self, objective: Objective, log_joint: LogJoint, start: Start, *more: Any
    ) -> Report:
        given = self.num_steps is not None or self.max_gradients is not None
        if given or not isinstance(objective.guide, AutoFlow):
            return super()._train(objective, log_joint, start, *more)
        for part in objective.guide.modules():
            if isinstance(part, CholeskyAffine) and part.log_scale.requires_grad:
                part.measure_in_scales()
        count = PARTICLES if log_joint.mode != "sequential" else SLOW_PARTICLES
        close = RELIABLE if self.thorough else self.main.close
        schedule = Schedule(CYCLES, self.learning_rate, good_enough=close)
        return train(
            objective.parameters,
            lambda cycle: objective.gradient(count),
            objective.score,
            schedule,
            progress=False,
        )


def _same_centring(one: AutoFlow, other: Any) -> bool:
    """Whether two guides of one model are in the same coordinates below its hierarchy."""
    layers = one.noncentring, other.noncentring
    return layers[0] is None or torch.equal(layers[0].centring, layers[1].centring)


def _place(guide: AutoContinuous, log_joint: LogJoint) -> None:
    """Give one of Pyro's guides the best Gaussian's location, which it would find too slowly."""
    loc = guide._parameters.get("loc")
    if loc is None or loc.shape != (guide.latent_dim,):
        return
    scale = torch.eye(len(loc), device="cpu").to(loc)
    loc.copy_(search_from(log_joint, Gaussian(loc.detach().clone(), scale)).loc)


def _move(affine: CholeskyAffine, old: Gaussian, new: Gaussian) -> None:
    """Follow a flow's last layer by the affine map that takes one Gaussian to another."""
    ratio: Tensor = torch.linalg.solve_triangular(
        old.scale_tril, new.scale_tril, upper=False, left=False
    )
    affine.set(loc=new.loc + ratio @ (affine.loc - old.loc), scale_tril=ratio @ affine.scale_tril)
