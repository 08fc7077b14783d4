# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The compiled step: the same fit as without it, or a reason why there is none."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_flows import AutoFlow, FlowVI
from pyro_flows.errors import GuideError
from pyro_flows.guides import LogJoint
from pyro_flows.inference import Objective
from pyro_flows.inference.elbo_steps import ElboSteps
from pyro_flows.inference.randomness import seeded
from pyro_flows.ops.record import record as recorder
from pyro_flows.training import Schedule, train, whole_step
from pyro_flows.training.flat import Flat
from pyro_flows.training.steps import StepByStep, fresh_state, updated
from pyro_flows.transforms import SplineCoupling

Y = torch.tensor([2.0, -1.0, 0.5, 3.0])
COMPILED = "compiled: each step is one function"


def model(y):
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("groups", len(y)):
        effect = pyro.sample("effect", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal(effect, 1.0), obs=y)


def trained(compile, model=model, flow="default", steps=(40,), particles=(16,)):
    """Training as FlowVI does it, from the guide's start: the report, the choice, the guide."""
    with seeded(1):
        guide = AutoFlow(model, flow).setup(Y)
        log_joint = LogJoint(model, guide, (Y,), through=guide.noncentring)
        objective = Objective(guide, log_joint, (Y,), heldout=256)

        def count(cycle):
            return particles[min(cycle, len(particles) - 1)]

        whole = ElboSteps(objective, compile, count)
        report = train(
            objective.parameters,
            lambda cycle: objective.gradient(count(cycle)),
            objective.score,
            Schedule(cycles=steps, min_gain=-9.0, min_gain_se=0.0),
            whole_step=whole,
            progress=False,
        )
    return report, whole.choice, guide, objective.gradients


@pytest.fixture
def recorded_only(monkeypatch):
    """The recorded graphs as they are: what a compiler makes of them is its own affair."""
    return watched(monkeypatch, lambda graph, inputs: graph)


def watched(monkeypatch, compile_graph):
    """What is recorded, and what is compiled in its place."""
    recorded, compiled = [], []

    def record(*args, **options):
        recorded.append(recorder(*args, **options))
        return recorded[-1]

    def kept(graph, inputs):
        compiled.append(graph)
        return compile_graph(graph, inputs)

    monkeypatch.setattr(whole_step, "record", record)
    monkeypatch.setattr(whole_step, "_compile", kept)
    return recorded, compiled


def are_laid_out(recorded, compiled):
    """Whether what is compiled is recorded again from a layout, all at the first attempt."""
    return len(compiled) > 0 and recorded[1::2] == compiled and len(recorded) == 2 * len(compiled)


def two_splines(dim):
    masks = [False, True, True, True, True], [True, False, False, False, False]
    return [SplineCoupling(dim, mask, hidden_dims=(8,), bins=4) for mask in masks]


@pytest.mark.parametrize("flow", ["default", two_splines])
def test_the_recorded_step_gives_the_same_fit(recorded_only, flow):
    one, choice, guide, gradients = trained(False, flow=flow)
    assert choice == "not compiled: it was not asked for"
    other, choice, same, also = trained(True, flow=flow)
    assert choice == COMPILED
    assert gradients == also
    assert are_laid_out(*recorded_only)
    for name in ("elbo", "heldout_elbo"):
        first, second = (torch.tensor(report.history[name]) for report in (one, other))
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)
    parameters = dict(same.named_parameters())
    for name, value in guide.named_parameters():
        torch.testing.assert_close(value, parameters[name], rtol=1e-2, atol=1e-3)


def test_every_cycle_has_its_own_step(recorded_only):
    options = {"steps": (15, 30), "particles": (8, 16)}
    one, other = trained(False, **options), trained(True, **options)
    assert one[0].steps == other[0].steps == 45
    assert one[3] == other[3] == 15 * 8 + 30 * 16
    first, second = (torch.tensor(fit[0].history["elbo"]) for fit in (one, other))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_compiler_gives_the_same_fit(monkeypatch):
    seen = watched(monkeypatch, whole_step._compile)
    # The second finds the first in the compiler's cache: the data are another's.
    for count, y in enumerate((Y, Y + 1), start=1):
        fits = [FlowVI(model, seed=1, num_steps=40, compile=c, progress=False) for c in (0, 1)]
        one, other = (fit.run(y).report for fit in fits)
        assert other.compiled == COMPILED
        assert are_laid_out(*seen)
        assert len(seen[1]) == count
        assert one.history["heldout_elbo"][-1] == pytest.approx(
            other.history["heldout_elbo"][-1], abs=1e-3
        )


def test_auto_goes_by_the_number_of_steps(recorded_only, monkeypatch):
    assert trained("auto")[1] == (
        "not compiled: cycles of fewer than 8,000 steps are over before compiling is"
    )
    monkeypatch.setattr(ElboSteps, "pays", 40)
    assert trained("auto")[1] == COMPILED
    assert trained("auto", steps=(10, 40))[1] == (
        "compiled in 1 of 2 cycles; not always: cycles of fewer than 40 steps are over before "
        "compiling is"
    )
    assert trained("auto", steps=(40, 10))[1] == COMPILED, "the one there is is used again"


def test_without_a_compiler_steps_are_taken_by_calls(monkeypatch):
    def missing(graph, inputs):
        raise RuntimeError("No working C++ compiler found.\nSome more.")

    monkeypatch.setattr(whole_step, "_compile", missing)
    report, choice, _, _ = trained(True)
    assert choice == "not compiled: RuntimeError: No working C++ compiler found."
    assert report.history["elbo"].tolist() == trained(False)[0].history["elbo"].tolist()


def test_a_compiler_that_is_wrong_is_not_believed(monkeypatch):
    def wrong(graph, inputs):
        def step(*inputs):
            vector, mean, *rest = graph(*inputs)
            return vector, 1.01 * mean, *rest

        return step

    monkeypatch.setattr(whole_step, "_compile", wrong)
    assert "disagrees with the one it was made from" in trained(True)[1]


def subsampled(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(y), subsample_size=2) as rows:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])


def with_parameter(y):
    width = pyro.param("width", torch.tensor(1.0), constraint=dist.constraints.positive)
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, width), obs=y)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (subsampled, "the model draws random numbers of its own"),
        (with_parameter, "the log joint could not be recorded (the model has trainable"),
    ],
)
def test_what_cannot_be_one_function_says_why(recorded_only, model, reason):
    pyro.clear_param_store()
    assert trained(True, model)[1].startswith(f"not compiled: {reason}")


def test_compile_is_checked():
    with pytest.raises(GuideError, match='compile to be "auto", True or False, but got 3'):
        FlowVI(model, compile=3)
    assert FlowVI(model, compile=0).compile is False


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_optimiser_as_a_function_is_the_optimiser(dtype):
    torch.manual_seed(0)
    start = torch.randn(7, dtype=dtype)
    parameter = start.clone().requires_grad_()
    gradients = [torch.randn(7, dtype=dtype) * 10**k for k in (0, 0, 1, -1, 2, 0)]
    gradients[3] = torch.full_like(start, torch.nan)
    ahead = iter(gradients)

    def gradient():
        parameter.grad = next(ahead).clone()
        return parameter.detach().sum(), torch.zeros(())

    step, state = StepByStep(Flat([parameter]), gradient, 0.0), fresh_state(start)
    for rate, given in zip((0.1, 0.2, 0.1, 0.1, 0.05, 0.1), gradients, strict=True):
        step(rate)
        state = updated(state, given, torch.tensor(rate, dtype=dtype))
        torch.testing.assert_close(parameter.detach(), state[0])
