# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Runs of FlowVI that are interrupted and gone on with end as if nothing had been, bit for bit."""

import functools
import itertools
import math
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal, AutoLowRankMultivariateNormal

from pyro_flows import AutoFlow, FlowVI, flows
from pyro_flows.errors import CheckpointError
from pyro_flows.inference import assessment, flow_vi
from pyro_flows.inference.objectives import Objective
from pyro_flows.inference.warm_start import Start
from pyro_flows.training import checkpoint, loop, whole_step
from pyro_flows.training.checkpoint import MARKER, Checkpoint, digest

from .models import SCORES, Y, gamma_rate, groups

ROOT = Path(__file__).parents[2]


class Killed(BaseException):
    """As if the process had been killed: nothing catches it."""


STARTS = []


def at_a_glance(objective, start, report):
    """Weights alone; what the warm start learned is compared as it is."""
    STARTS.append(start)
    return assessment.glance(objective)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short cycles and small pools; written every few steps, by a clock that counts looks."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(assessment, "POOL", 1000)
    monkeypatch.setattr(assessment, "SLOW_POOL", 300)
    monkeypatch.setattr(flow_vi, "Objective", functools.partial(Objective, heldout=512))
    monkeypatch.setattr(flow_vi, "examine", at_a_glance)
    monkeypatch.setattr(loop, "LOOK", 6)
    monkeypatch.setattr(flow_vi, "FIRST_CYCLE", 12)
    monkeypatch.setattr(flow_vi, "MAX_STEPS", 60)
    monkeypatch.setattr(flow_vi, "FEW_STEPS", 36)
    monkeypatch.setattr(flow_vi, "PARTICLES", (8, 16))
    monkeypatch.setattr(checkpoint, "now", itertools.count().__next__)
    monkeypatch.setattr(checkpoint, "EVERY", 4)
    monkeypatch.setattr(checkpoint, "SHARE", math.inf)


def two_modes():
    x = pyro.sample("x", dist.Normal(torch.zeros(()).double(), 5.0))
    pyro.sample("y", dist.Normal(x**2, 1.0), obs=torch.tensor(9.0))


def funnel():
    v = pyro.sample("v", dist.Normal(torch.zeros(()).double(), 3.0))
    x = pyro.sample("x", dist.Normal(torch.zeros(2), (v / 2).exp()).to_event(1))
    pyro.sample("y", dist.StudentT(3.0, x, 5.0).to_event(1), obs=torch.tensor([0.5, -1.0]))


def with_parameter(y):
    width = pyro.param("width", torch.tensor(3.0), constraint=dist.constraints.positive)
    mean = pyro.sample("mean", dist.Normal(0.0, width))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.StudentT(3.0, mean, 1.0), obs=y)


def subsampled(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y), subsample_size=2) as index:
        pyro.sample("y", dist.StudentT(4.0, mean, 1.0), obs=y[index])


