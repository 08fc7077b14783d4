# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""FlowVI: a Pyro model and its data in, a judged flow posterior out."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import os
import time
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor

from pyro_flows.diagnostics.verdict import RELIABLE_GAP
from pyro_flows.errors import GuideError, InfeasibleModelError
from pyro_flows.guides import AutoFlow, LogJoint, init_to_median_or_feasible, structure
from pyro_flows.guides.auto_flow import FlowSpec
from pyro_flows.inference.assessment import check_density, elsewhere, examine, glance
from pyro_flows.inference.checkpoint import RunCheckpoint
from pyro_flows.inference.elbo_steps import ElboSteps
from pyro_flows.inference.objectives import Objective
from pyro_flows.inference.posterior import Posterior
from pyro_flows.inference.randomness import seeded
from pyro_flows.inference.warm_start import Start, find_start
from pyro_flows.training import Report, Schedule, train
from pyro_flows.training.checkpoint import Keeper
from pyro_flows.training.whole_step import Compile
from pyro_flows.transforms import CholeskyAffine

FIRST_CYCLE = 400
# Far from the optimum fewer draws do: what is in their way is distance, not noise.
PARTICLES = (64, 128, 256)
MAX_STEPS = 6000
# Where modes are likely to be missing, a mixture of flows needn't be trained to the last digit.
FEW_STEPS = 3 * FIRST_CYCLE
# Of a budget of gradients, the share after which no further modes are looked for.
SEARCHING = 0.25


