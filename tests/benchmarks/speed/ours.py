# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Our own contenders."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import sampling_speed
import targets
import torch
from contender import Contender, Facts, LeftOut, Spec
from models import model_and_args
from torch import Tensor
from torch_steps import count, drawing, maximum_likelihood

from pyro_flows import FlowVI, flows
from pyro_flows.density.fitting import Batches, Likelihood, LikelihoodSteps, Rows
from pyro_flows.distributions import Flow
from pyro_flows.inference.warm_start import Start
from pyro_flows.ops import alternating_masks
from pyro_flows.training import Score, train
from pyro_flows.training.flat import Flat
from pyro_flows.training.steps import Step
from pyro_flows.transforms import AffineCoupling, Layer, SplineCoupling

IAF_LAYERS = 3  # NumPyro's default

# Density: a training step of spline couplings.


def spline_flow(dim: int) -> Flow:
    """The flow whose peers are built alike."""
    return Flow(
        [
            SplineCoupling(
                dim, mask, hidden_dims=targets.HIDDEN, bins=targets.BINS, bound=targets.BOUND
            )
            for mask in alternating_masks(dim, targets.LAYERS)
        ]
    )


def density(spec: Spec, *, compiled: bool = False) -> Contender:
    """A maximum-likelihood step."""
    flow = spline_flow(spec["dim"])
    log_prob = torch.compile(flow.log_prob, fullgraph=True) if compiled else flow.log_prob
    return maximum_likelihood(
        log_prob, flow.parameters(), torch.as_tensor(targets.rows(spec["dim"]))
    )


def whole_density(spec: Spec) -> Contender:
    """Steps as ``FlowDensity(compile=True)`` takes them, of the same flow and rows."""
    x = torch.as_tensor(targets.rows(spec["dim"]))
    flow = spline_flow(spec["dim"])
    parameters = list(flow.parameters())
    flat = Flat(parameters)
    made = LikelihoodSteps(Likelihood(flow), Batches(Rows(x), len(x)), True)
    ready: list[Step] = []
    values: list[Tensor] = []

    def steps(n: int) -> None:
        if not ready:  # so that compiling is part of the first batch, as the others' is
            step = made(0, n, flat)
            if step is None:
                raise RuntimeError(made.choice)
            ready.append(step)
        for _ in range(n):
            value, _ = ready[0](targets.LEARNING_RATE)
        values[:] = [value]

    return Contender(steps, lambda: {"loss": -values[0].item()}, {"parameters": count(parameters)})


def matrix_products(spec: Spec) -> Contender:
    """The conditioners alone, forward and backward: what no such flow can be quicker than."""
    x = torch.as_tensor(targets.rows(spec["dim"]))
    layers: Any = spline_flow(spec["dim"]).transform.layers
    nets = [layer.conditioner for layer in layers]
    # All but the first are fed by a layer that is trained too.
    inputs = [x[:, layer.kept].requires_grad_(k > 0) for k, layer in enumerate(layers)]
    along = [torch.randn(len(x), net.out_dim) for net in nets]
    parameters = [p for net in nets for p in net.parameters()]

    def steps(n: int) -> None:
        for _ in range(n):
            for tensor in (*parameters, *inputs):
                tensor.grad = None
            outputs = [net(kept) for net, kept in zip(nets, inputs, strict=True)]
            torch.autograd.backward(outputs, along)

    return Contender(steps, facts={"parameters": count(parameters)})


# FlowVI: its training step, and whole runs.


class _Caught(BaseException):
    """No ``Exception``, so that nothing takes it for a step that failed."""


def training_step(
    model: Any,
    args: tuple[Any, ...],
    *,
    search: bool = True,
    compile: bool = False,
    **options: Any,
) -> Contender:
    """Steps as ``FlowVI`` takes them: what it hands to the training loop, trained by that loop.

    Every batch begins where FlowVI's training does. Scoring of the held-out draws, which comes
    once a cycle, is left out.

    Args:
        model: a Pyro model.
        args: its arguments.
        search: look for the best Gaussian first; a step's cost hardly depends on it.
        compile: as FlowVI takes it.
        **options: further ones of FlowVI's.
    """
    caught: list[Any] = []

    def catch(parameters: Any, gradient: Any, _: Any, schedule: Any, **kwargs: Any) -> None:
        caught.extend((list(parameters), gradient, schedule, kwargs))
        raise _Caught

    def anywhere(_: Any, guide: Any, *__: Any) -> Start:
        loc = guide._init_loc().detach()
        return Start(loc, torch.eye(len(loc)).to(loc))

    engine = FlowVI(model, progress=False, **_known({"compile": compile, **options}))
    with mock.patch("pyro_flows.inference.flow_vi.train", catch):
        if not search:
            engine._warm_start = anywhere.__get__(engine)  # type: ignore[method-assign]
        with contextlib.suppress(_Caught):
            engine.run(*args)
    if not caught:
        raise RuntimeError("FlowVI didn't train: its start was judged before.")
    parameters, gradient, schedule, kwargs = caught
    flat = Score(torch.zeros(2))

    def steps(n: int) -> None:
        once = dataclasses.replace(schedule, cycles=(n,), polish=None, good_enough=-math.inf)
        report = train(parameters, gradient, lambda: flat, once, **kwargs)
        if report.steps != n:
            raise RuntimeError(f"{n} steps were asked for, but {report.steps} taken.")

    def judge() -> Facts:
        whole = kwargs.get("whole_step")
        return {} if whole is None else {"step": whole.choice}

    return Contender(steps, judge, {"parameters": count(parameters)})