def one_by_one(y):
    """Asks for a latent's value, so that draws are scored one after the other."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    scale = 1.0 if rate.item() > 0 else 2.0
    pyro.sample("y", dist.Exponential(scale * rate).expand([len(y)]).to_event(1), obs=y)


def from_anywhere(log_joint, guide, allowance):
    """A start without a search, which takes its time."""
    loc = guide._init_loc().detach()
    return Start(loc, torch.eye(len(loc)), gradients=1)


# Cases where the search is what matters.
SEARCHED = ("modes", "a funnel", "a hierarchy")


CASES = {
    "cycles": (gamma_rate, (Y,), {}),
    "a hierarchy": (groups, (SCORES,), {"max_steps": 40}),
    "a funnel": (funnel, (), {}),
    "rollbacks": (gamma_rate, (Y,), {}),
    "modes": (two_modes, (), {}),
    "a parameter of the model": (with_parameter, (Y,), {}),
    "minibatches": (subsampled, (Y,), {"num_steps": 30}),
    "one by one": (one_by_one, (Y,), {"num_steps": 30, "num_particles": 4}),
    "a budget": (gamma_rate, (Y,), {"max_gradients": 20_000, "max_steps": 40}),
    "another flow": (gamma_rate, (Y,), {"flow": lambda dim: flows.make("maf", dim)}),
    "whole steps": (gamma_rate, (Y,), {"compile": True}),
    "a diagonal normal": (gamma_rate, (Y,), {"guide": AutoDiagonalNormal}),
    "a normal of low rank": (groups, (SCORES,), {"guide": AutoLowRankMultivariateNormal}),
    "a guide of ours": (groups, (SCORES,), {"guide": lambda m: AutoFlow(m, init_scale=0.3)}),
}
SLOW = ("a hierarchy", "a normal of low rank", "another flow", "a guide of ours")
MARKS = dict.fromkeys(SLOW, pytest.mark.slow)
# What makes a case the one that it is called.
IS_ONE = {
    "cycles": lambda posterior: len(posterior.report.history["heldout_step"]) > 5,
    "a funnel": lambda posterior: not posterior.guide.noncentring.centred,
    "rollbacks": lambda posterior: posterior.report.rollbacks > 0,
    "modes": lambda posterior: posterior.guide.modes == 2,
    "a parameter of the model": lambda posterior: posterior.log_joint.parameters,
    "minibatches": lambda posterior: posterior.log_joint.stochastic,
    "one by one": lambda posterior: posterior.log_joint.mode == "sequential",
    "whole steps": lambda posterior: posterior.report.compiled.startswith("compiled"),
}


def engine(case, folder=None, **more):
    model, args, options = CASES[case]
    options = {**options, **more}
    if "guide" in options:
        options["guide"] = options["guide"](model)
    return FlowVI(model, seed=3, progress=False, checkpoint=folder, **options), args


def run(case, folder=None, **more):
    """As a new process would: nothing is left of what was trained before."""
    pyro.clear_param_store()
    made, args = engine(case, folder, **more)
    return made.run(*args)


@pytest.fixture
def stop(monkeypatch):
    """Ends a run before its step number ``at``, counted from when it is asked for."""
    gradient, inputs = Objective.gradient, flow_vi.ElboSteps.inputs
    left = [math.inf]

    def counted(function):
        def call(*args):
            left[0] -= 1
            if left[0] < 0:
                left[0] = math.inf
                raise stop.error
            return function(*args)

        return call

    monkeypatch.setattr(Objective, "gradient", counted(gradient))
    monkeypatch.setattr(flow_vi.ElboSteps, "inputs", counted(inputs))

    def stop(at, error=Killed):
        left[0], stop.error = at, error

    return stop


@pytest.fixture
def of_case(request, monkeypatch):
    """What a case asks for beside its arguments."""
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    case = params.get("case", "cycles")
    monkeypatch.setattr(whole_step, "_compile", lambda graph, inputs: graph)
    if case not in SEARCHED:
        monkeypatch.setattr(flow_vi, "find_start", from_anywhere)
    if case == "rollbacks":
        gradient = Objective.gradient

        def diverges(objective, particles):
            value, masked = gradient(objective, particles)
            return (value * math.nan if objective.gradients == 176 else value), masked

        monkeypatch.setattr(Objective, "gradient", diverges)


def killed(stop, at, case, folder, **more):
    stop(at)
    with pytest.raises(Killed):
        run(case, folder, **more)


def everything(posterior):
    report = posterior.report
    state = posterior.guide.state_dict()
    return {
        **{k: v.clone() for k, v in state.items() if isinstance(v, torch.Tensor)},
        **{f"model's {k}": v.clone() for k, v in posterior.model_state.items()},
        **{f"history's {k}": v for k, v in report.history.items()},
        **{name: getattr(posterior.pool, name) for name in ("z", "log_p", "log_q")},
        "weights": posterior.weights.log_weights,
        "start": digest(asdict(STARTS[-1])),
        "draws": next(iter(posterior.draws(50).values())),
        "facts": (
            *(posterior.verdict, report.steps, report.stop_reason, report.gaining),
            *(report.rollbacks, report.non_finite, report.compiled, report.interrupted),
            *(posterior.cost["gradients"], posterior.elbo, posterior.khat),
            *(getattr(posterior.guide, "modes", 1), posterior.log_joint.mode),
            posterior.log_joint._row_bytes,
        ),
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if name == "facts":
            assert value == other[name]
        else:
            np.testing.assert_array_equal(value, other[name], err_msg=name)


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


@pytest.mark.usefixtures("of_case")
@pytest.mark.parametrize("case", [pytest.param(c, marks=MARKS.get(c, ())) for c in CASES])
def test_it_ends_as_if_nothing_had_been(case, tmp_path, stop):
    plain = run(case)
    assert IS_ONE.get(case, bool)(plain)
    wanted = everything(plain)
    steps = plain.report.steps
    assert steps > 25
    folder = tmp_path / "fit.ckpt"
    for at in (2, 9, 11):  # before it is first written, in a cycle, and in a later one
        killed(stop, at, case, folder)
    assert sorted(contents(folder)) == [MARKER, "start.pt", "training.pt"]
    resumed = run(case, folder)
    assert_same(everything(resumed), wanted)
    assert resumed.cost["seconds"] > 0
    assert not folder.exists()


def test_a_checkpoint_changes_nothing(tmp_path):
    assert_same(everything(run("modes", tmp_path / "a")), everything(run("modes")))
    assert not (tmp_path / "a").exists()


def test_it_goes_on_from_the_warm_start(tmp_path, stop, monkeypatch):
    wanted = everything(run("modes"))
    killed(stop, 0, "modes", tmp_path / "a")
    assert sorted(contents(tmp_path / "a")) == [MARKER, "start.pt"]

    def searched(*args, **kwargs):
        raise AssertionError("it searched again")

    monkeypatch.setattr(flow_vi, "find_start", searched)
    assert_same(everything(run("modes", tmp_path / "a")), wanted)


@pytest.mark.usefixtures("of_case")
def test_it_goes_on_from_the_end_of_training(tmp_path, stop, monkeypatch):
    wanted = everything(run("cycles"))
    with monkeypatch.context() as patch:

        def killed_here(*args):  # when it is to be judged
            raise Killed

        patch.setattr(flow_vi, "examine", killed_here)
        with pytest.raises(Killed):
            run("cycles", tmp_path / "a")
    stop(0)  # no step is taken any more
    assert_same(everything(run("cycles", tmp_path / "a")), wanted)


@pytest.mark.usefixtures("of_case")
@pytest.mark.parametrize("case", ["cycles", "a parameter of the model", "a diagonal normal"])
def test_after_ctrl_c_the_same_call_goes_on(case, tmp_path, stop):
    """In the same process, where guides and parameters that are trained in place have moved."""
    wanted = everything(run(case))
    pyro.clear_param_store()
    made, args = engine(case, tmp_path / "a")
    stop(23, KeyboardInterrupt)
    first = made.run(*args)
    assert first.report.interrupted
    assert first.report.steps == 23
    assert (tmp_path / "a").exists()
    assert_same(everything(made.run(*args)), wanted)
    assert not (tmp_path / "a").exists()


@pytest.mark.usefixtures("of_case")
def test_ctrl_c_while_it_is_judged(tmp_path, monkeypatch):
    wanted = everything(run("cycles"))
    with monkeypatch.context() as patch:

        def interrupted(*args):
            raise KeyboardInterrupt

        patch.setattr(flow_vi, "examine", interrupted)
        assert "interrupted" in run("cycles", tmp_path / "a").verdict.reasons[0]
    assert_same(everything(run("cycles", tmp_path / "a")), wanted)


def test_ctrl_c_in_the_warm_start_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(flow_vi, "find_start", interrupted)
    assert run("cycles", tmp_path / "a").report.interrupted
    assert not (tmp_path / "a").exists()


@pytest.mark.usefixtures("of_case")
def test_the_world_keeps_its_random_numbers(tmp_path, stop):
    killed(stop, 9, "cycles", tmp_path / "a")
    before = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    run("cycles", tmp_path / "a")
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    assert torch.equal(before[0], after[0])
    assert (before[1] == after[1]).all()
    assert before[2] == after[2]


@pytest.mark.usefixtures("of_case")
def test_the_time_before_counts(tmp_path, stop):
    killed(stop, 9, "cycles", tmp_path / "a")
    saved = Checkpoint(tmp_path / "a", ["training.pt"])
    state = saved.read("training.pt")
    state["parts"]["clock"]["total"] += 1000.0
    state["parts"]["clock"]["lap"] += 900.0
    saved.write("training.pt", state)
    cost = run("cycles", tmp_path / "a").cost
    assert 1000.0 < cost["seconds"] < 1100.0
    assert 900.0 < cost["seconds_training"] < 1000.0
    assert cost["seconds_warm_start"] > 0


@pytest.mark.usefixtures("of_case")
def test_what_is_written_is_small(tmp_path, stop):
    killed(stop, 30, "cycles", tmp_path / "a")
    assert sum(map(len, contents(tmp_path / "a").values())) < 2**20


@pytest.mark.usefixtures("of_case")
class TestAnotherRun:
    """It is told what differs, and nothing is changed."""

    @pytest.fixture
    def saved(self, tmp_path, stop):
        killed(stop, 9, "cycles", tmp_path / "a")
        return tmp_path / "a"

    def refuses(self, saved, match, model=gamma_rate, args=(Y,), **options):
        before = contents(saved)
        made = FlowVI(model, **{"seed": 3, "progress": False, "checkpoint": str(saved), **options})
        with pytest.raises(CheckpointError, match=match) as info:
            made.run(*args)
        assert "is of another run: " in str(info.value)
        assert "To go on with it, fit as before; to begin anew, remove the" in str(info.value)
        assert contents(saved) == before
        return str(info.value)

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("seed", 4),
            ("num_steps", 5),
            ("max_steps", 50),
            ("max_gradients", 50_000),
            ("num_particles", 4),
            ("learning_rate", 0.02),
            ("compile", False),
            ("flow", "nsf"),
        ],
    )
    def test_other_settings(self, saved, option, value):
        told = self.refuses(saved, f"its {option} was ", **{option: value})
        assert f"is {value!r} here" in told

    def test_other_arguments(self, saved):
        other = Y.clone()
        other[2] += 1e-14
        self.refuses(saved, "its model's arguments differed", args=(other,))

    def test_another_number_of_them(self, saved):
        self.refuses(saved, "its model's arguments differed", args=(Y[:3],))

    def test_another_model_of_the_same_sites(self, saved):
        def model(y):
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.1))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Exponential(rate), obs=y)

        self.refuses(saved, "the log density of the model was .* at a few points", model)

    def test_another_model(self, saved):
        def model(y):
            pyro.sample("other", dist.Gamma(2.0, 1.0))

        self.refuses(saved, r"its sites was \{'rate': \[\]\} and is \{'other': \[\]\}", model)

    def test_another_guide(self, saved):
        guide = AutoDiagonalNormal(gamma_rate)
        self.refuses(saved, "its guide was 'AutoFlow' and is 'AutoDiagonalNormal'", guide=guide)

    def test_another_start_of_the_guide(self, saved):
        guide = AutoFlow(gamma_rate, init_scale=0.2)
        self.refuses(saved, "the log density of the guide was", guide=guide)

    def test_another_dtype(self, saved):
        guide = AutoFlow(gamma_rate, dtype=torch.float32)
        self.refuses(saved, "its dtype was 'torch.float64' and is 'torch.float32'", guide=guide)

    def test_parameters_of_the_model_are_as_they_were(self, tmp_path, stop):
        killed(stop, 9, "a parameter of the model", tmp_path / "a")

        def model(y):
            with_parameter(y + 1.0)

        pyro.get_param_store()["width"] = torch.tensor(7.0)
        self.refuses(tmp_path / "a", "the log density of the model was", model)
        assert pyro.param("width").item() == pytest.approx(7.0)


@pytest.mark.usefixtures("of_case")
class TestDamage:
    @pytest.fixture
    def saved(self, tmp_path, stop):
        killed(stop, 9, "cycles", tmp_path / "a")
        return tmp_path / "a"

    @pytest.mark.parametrize("name", [MARKER, "start.pt", "training.pt"])
    def test_a_truncated_file(self, saved, name):
        data = (saved / name).read_bytes()
        (saved / name).write_bytes(data[: len(data) // 2])
        before = contents(saved)
        with pytest.raises(CheckpointError, match=f"{name} is damaged, or was written by"):
            run("cycles", saved)
        assert contents(saved) == before

    def test_a_missing_start(self, saved):
        (saved / "start.pt").unlink()
        with pytest.raises(CheckpointError, match="start.pt is damaged, or was written by"):
            run("cycles", saved)

    @pytest.mark.parametrize("name", ["start.pt", "training.pt"])
    def test_a_state_of_something_else(self, saved, name):
        Checkpoint(saved, [name]).write(name, {"x": torch.zeros(3)})
        with pytest.raises(CheckpointError, match=f"{name} is damaged, or was written by"):
            run("cycles", saved)

    def test_a_folder_of_something_else(self, tmp_path, monkeypatch):
        (tmp_path / "thesis.tex").write_text("mine")

        def searched(*args, **kwargs):
            raise AssertionError("it is told before any work")

        monkeypatch.setattr(flow_vi, "find_start", searched)
        with pytest.raises(CheckpointError, match="is something else. It is left as it is"):
            run("cycles", tmp_path)
        assert contents(tmp_path) == {"thesis.tex": b"mine"}


@pytest.mark.slow
def test_compiled_steps(tmp_path, stop):
    """The same function is made again, and gives the same bits."""
    wanted = everything(run("whole steps"))
    if not dict(enumerate(wanted["facts"]))[6].startswith("compiled"):
        pytest.skip(f"no compiler here: {wanted['facts'][6]}")
    killed(stop, 21, "whole steps", tmp_path / "a")
    torch._dynamo.reset()
    assert_same(everything(run("whole steps", tmp_path / "a")), wanted)


@pytest.mark.usefixtures("of_case")
def test_steps_that_cannot_be_compiled_any_more(tmp_path, stop, monkeypatch):
    def missing(graph, inputs):
        raise RuntimeError("no compiler found")

    with monkeypatch.context() as patch:
        patch.setattr(whole_step, "_compile", lambda graph, inputs: graph)
        killed(stop, 9, "whole steps", tmp_path / "a")
    monkeypatch.setattr(whole_step, "_compile", missing)
    with pytest.raises(CheckpointError, match="its steps were compiled, and can't be here.*found"):
        run("whole steps", tmp_path / "a")


SCRIPT = """
import sys
import numpy as np
import torch
from pyro_flows import FlowVI
from pyro_flows.inference import assessment
from pyro_flows.training import checkpoint
from tests_models import SCORES, groups