class FlowVI:
    """Variational inference with a normalizing flow, from start to judgement, without tuning.

    ``run`` finds the best Gaussian (:mod:`pyro_flows.inference.warm_start`), trains a flow on top
    of it by path gradients until held-out draws show no more gain, and judges the result.

    Args:
        model: a Pyro model.
        guide: an ``AutoContinuous`` of it, in place of an ``AutoFlow``. An ``AutoFlow`` is copied,
            so that posteriors made from it before stay as they are; other guides are trained in
            place.
        flow: for the ``AutoFlow``: a registered name, a function of the dimension, or a ``Flow``.
        seed: all random numbers of the run; the global random state is left as it was.
        num_steps: train exactly this many steps; by default until there is no more gain.
        max_steps: the most steps if ``num_steps`` isn't given; by default 6000, 1200 where
            modes are likely to be missing, or what ``max_gradients`` pays for.
        max_gradients: the most gradients of the log joint that search and training may take, for
            models whose every evaluation counts; also where ``num_steps`` is given. Of the search,
            mostly 2,000 to 50,000 and more in hundreds of dimensions, that for the first Gaussian
            isn't cut short; once a quarter is spent, nothing more is begun to find further modes.
            Judging takes up to 15,000 more, for other guides than ``AutoFlow`` up to 50,000.
        num_particles: draws per step; by default 64 in the first cycle, 128 in the second, 256
            from then on; under ``max_gradients`` 64 throughout (8 for models that are scored
            draw by draw), and at least 8 of each flow of a mixture.
        learning_rate: peak learning rate.
        init_loc_fn: start per site, as in Pyro's autoguides.
        compile: make one compiled function of a training step, for each number of draws (torch's
            compiler; it needs one of C++, and takes some 20 seconds, one or two where the same
            step was compiled before, in this process or another). "auto" does so in cycles of at
            least 8,000 steps: it goes by counts, never by a clock, so that equal seeds give equal
            fits. What was done, and why, is in ``report.compiled``.
        checkpoint: a folder for what an interrupted run needs to go on. It is written after the
            warm start, and every minute of training. After a kill, a power failure or Ctrl-C the
            same call, in any process, goes on from there, and what comes out is what an
            uninterrupted run gives, bit for bit on a CPU; a run that ends removes it. Of another
            model, other arguments or settings it is refused, as is a folder that is something
            else. A model that keeps numbers of its own from call to call, outside of
            ``pyro.param``, is taken as it is.
        progress: show progress bars.

    Two runs with one seed agree bit for bit on one machine with the same versions and number of
    threads. Trainable parameters of the model (``pyro.param``) start from their current values and
    are left trained, as by ``SVI``; ``pyro.clear_param_store()`` starts them anew.

    On a CPU, models of little data are about as fast on one thread, ``torch.set_num_threads(1)``,
    and many times as fast where other programs are busy: torch's threads wait for one another.

    Example:
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> posterior = FlowVI(model, seed=0, progress=False).run(torch.tensor([1.0, 2.0, 3.0]))
        >>> posterior.verdict.status
        'reliable'
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: AutoContinuous | None = None,
        *,
        flow: FlowSpec = "default",
        seed: int = 0,
        num_steps: int | None = None,
        max_steps: int | None = None,
        max_gradients: int | None = None,
        num_particles: int | None = None,
        learning_rate: float = 3e-2,
        init_loc_fn: Callable[[dict[str, Any]], Tensor] = init_to_median_or_feasible,
        compile: Compile = "auto",
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        if guide is not None and not isinstance(guide, AutoContinuous):
            raise GuideError(
                f"FlowVI expected guide= to be an AutoContinuous, but got {type(guide).__name__}. "
                "Use AutoFlow(model), AutoMultivariateNormal(model) or AutoDiagonalNormal(model); "
                "the name of a flow goes to flow=."
            )
        if num_particles is not None and (not isinstance(num_particles, int) or num_particles < 2):
            raise GuideError(
                f"FlowVI expected num_particles >= 2, but got {num_particles!r}. Leave it out for "
                "the default."
            )
        if not isinstance(seed, int) or seed < 0:
            raise GuideError(
                f"FlowVI expected seed to be an integer >= 0, but got {seed!r}. 0 is the default."
            )
        budgets = {"num_steps": num_steps, "max_steps": max_steps, "max_gradients": max_gradients}
        for name, value in budgets.items():
            if value is not None and (not isinstance(value, int) or value < 1):
                raise GuideError(
                    f"FlowVI expected {name} >= 1, but got {value!r}. Leave it out, and training "
                    "stops by itself."
                )
        if compile not in ("auto", True, False):
            raise GuideError(
                f'FlowVI expected compile to be "auto", True or False, but got {compile!r}. '
                '"auto" is the default.'
            )
        self.model, self.seed, self.progress = model, seed, progress
        self.compile: Compile = compile if compile == "auto" else bool(compile)
        self.flow, self.init_loc_fn, self.guide = flow, init_loc_fn, guide
        self.num_steps, self.max_steps, self.max_gradients = num_steps, max_steps, max_gradients
        self.num_particles, self.learning_rate = num_particles, float(learning_rate)
        self.checkpoint = checkpoint
        if guide is None:
            AutoFlow(model, flow, init_loc_fn)  # complain about arguments now, not in run

    def run(self, *args: Any, **kwargs: Any) -> Posterior:
        """Fit the model to these arguments.

        Args:
            *args: the model's arguments.
            **kwargs: the same.

        Returns:
            The posterior, judged. After Ctrl-C the best so far; a checkpoint is left, and goes on
            from where it was last written.

        Raises:
            CheckpointError: the checkpoint can't be gone on with, or not be written.
            PyroFlowsError: the model or data can't be used; the text says what to do.
        """
        clock = _Clock()
        checkpoint = None if self.checkpoint is None else RunCheckpoint(self.checkpoint)
        with seeded(self.seed):
            guide = self._guide(*args, **kwargs)
            through = guide.noncentring if isinstance(guide, AutoFlow) else None
            log_joint = LogJoint(self.model, guide, args, kwargs, through=through)
            objective = Objective(guide, log_joint, args, kwargs)
            clock.lap("setup")
            start = None
            if checkpoint is not None:
                start = checkpoint.open(self._settings(), objective, clock, compare=self._is_fresh)
            if start is not None:
                objective.reread()
            else:
                start = self._warm_start(guide, log_joint, objective)
                objective.reread()  # the guide may have been split
                clock.lap("warm start")
                if checkpoint is not None and start is not None and start.growing is None:
                    checkpoint.begin(start)
            if start is None:
                report = Report(
                    stop_reason="interrupted by the user in the warm start", interrupted=True
                )
            elif start.growing is not None:
                # A posterior that isn't proper has no best flow: the Gaussian shows where.
                report = Report(stop_reason="not trained: the posterior may be improper")
            else:
                keeper = None if checkpoint is None else checkpoint.keeper()
                report = self._train(objective, log_joint, start, keeper)
            clock.lap("training")
            ended = not report.interrupted
            try:
                if start is not None and not isinstance(guide, AutoFlow):
                    start = elsewhere(objective)
                found = examine(objective, start, report)
            except KeyboardInterrupt:
                found, ended = glance(objective), False
            clock.lap("evaluation")
        if checkpoint is not None and ended:
            checkpoint.folder.remove()
        gradients = objective.gradients + found.gradients + (start.gradients if start else 0)
        return Posterior(
            guide=guide,
            log_joint=log_joint,
            pool=found.pool,
            weights=found.weights,
            verdict=found.verdict,
            report=dataclasses.replace(report, settings=self._asked()),
            cost={"gradients": gradients, "seconds": clock.total(), **clock.laps},
            seed=self.seed,
            args=args,
            kwargs=kwargs,
        )

    def _settings(self) -> dict[str, Any]:
        """All that alters a run, but for model, guide and arguments, which are looked at."""
        names = ("seed", "num_steps", "max_steps", "max_gradients", "num_particles", "compile")
        flow = self.flow if isinstance(self.flow, str) else getattr(self.flow, "__name__", None)
        settings = {name: getattr(self, name) for name in names}
        return {**settings, "learning_rate": self.learning_rate, "flow": flow}

    def _asked(self) -> dict[str, Any]:
        """Settings that aren't the default, but for seed and flow, which are kept elsewhere."""
        defaults = inspect.signature(FlowVI).parameters
        return {
            name: value
            for name, value in self._settings().items()
            if name not in ("seed", "flow") and value != defaults[name].default
        }

    @property
    def _is_fresh(self) -> bool:
        """Whether each run begins with a guide of its own; others are trained in place."""
        if self.guide is None:
            return not isinstance(self.flow, torch.nn.Module)
        return isinstance(self.guide, AutoFlow)

    def _guide(self, *args: Any, **kwargs: Any) -> AutoContinuous:
        guide = self.guide
        if guide is None:
            guide = AutoFlow(self.model, self.flow, self.init_loc_fn)
        if isinstance(guide, AutoFlow):
            guide = copy.deepcopy(guide) if self.guide is not None else guide
            guide.setup(*args, **kwargs)
            guide._check_unchanged(args, kwargs)
            return guide
        structure.check_data(structure.trace_model(guide.model, *args, **kwargs))
        # Other guides make their parameters in a first call; their global names are not used.
        with pyro.get_param_store().scope():
            guide(*args, **kwargs)
        check_density(guide, args, kwargs)
        return guide

    def _warm_start(
        self, guide: AutoContinuous, log_joint: LogJoint, objective: Objective
    ) -> Start | None:
        """Set the guide to a good start; None if the user interrupted the search."""
        if not isinstance(guide, AutoFlow):
            _, log_p, _ = objective.draw(256)
            if not bool(torch.isfinite(log_p).any()):
                raise InfeasibleModelError(
                    "The model's log density is not finite at any of 256 draws of the guide. "
                    "Check supports, scales and data, or start the guide elsewhere (init_loc_fn)."
                )
            loc = guide._init_loc().detach()
            return Start(loc, torch.eye(len(loc), device="cpu").to(loc))
        before, given = objective.score(), guide.state()
        try:
            start = find_start(log_joint, guide, SEARCHING * (self.max_gradients or math.inf))
        except KeyboardInterrupt:
            start = None
        objective.reread()
        # A guide that was trained before may be better than any Gaussian; and an interrupted
        # search leaves the guide half-way between two coordinate systems.
        if start is None or objective.score().gain_over(before)[0] < 0:
            guide.set_state(given)
            log_joint.forget()
            if start is not None and guide.noncentring is not None:
                start.places = None  # of other coordinates than the guide has again
        return start

    def _train(
        self, objective: Objective, log_joint: LogJoint, start: Start, keeper: Keeper | None
    ) -> Report:
        spent = start.gradients
        for part in objective.guide.modules():
            if isinstance(part, CholeskyAffine) and part.log_scale.requires_grad:
                part.measure_in_scales()  # so that one learning rate serves all units
        parameters = [*objective.parameters, *log_joint.parameters.values()]
        particles: tuple[int, ...] = PARTICLES if log_joint.mode != "sequential" else (8, 16)
        if self.num_particles is not None:
            particles = (self.num_particles,)
        most = self.max_steps or (FEW_STEPS if start.unseen else MAX_STEPS)
        cycles = _cycles(self.num_steps, most)
        if self.max_gradients is not None:
            particles = particles[:1]  # many steps of few draws lead farther for the same price
            steps = (self.max_gradients - spent) // objective.price(particles[0])
            limit = self.num_steps or self.max_steps or steps
            cycles = _budgeted(min(limit, steps), whole=self.num_steps is not None)
        if not cycles:
            price = objective.price(particles[0])
            return Report(
                stop_reason=f"the search took {spent:,} gradients, and a step takes {price}: "
                f"{self.max_gradients:,} pay for none"
            )
        schedule = Schedule(
            cycles=cycles,
            learning_rate=self.learning_rate,
            polish=0.3,
            # What is already as good as exact draws needs no more; with parameters in the model, a
            # small gap says nothing of what is still to gain.
            good_enough=0.7 * RELIABLE_GAP if not log_joint.parameters else -float("inf"),
        )

        def count(cycle: int) -> int:
            return particles[min(cycle, len(particles) - 1)]

        whole = ElboSteps(objective, self.compile, count)
        report = train(
            parameters,
            lambda cycle: objective.gradient(count(cycle)),
            objective.score,
            schedule,
            whole_step=whole,
            keeper=keeper,
            progress=self.progress,
            describe="FlowVI",
        )
        report.compiled = whole.choice
        return report


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()
        self.laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[f"seconds_{name.replace(' ', '_')}"] = now - self.last
        self.last = now

    def total(self) -> float:
        return self.last - self.start

    def state(self) -> dict[str, Any]:
        now = time.perf_counter()
        return {"laps": dict(self.laps), "lap": now - self.last, "total": now - self.start}

    def set_state(self, state: dict[str, Any]) -> None:
        now = time.perf_counter()
        self.laps, self.last, self.start = state["laps"], now - state["lap"], now - state["total"]


def _cycles(num_steps: int | None, max_steps: int) -> list[int]:
    """One cycle of ``num_steps``; or 400, 800, 1600, ... and what is left of ``max_steps``."""
    if num_steps is not None:
        return [num_steps]
    cycles: list[int] = []
    steps = min(FIRST_CYCLE, max_steps)
    while sum(cycles) + steps <= max_steps:
        cycles.append(steps)
        steps *= 2
    left = max_steps - sum(cycles)
    if left >= FIRST_CYCLE:
        cycles.append(left)
    else:
        cycles[-1] += left
    return cycles


def _budgeted(steps: int, *, whole: bool) -> list[int]:
    """Cycles of as many steps as a budget pays for: few, since each begins by stepping back."""
    if whole or steps <= 4 * FIRST_CYCLE:
        return [steps] if steps > 0 else []
    cycles, long = [FIRST_CYCLE, 2 * FIRST_CYCLE], MAX_STEPS
    while sum(cycles) + 2 * long <= steps:  # a generous budget needn't be spent
        cycles.append(long)
        long *= 2
    return [*cycles, steps - sum(cycles)]
