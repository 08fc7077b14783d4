# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What a run of FlowVI leaves on disk for another process to go on with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import pyro
import torch
from torch import Tensor

from pyro_flows.errors import PyroFlowsError
from pyro_flows.guides import AutoFlow, named_sites, structure
from pyro_flows.inference.mixtures import Mixture
from pyro_flows.inference.modes import Modes
from pyro_flows.inference.objectives import Objective
from pyro_flows.inference.randomness import Generators
from pyro_flows.inference.warm_start import Start
from pyro_flows.training.checkpoint import (
    Checkpoint,
    Keeper,
    Stateful,
    digest,
    layers,
    set_states,
    states,
)

STARTED, TRAINING = "start.pt", "training.pt"
# By how much log densities at the points may differ, as a share: they are the same but for
# rounding on another machine.
SAME = {torch.float64: 1e-9, torch.float32: 1e-4}


class RunCheckpoint:
    """The checkpoint of one run: what the warm start came to, and then the training.

    Args:
        path: of the folder.

    Raises:
        CheckpointError: something else is there.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.folder = Checkpoint(path, (STARTED, TRAINING))

    def open(
        self,
        settings: Mapping[str, Any],
        objective: Objective,
        clock: Stateful,
        *,
        compare: bool,
    ) -> Start | None:
        """Set guide and model to what the warm start left in the run that was interrupted.

        Args:
            settings: all that alters a run, as JSON holds it.
            objective: before the warm start.
            clock: of the run.
            compare: whether the guide begins as it did then: not one that is trained in place.

        Returns:
            What the warm start learned; None if there is no checkpoint.

        Raises:
            CheckpointError: it is of another run, or damaged.
        """
        self.objective = objective
        self.facts = {**settings, **_facts(objective)}
        self.parts: dict[str, Stateful] = {
            "objective": _Counts(objective),
            "clock": clock,
            "random numbers": Generators(),
        }
        if not self.folder.exists:
            self.folder.prepare()
            self.begun = _densities(objective, objective.log_joint._probe(), compare=compare)
            return None
        self.folder.check(self.facts)
        saved = self.folder.read(STARTED)
        self.folder.read(TRAINING)  # damage is told before anything is changed
        try:
            return self._restored(saved)
        except PyroFlowsError:
            raise
        except Exception as error:  # what isn't ours can fail in any way
            raise self.folder.damaged(error, STARTED) from error

    def begin(self, start: Start) -> None:
        """Write what the warm start came to; from here on there is a checkpoint."""
        guide, model = self.objective.guide, self.objective.log_joint.parameters
        state = {
            "begun": self.begun,
            "guide": guide.state_dict(),
            "modes": getattr(guide, "modes", 1),
            "model": {name: value.detach() for name, value in model.items()},
            "start": asdict(start),
            "parts": states(self.parts),
        }
        self.folder.begin(self.facts, {STARTED: state})

    def keeper(self) -> Keeper:
        """Of the training."""
        return Keeper(self.folder, TRAINING, self.parts)

    @torch.no_grad()
    def _restored(self, saved: dict[str, Any]) -> Start:
        objective, log_joint = self.objective, self.objective.log_joint
        guide, model = objective.guide, log_joint.parameters
        trained = {name: value.clone() for name, value in model.items()}
        _set(model, saved["model"])
        try:
            self._check(saved["begun"])
        except BaseException:
            _set(model, trained)
            raise
        if isinstance(guide, AutoFlow) and guide.modes != saved["modes"]:
            loc = guide._init_loc().to(next(guide.parameters()))
            one = torch.ones(saved["modes"], device="cpu").to(loc)
            eye = torch.eye(len(loc), device="cpu").to(loc)
            guide.split(one[:, None] * loc, one[:, None, None] * eye, one)
        guide.load_state_dict(saved["guide"])
        log_joint.forget()
        set_states(self.parts, saved["parts"])
        start = Start(**saved["start"])
        places, mixture = saved["start"]["places"], saved["start"]["mixture"]
        start.places = None if places is None else Modes(**places)
        start.mixture = None if mixture is None else Mixture(**mixture)
        return start

    def _check(self, begun: dict[str, Tensor]) -> None:
        """Raise CheckpointError unless model and guide have the same densities at the points."""
        found = _densities(self.objective, begun["points"], compare="guide" in begun)
        for name in found:
            there, here = begun[name], found[name]
            tolerance = SAME.get(there.dtype, 1e-4) * there.abs().clamp_min(1.0)
            same = (there == here) | (there.isnan() & here.isnan())
            if not bool((same | ((there - here).abs() <= tolerance)).all()):
                raise self.folder.of_another(
                    f"the log density of the {name} was {there.tolist()} at a few points, and is "
                    f"{here.tolist()} here"
                )


class _Counts:
    """What training changes in an objective, and in what its log joint knows of sizes."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def state(self) -> dict[str, Any]:
        objective = self.objective
        return {
            "gradients": objective.gradients,
            "edges": objective.edges,
            # It decides how many draws are scored together, and so the last digits of the sum.
            "row_bytes": objective.log_joint._row_bytes,
        }

    def set_state(self, state: dict[str, Any]) -> None:
        objective = self.objective
        objective.gradients, objective.edges = state["gradients"], state["edges"]
        objective.log_joint._row_bytes = state["row_bytes"]


def _facts(objective: Objective) -> dict[str, Any]:
    """What a run is of, as far as it can be told before the warm start."""
    guide, log_joint = objective.guide, objective.log_joint
    parameter = next(guide.parameters())
    return {
        "pyro": pyro.__version__,
        "guide": type(guide).__name__,
        "sites": {name: list(site["value"].shape) for name, site in named_sites(guide)},
        "dtype": str(parameter.dtype),
        "device": str(parameter.device),
        "flow's layers": digest(layers(guide)),
        "model's parameters": {n: list(p.shape) for n, p in log_joint.parameters.items()},
        "model's arguments": digest([objective.args, objective.kwargs]),
        "log joint's mode": log_joint.mode,
    }


def _densities(objective: Objective, points: Tensor, *, compare: bool) -> dict[str, Tensor]:
    """Log densities of the model at a few points, and of the guide if asked; nothing changes."""
    with structure.random_state_kept(), torch.no_grad():
        torch.manual_seed(20_115)
        # Asked for a gradient, the log joint goes the plain way and records nothing.
        found = {"points": points, "model": objective.log_joint(points.clone().requires_grad_())}
        # A guide may start where the model's parameters say, which are trained in place.
        if compare and not objective.log_joint.parameters:
            found["guide"] = objective.log_q(points)
    return {name: value.detach() for name, value in found.items()}


def _set(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.detach().copy_(values[name])