def _known(options: dict[str, Any]) -> dict[str, Any]:
    """The options, without a ``compile=`` that FlowVI doesn't take in this version."""
    if "compile" in inspect.signature(FlowVI).parameters:
        return options
    if options.pop("compile", False):
        raise LeftOut("FlowVI takes no compile= in this version")
    return options


def couplings(width: int, layers: int) -> Callable[[int], list[Layer]]:
    """Affine couplings; ``AutoFlow`` puts its affine behind them."""
    return lambda dim: [
        AffineCoupling(dim, mask, hidden_dims=(width,)) for mask in alternating_masks(dim, layers)
    ]


def vi_step(spec: Spec, *, like_iaf: bool = False, **options: Any) -> Contender:
    """An ELBO step of couplings like Pyro's, or as many and as large as the layers of an IAF."""
    model, args = model_and_args(spec)
    if like_iaf:
        flow = couplings(_iaf_width(spec["dim"]), IAF_LAYERS)
    else:
        flow = couplings(spec["width"], targets.COUPLINGS)
    return training_step(model, args, flow=flow, num_particles=targets.PARTICLES, **options)


def _iaf_width(dim: int) -> int:
    """The width with which couplings and affine come nearest to AutoIAFNormal's parameters."""
    # Its networks have two hidden layers as wide as the vector, and two outputs a coordinate.
    wanted = IAF_LAYERS * (4 * dim**2 + 4 * dim) - (dim * (dim + 1) // 2 + dim)

    def away(width: int) -> int:
        return abs(
            count(p for part in couplings(width, IAF_LAYERS)(dim) for p in part.parameters())
            - wanted
        )

    return min(range(1, 4 * dim + 2), key=away)


def growth(spec: Spec) -> Contender:
    """A step of the default flow, as one size grows."""
    model, args = model_and_args(spec)
    flow = partial(flows.default, layers=spec["layers"])
    return training_step(model, args, search=False, flow=flow, num_particles=spec["particles"])


def vi_total(spec: Spec, **options: Any) -> Contender:
    """Whole default runs, each with a seed of its own."""
    model, args = model_and_args(spec, torch.float64)
    options = _known(options)
    found: list[Any] = []

    def steps(n: int) -> None:
        for _ in range(n):
            seed = 2 * spec["round"] + len(found)
            found.append(FlowVI(model, seed=seed, progress=False, **options).run(*args))

    def judge() -> Facts:
        posterior = found[-1]
        _, log_p, log_q = posterior.sample_guide(100_000, seed=12345)
        draws = {name: value.numpy() for name, value in posterior.draws(10_000).items()}
        return {
            "gap": targets.eight_schools()[0] - float((log_p - log_q).mean()),
            "verdict": posterior.verdict.status,
            "gradients": int(posterior.cost["gradients"]),
            **targets.errors(**draws),
        }

    return Contender(steps, judge)


# Draws of autoregressive flows, as sampling_speed.py makes and trains them.


def sampling(spec: Spec) -> Contender:
    """Draws of a trained flow."""
    flow = sampling_speed.ours(spec["kind"])
    sampling_speed.train(flow, spec["training"], seed=0)
    return drawing(lambda: flow().sample((spec["draws"],)))


CONTENDERS: dict[tuple[str, str], Callable[[Spec], Contender]] = {
    ("density", "ours"): density,
    ("density", "ours compiled"): partial(density, compiled=True),
    ("density", "ours, whole step compiled"): whole_density,
    ("density", "matrix products"): matrix_products,
    ("vi_step", "ours"): vi_step,
    ("vi_step", "ours compiled"): partial(vi_step, compile=True),
    ("vi_step", "ours, IAF's size"): partial(vi_step, like_iaf=True),
    ("vi_step", "ours, IAF's size, compiled"): partial(vi_step, like_iaf=True, compile=True),
    ("vi_total", "ours"): vi_total,
    ("vi_total", "ours compiled"): partial(vi_total, compile=True),
    ("growth", "ours"): growth,
    ("sampling", "ours"): sampling,
}
