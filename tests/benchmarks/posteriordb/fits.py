# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The guides that are compared: ours, and Pyro's own trained as their tutorials train them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoMultivariateNormal,
    AutoNormalizingFlow,
)
from pyro.poutine.runtime import _DIM_ALLOCATOR
from torch import Tensor

from .checks import constrain
from .target import Sites, Target

Arrays: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray]

# The budget of Pyro's guides.
STEPS, PARTICLES = 4_000, 16


@dataclass(frozen=True)
class Fit:
    """A trained guide of a target.

    Attributes:
        sample: From a number and a seed to fresh draws of the raw guide ``(S, D)``, unconstrained,
            with log p and log q, ``(S,)``.
        draws: From a number to the draws that are handed over, constrained.
        gradients: Evaluations of the log joint's gradient.
        seconds: Wall time.
        status: The verdict, where the guide comes with one.
        details: Further figures to be kept.
    """

    sample: Callable[[int, int], Arrays]
    draws: Callable[[int], Sites]
    gradients: int
    seconds: float
    status: str | None = None
    details: dict[str, Any] = field(default_factory=dict)


Fitter: TypeAlias = Callable[[Target, int], Fit]


def flow_vi(target: Target, seed: int, **options: Any) -> Fit:
    """``FlowVI(model, seed=seed).run(...)``; no other setting unless ``options`` has one."""
    from pyro_flows import FlowVI

    pyro.clear_param_store()
    start = time.perf_counter()
    engine = FlowVI(target.model, seed=seed, progress=False, **options)
    posterior = engine.run(*target.args, **target.kwargs)
    seconds = time.perf_counter() - start
    return Fit(
        sample=lambda n, stream: posterior.sample_guide(n, seed=stream),
        draws=posterior.draws,
        gradients=int(posterior.cost["gradients"]),
        seconds=seconds,
        status=str(posterior.verdict.status),
        details={
            "user_khat": float(posterior.khat),
            "reasons": list(posterior.verdict.reasons),
            "steps": posterior.report.steps,
            "stopped": posterior.report.stop_reason,
            "mode": posterior.log_joint.mode,
            "compiled": posterior.report.compiled,
            "cost": {name: float(value) for name, value in posterior.cost.items()},
        },
    )


def pyro_guide(make: Callable[[Any], Any], target: Target, seed: int) -> Fit:
    """One of Pyro's guides, by ``SVI`` with ``ClippedAdam``, 1e-2 decayed to 1e-3.

    The model it sees is one flat vector and a factor, the target's log joint: all particles of a
    step are then scored at once, and no model is left out for how its author wrote it.
    """
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        start = time.perf_counter()
        guide = make(_flat(target))
        optimiser = pyro.optim.ClippedAdam({"lr": 1e-2, "lrd": 0.1 ** (1 / STEPS)})
        elbo = Trace_ELBO(num_particles=PARTICLES, vectorize_particles=True, max_plate_nesting=0)
        svi = SVI(guide.model, guide, optimiser, elbo)
        for _ in range(STEPS):
            svi.step()
        seconds = time.perf_counter() - start
        posterior = guide.get_posterior()
    finally:
        torch.set_default_dtype(default)

    def sample(count: int, stream: int) -> Arrays:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream)
            z = posterior.sample((count,))
            log_q = posterior.log_prob(z)
            return z.numpy(), target.log_joint(z).numpy(), log_q.numpy()

    return Fit(
        sample=sample,
        draws=lambda n: constrain(target, torch.as_tensor(sample(n, seed)[0]))[0],
        gradients=STEPS * PARTICLES,
        seconds=seconds,
    )


def _flat(target: Target) -> Callable[[], None]:
    dim = target.dim  # looked up outside of any plate, for which it would be kept otherwise

    def model() -> None:
        # Masked: flat, and yet it can be sampled, which Pyro's guides ask for.
        flat_prior = dist.Normal(torch.zeros(dim), 1.0).to_event(1).mask(False)
        z = pyro.sample("z", flat_prior)
        flat = z.reshape(-1, dim)
        pyro.factor("log_joint", _score(target, flat).reshape(z.shape[:-1]))

    return model


def _score(target: Target, z: Tensor) -> Tensor:
    # Not Target.log_joint: that one has no need of gradients through chunks.
    with pyro.validation_enabled(False), poutine.block(), _no_plates():
        return torch.func.vmap(target._log_joint_at)(z)


@contextmanager
def _no_plates() -> Iterator[None]:
    """Inside, the particles' plate takes no dimension: the target's own plates begin at -1."""
    taken = _DIM_ALLOCATOR._stack
    _DIM_ALLOCATOR._stack = []
    try:
        yield
    finally:
        _DIM_ALLOCATOR._stack = taken


def _iaf(model: Any) -> Any:
    return AutoIAFNormal(model, num_transforms=3)


def _splines(model: Any) -> Any:
    from pyro.distributions.transforms import iterated, spline_coupling

    return AutoNormalizingFlow(model, lambda dim: iterated(4, spline_coupling, dim))


# Of a budget what is kept for judging the guide: mostly enough, and bars.py looks.
JUDGING = 11_000


def _flow_within(gradients: int) -> Fitter:
    """The default fit with a budget of gradients, those for judging it included."""
    return lambda target, seed: flow_vi(target, seed, max_gradients=gradients - JUDGING)


GUIDES: dict[str, Fitter] = {
    "flow": flow_vi,
    "flow_compiled": lambda target, seed: flow_vi(target, seed, compile=True),
    "flow_70k": _flow_within(70_000),
    "flow_100k": _flow_within(100_000),
    "flow_500k": _flow_within(500_000),
    "auto_diagonal_normal": lambda t, s: pyro_guide(AutoDiagonalNormal, t, s),
    "auto_multivariate_normal": lambda t, s: pyro_guide(AutoMultivariateNormal, t, s),
    "auto_iaf_normal": lambda t, s: pyro_guide(_iaf, t, s),
    "auto_normalizing_flow": lambda t, s: pyro_guide(_splines, t, s),
}