torch.set_default_dtype(torch.float64)
torch.set_num_threads(1)
assessment.POOL, checkpoint.EVERY, checkpoint.SHARE = 1000, 0.0, 1e9
posterior = FlowVI(
    groups, seed=1, num_steps=150, num_particles=16, progress=False, checkpoint=sys.argv[1] or None
).run(SCORES)
np.savez(sys.argv[2], z=posterior.pool.z, **posterior.report.history)
"""


@pytest.mark.slow
def test_a_process_that_is_killed(tmp_path):
    """SIGKILL in the middle of training; a new process goes on."""
    (tmp_path / "fit.py").write_text(textwrap.dedent(SCRIPT))
    (tmp_path / "tests_models.py").write_text(Path(__file__).with_name("models.py").read_text())
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}", "OMP_NUM_THREADS": "1"}
    folder = tmp_path / "fit.ckpt"

    def begun(checkpoint, out):
        command = [sys.executable, str(tmp_path / "fit.py"), str(checkpoint), str(out)]
        return subprocess.Popen(command, env=env, stderr=subprocess.PIPE)

    process = begun(folder, tmp_path / "none.npz")
    deadline = time.monotonic() + 120
    while not (folder / "training.pt").exists() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert (folder / MARKER).exists()
    for checkpoint_, out in ((folder, "resumed.npz"), ("", "plain.npz")):
        process = begun(checkpoint_, tmp_path / out)
        assert process.wait(timeout=240) == 0, process.stderr.read()
        process.stderr.close()
    assert not folder.exists()
    assert not (tmp_path / "none.npz").exists()
    with np.load(tmp_path / "resumed.npz") as one, np.load(tmp_path / "plain.npz") as other:
        for name in other.files:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)
