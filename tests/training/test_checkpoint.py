# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Training that is interrupted and gone on with; files that are damaged, foreign or hostile."""

import array
import copy
import hashlib
import io
import itertools
import json
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_flows.errors import CheckpointError
from pyro_flows.training import Schedule, Score, checkpoint, loop, train
from pyro_flows.training.checkpoint import DRAFT, MARKER, Checkpoint, Keeper, digest
from pyro_flows.training.randomness import TorchGenerators
from pyro_flows.training.steps import StepByStep

FACTS = {"seed": 0, "sites": {"x": [3]}}


class Killed(BaseException):
    """As if the process had been killed: nothing catches it."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No waiting for the disk, and looks at the objective in short cycles, too."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(loop, "LOOK", 5)


@pytest.fixture
def made(tmp_path):
    """A checkpoint with one state."""
    made = Checkpoint(tmp_path / "fit.ckpt", ["one.pt", "two.pt"])
    made.begin(FACTS, {"one.pt": {"x": torch.arange(1000.0)}})
    return made


def again(path):
    return Checkpoint(path, ["one.pt", "two.pt"])


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


class TestFiles:
    def test_states_come_back(self, made):
        state = {
            "tensors": [torch.randn(3, dtype=torch.float32), torch.tensor(7), torch.tensor(True)],
            "plain": [1, -(2**70), 0.1, math.inf, None, True, "é", (1, (2, 3))],
            "names": {0: {"step": torch.tensor(3.0)}},
        }
        made.write("two.pt", state)
        found = again(made.path).read("two.pt")
        assert found["plain"] == state["plain"]
        assert isinstance(found["plain"][-1], tuple)
        assert all(map(torch.equal, found["tensors"], state["tensors"]))
        assert [t.dtype for t in found["tensors"]] == [t.dtype for t in state["tensors"]]
        assert again(made.path).read("one.pt")["x"].sum() == 499_500

    def test_there_is_none_until_it_is_whole(self, tmp_path):
        made = again(tmp_path / "a" / "b")
        assert not made.exists
        made.prepare()
        assert not made.path.exists(), "it was tried out, and nothing is left of it"
        made.begin(FACTS, {})
        assert made.exists
        assert made.read("one.pt") is None

    def test_removing_leaves_nothing_but_what_is_the_users(self, made):
        (made.path / "mine").write_text("1")
        made.remove()
        assert contents(made.path) == {"mine": b"1"}
        made.remove()
        (made.path / "mine").unlink()
        made.remove()
        assert not made.path.exists()
        made.remove()

    @pytest.mark.parametrize("calls", range(8))
    def test_a_kill_in_the_middle_of_writing_loses_nothing(self, made, monkeypatch, calls):
        """Whatever file operation it is, the older state or the new one is there, whole."""
        left = iter(range(calls))

        def killed(function):
            def call(*args, **kwargs):
                if next(left, None) is None:
                    raise Killed
                return function(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for place, name in ((Path, "open"), (Path, "replace"), (os, "fsync"), (os, "close")):
                patch.setattr(place, name, killed(getattr(place, name)))
            try:
                made.write("one.pt", {"x": torch.zeros(2)})
                whole = True
            except Killed:
                whole = False
        assert whole == (calls > 4)
        found = again(made.path).read("one.pt")["x"]
        assert len(found) == (2 if calls > 2 else 1000)
        made.write("one.pt", {"x": torch.zeros(3)})
        assert len(again(made.path).read("one.pt")["x"]) == 3
        made.remove()
        assert not made.path.exists()

    def test_half_a_write_is_only_a_draft(self, made, monkeypatch):
        class Half(io.FileIO):
            def write(self, data):
                super().write(data[: len(data) // 2])
                raise Killed

        monkeypatch.setattr(Path, "open", lambda path, mode: Half(path, mode))
        with pytest.raises(Killed):
            made.write("one.pt", {"x": torch.zeros(2)})
        assert len(again(made.path).read("one.pt")["x"]) == 1000

    @pytest.mark.parametrize("at", ["one.pt", MARKER])
    def test_a_kill_in_making_or_removing_leaves_a_free_place(self, made, at, monkeypatch):
        put, path = Checkpoint._put, made.path

        def killed(self, name, data):
            put(self, name, data[:10] if name == at else data)
            if name == at:
                (self.path / at).rename(self.path / (at + DRAFT))
                raise Killed

        made.remove()
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "_put", killed)
            with pytest.raises(Killed):
                made.begin(FACTS, {"one.pt": {"x": torch.zeros(5)}})
        free = again(path)
        assert path.exists()
        assert not free.exists
        free.prepare()
        free.begin(FACTS, {})
        assert free.read("one.pt") is None, "what was half made is not taken for its own"

    def test_an_empty_folder_is_a_new_name(self, tmp_path):
        assert not again(tmp_path).exists

    def test_what_cannot_be_written_is_said_before_the_work(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        with pytest.raises(CheckpointError, match="can't be written .*Not a directory.* None for"):
            again(tmp_path / "file" / "fit.ckpt").prepare()
        assert contents(tmp_path) == {"file": b"mine"}

    def test_what_can_no_longer_be_written_is_a_warning(self, tmp_path, monkeypatch):
        def full(self, name, data):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Checkpoint, "_put", full)
        made = again(tmp_path / "a")
        with pytest.warns(
            UserWarning, match="couldn't be written; the fit goes on without.*No sp"
        ):
            made.begin(FACTS, {})
        assert not made.exists

    @pytest.mark.parametrize("path", [3, b"fit", True])
    def test_what_is_no_path(self, path):
        with pytest.raises(CheckpointError, match="name of a folder, but got"):
            again(path)


class TestForeign:
    def test_a_file_and_a_folder_of_something_else_are_left_alone(self, tmp_path):
        (tmp_path / "file").write_text("mine")
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "thesis.tex").write_text("mine")
        (tmp_path / "folder" / "one.pt").write_text("mine, too")
        (tmp_path / "link").symlink_to(tmp_path / "nowhere")
        before = contents(tmp_path / "folder")
        for name in ("file", "folder", "link"):
            with pytest.raises(CheckpointError, match="is something else. It is left as it is"):
                again(tmp_path / name)
        assert contents(tmp_path / "folder") == before
        assert (tmp_path / "file").read_text() == "mine"
        assert not (tmp_path / "nowhere").exists()

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "{}", '"x"', '{"format": 1}', '{"format": 1, "facts": 3}', "\xff"]
    )
    def test_another_json(self, made, text):
        (made.path / MARKER).write_text(text, encoding="latin-1")
        with pytest.raises(CheckpointError, match="checkpoint.json is damaged, or was written by"):
            again(made.path).check(FACTS)
        assert (made.path / MARKER).read_text(encoding="latin-1") == text

    def test_another_format(self, made):
        config = json.loads((made.path / MARKER).read_text())
        (made.path / MARKER).write_text(json.dumps({**config, "format": 99}))
        with pytest.raises(CheckpointError, match="has format 99, but this version .* reads"):
            again(made.path).check(FACTS)

    def test_other_facts_are_told(self, made):
        again(made.path).check(FACTS)
        with pytest.raises(CheckpointError) as info:
            again(made.path).check({"seed": 1, "sites": {"x": [4]}, "new": 2})
        assert (
            "is of another run: its seed was 0 and is 1 here; its sites was {'x': [3]} and is "
            "{'x': [4]} here; its new was None and is 2 here. To go on with it, fit as before; "
            "to begin anew, remove the folder or give checkpoint= another name."
        ) in str(info.value)

    @pytest.mark.parametrize("name", ["torch", "pyro_flows"])
    def test_other_versions_are_told(self, made, name):
        config = json.loads((made.path / MARKER).read_text())
        config["facts"][name] = "0.0.1"
        (made.path / MARKER).write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match=f"its {name} was '0.0.1' and is '"):
            again(made.path).check(FACTS)

    def test_any_damage_is_seen(self, made):
        whole = (made.path / "one.pt").read_bytes()
        places = [0, 10, 64, 65, len(whole) // 2, len(whole) - 1]
        damaged = [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in places]
        for data in [*damaged, b"", whole[:40], whole[:-1], whole[: len(whole) // 2], whole * 2]:
            (made.path / "one.pt").write_bytes(data)
            with pytest.raises(CheckpointError, match="one.pt is damaged, or was written by"):
                again(made.path).read("one.pt")
            assert (made.path / "one.pt").read_bytes() == data

    @pytest.mark.parametrize("as_zip", [True, False])
    def test_no_code_is_run(self, made, as_zip, tmp_path):
        class Hostile:
            def __reduce__(self):
                return os.mkdir, (str(tmp_path / "harm"),)

        buffer = io.BytesIO()
        if as_zip:
            torch.save({"x": Hostile()}, buffer)
        else:
            pickle.dump(Hostile(), buffer)
        data = buffer.getvalue()
        signed = hashlib.sha256(data).hexdigest().encode() + b"\n" + data
        for content in (data, signed):
            (made.path / "one.pt").write_bytes(content)
            with pytest.raises(CheckpointError, match="one.pt is damaged, or was written by"):
                again(made.path).read("one.pt")
            assert (made.path / "one.pt").read_bytes() == content
        assert not (tmp_path / "harm").exists()
        pickle.loads(pickle.dumps(Hostile()))
        assert (tmp_path / "harm").exists(), "it would have done harm"


class TestDigest:
    def test_equal_values_have_equal_ones(self):
        def values():
            yield torch.arange(6.0).reshape(2, 3)
            yield torch.arange(6.0).reshape(3, 2).T
            yield np.arange(6)
            yield np.array(["a", "b"], dtype=object)
            yield {"x": [1, (2.0, None)], "y": torch.zeros(0)}
            yield torch.tensor(2.0)
            yield torch.tensor([True, False])
            yield torch.zeros(2, dtype=torch.bfloat16)
            yield [object()]
            yield array.array("d", [1.0])
            yield np.float64(3.0)

        first, second = [digest(v) for v in values()], [digest(v) for v in values()]
        assert first == second
        assert len(set(first)) == len(first)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            (torch.zeros(2), torch.zeros(3)),
            (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
            (torch.zeros(2), -torch.zeros(2)),
            (torch.zeros(2, 3), torch.zeros(3, 2)),
            ([1, 2], [12]),
            ([[1], 2], [1, [2]]),
            ((1, 2), [1, 2]),
            (1, True),
            (1, 1.0),
            ("1", 1),
            ({"a": 1}, {"a": 2}),
            ({"a": 1}, {"b": 1}),
            (None, 0),
        ],
    )
    def test_others_have_others(self, one, other):
        assert digest(one) != digest(other)

    def test_tables(self):
        pandas = pytest.importorskip("pandas")
        table = pandas.DataFrame({"x": [1.0, 2.0], "y": ["a", "b"]})
        assert digest(table) == digest(table.copy())
        assert digest(table) != digest(table.assign(x=[1.0, 2.5]))
        assert digest(table) != digest(table.rename(columns={"x": "z"}))
        assert digest(table["x"]) != digest(table["x"] + 1)


TARGET = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)


class Problem:
    """A noisy quadratic with matrices, a buffer, masked terms and divergence on request.

    Args:
        stop: the gradient before which all is over.
        blow_up: cycles in which the objective is NaN.
        fall: the gradient from which on the objective is far lower.
    """

    def __init__(self, stop=None, error=Killed, blow_up=(), fall=math.inf, whole=False):
        self.x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        self.w = torch.ones(2, 2, dtype=torch.float32, requires_grad=True)
        self.running = torch.zeros(3, dtype=torch.float64)
        self.seen = torch.zeros((), dtype=torch.long)
        self.calls, self.stop, self.error, self.blow_up = 0, stop, error, blow_up
        self.fall = fall
        self.whole = Whole(self) if whole else None

    def state(self):
        return {"calls": self.calls}

    def set_state(self, state):
        self.calls = state["calls"]

    def gradient(self, cycle):
        if self.calls == self.stop:
            raise self.error
        self.calls += 1
        x = self.x.detach()
        self.x.grad = x - TARGET + 0.3 * torch.randn(3)
        self.w.grad = self.w.detach() - 0.5 + torch.randn(2, 2).float()
        self.running.lerp_(x, 0.1)
        self.seen += 1
        if self.calls % 7 == 0:
            self.x.grad[0] = math.nan
        value = -0.5 * (x - TARGET).square().sum()
        worse = math.nan if cycle in self.blow_up else 1000.0 * (self.calls > self.fall)
        return value + 0.1 * torch.randn(()) - worse, torch.tensor(int(self.calls % 7 == 0))

    def score(self):
        value = -0.5 * (self.x.detach() - TARGET).square().sum() - 0.1 * self.running.sum().abs()
        value = value - 0.5 * (self.w.detach().double() - 0.5).square().sum()
        return Score(value + torch.linspace(-1, 1, 51, dtype=torch.float64), -float(value))

    def train(self, folder=None, progress=False, **schedule):
        keeper = None
        if folder is not None:
            path = Checkpoint(folder, ["training.pt"])
            if not path.exists:
                path.begin(FACTS, {})
            keeper = Keeper(path, "training.pt", {"random": TorchGenerators(), "problem": self})
        torch.manual_seed(0)
        schedule = Schedule(**{"cycles": (20, 40), "learning_rate": 0.1, **schedule})
        self.report = train(
            [self.x, self.w],
            self.gradient,
            self.score,
            schedule,
            buffers=[self.running, self.seen],
            whole_step=self.whole,
            keeper=keeper,
            progress=progress,
        )
        return self


class Whole:
    """Takes every second cycle's steps itself, by plain steps down the gradient."""

    def __init__(self, problem):
        self.problem, self.asked = problem, 0

    def __call__(self, cycle, steps, flat):
        self.asked += 1
        return self.again(cycle, flat) if self.asked % 2 else None

    def again(self, cycle, flat):
        return Descent(self.problem, cycle, flat)

    def state(self):
        return self.asked

    def set_state(self, state):
        self.asked = state


class Descent:
    def __init__(self, problem, cycle, flat):
        self.problem, self.cycle, self.flat = problem, cycle, flat
        self.speed = [torch.zeros_like(vector) for vector in flat.vectors]

    def __call__(self, rate):
        found = self.problem.gradient(self.cycle)
        for vector, speed, grad in zip(
            self.flat.vectors, self.speed, self.flat.gather(), strict=True
        ):
            speed.mul_(0.9).add_(grad.nan_to_num())
            vector.sub_(rate * speed)
        self.flat.write()
        return found

    def state(self):
        return self.speed

    def set_state(self, state):
        self.speed = state


def everything(problem):
    report = problem.report
    return {
        "x": problem.x.detach().clone(),
        "w": problem.w.detach().clone(),
        "running": problem.running.clone(),
        "seen": problem.seen.clone(),
        "random": torch.get_rng_state(),
        **{name: torch.as_tensor(v) for name, v in report.history.items()},
        "facts": (
            *(report.steps, report.stop_reason, report.gaining, report.rollbacks),
            *(report.non_finite, report.interrupted, problem.calls),
        ),
    }


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if name == "facts":
            assert value == other[name]
        else:
            np.testing.assert_array_equal(value, other[name], err_msg=name)


SCHEDULES = {
    "cycles": ({}, {}),
    "polishes": ({}, {"polish": 0.3, "min_gain": 9.0, "cycles": (15, 30, 30)}),
    "rollbacks": ({"blow_up": (0, 1)}, {"cycles": (15, 20, 60)}),
    "the only cycle diverges": ({"blow_up": (0,)}, {"cycles": (100,)}),
    "a fall": ({"fall": 33}, {}),
    "finite data": (
        {},
        {
            "score_every": 4,
            "patience": 3,
            "horizon": 10,
            "weight_decay": 0.1,
            "learning_rate": 2.0,
            "cycles": (60, 60),
        },
    ),
    "good enough": ({}, {"good_enough": 0.4, "cycles": (30,) * 3}),
    "whole steps": ({"whole": True}, {"cycles": (15, 15, 15), "min_gain": -9.0}),
}


@pytest.fixture
def every(monkeypatch):
    """The checkpoint is written every so many steps, by a clock that counts looks."""

    def every(count):
        monkeypatch.setattr(checkpoint, "now", itertools.count().__next__)
        monkeypatch.setattr(checkpoint, "EVERY", count)
        monkeypatch.setattr(checkpoint, "SHARE", math.inf)

    return every


class TestTraining:
    @pytest.mark.parametrize("case", SCHEDULES)
    def test_it_ends_as_if_nothing_had_been(self, case, tmp_path, every):
        options, schedule = SCHEDULES[case]
        plain = Problem(**options).train(**schedule)
        wanted = everything(plain)
        every(3)
        assert_same(everything(Problem(**options).train(tmp_path / "whole", **schedule)), wanted)
        last = plain.calls - 1
        for stop in (0, 1, 17, 21, 33, 37, 52, last):
            folder = tmp_path / str(stop)
            for at in (min(stop, last), min(stop + 9, last)):  # killed twice
                with pytest.raises(Killed):
                    Problem(stop=at, **options).train(folder, **schedule)
            assert_same(everything(Problem(**options).train(folder, **schedule)), wanted)

    def test_wherever_it_is_written(self, tmp_path, every):
        """After each single step, a cycle's last one among them."""
        wanted = everything(Problem().train())
        every(1)
        for stop in range(12, 25):
            with pytest.raises(Killed):
                Problem(stop=stop).train(tmp_path / str(stop))
            assert_same(everything(Problem().train(tmp_path / str(stop))), wanted)

    def test_the_cases_are_what_they_are_called(self):
        done = {
            case: Problem(**options).train(**schedule)
            for case, (options, schedule) in SCHEDULES.items()
        }
        reports = {case: problem.report for case, problem in done.items()}
        assert reports["rollbacks"].rollbacks == 2
        assert reports["a fall"].rollbacks == 1
        assert reports["the only cycle diverges"].rollbacks > 0
        assert reports["polishes"].steps > 45
        assert reports["cycles"].non_finite > 0
        assert reports["finite data"].steps < 120, "patience ended a cycle"
        assert "as small as is asked for" in reports["good enough"].stop_reason
        assert done["whole steps"].whole.asked == 3

    def test_it_is_gone_on_with_and_not_begun_anew(self, tmp_path, every):
        every(1)
        with pytest.raises(Killed):
            Problem(stop=50).train(tmp_path / "a")
        resumed = Problem()
        calls = resumed.gradient
        counted = []
        resumed.gradient = lambda cycle: (counted.append(cycle), calls(cycle))[1]
        assert resumed.train(tmp_path / "a").calls == 60
        assert len(counted) == 10

    def test_after_its_end_nothing_is_trained_again(self, tmp_path):
        wanted = everything(Problem().train(tmp_path / "a"))
        ended = Problem(stop=0)
        assert_same(everything(ended.train(tmp_path / "a")), wanted)

    def test_after_ctrl_c_the_best_is_kept_and_it_can_be_gone_on_with(self, tmp_path, every):
        wanted = everything(Problem().train())
        every(1)
        stopped = Problem(stop=30, error=KeyboardInterrupt).train(tmp_path / "a")
        assert stopped.report.interrupted
        assert stopped.report.steps == 30
        assert stopped.score().mean == stopped.report.history["heldout_elbo"].max()
        resumed = Problem().train(tmp_path / "a")
        assert not resumed.report.interrupted
        assert_same(everything(resumed), wanted)

    def test_another_start_is_told(self, tmp_path):
        Problem().train(tmp_path / "a")
        other = Problem()
        with torch.no_grad():
            other.x += 3.0
        before = other.x.detach().clone()
        with pytest.raises(CheckpointError, match="of another run: before training its ELBO was"):
            other.train(tmp_path / "a")
        assert torch.equal(other.x.detach(), before)

    def test_a_state_that_is_no_training_is_told(self, tmp_path):
        Problem().train(tmp_path / "a")
        Checkpoint(tmp_path / "a", ["training.pt"]).write("training.pt", {"training": {"x": 1}})
        with pytest.raises(CheckpointError, match="training.pt is damaged"):
            Problem().train(tmp_path / "a")

    def test_the_clock_goes_on(self, tmp_path, every, monkeypatch):
        """Of 200 seconds, 100 were used up before the kill; those in between don't count."""
        clock = [0.0]
        monkeypatch.setattr(loop, "now", lambda: clock[0])
        every(1)

        class Slow(Problem):
            def gradient(self, cycle):
                clock[0] += 2.0
                return super().gradient(cycle)

        limits = {"max_seconds": 200.0, "cycles": (10_000,)}
        wanted = everything(Slow().train(**limits))
        clock[0] = 0.0
        with pytest.raises(Killed):
            Slow(stop=50).train(tmp_path / "a", **limits)
        clock[0] += 700.0
        resumed = Slow().train(tmp_path / "a", **limits)
        assert resumed.report.steps == 100
        assert_same(everything(resumed), wanted)

    def test_a_full_disk_is_a_warning(self, tmp_path, every, monkeypatch):
        every(1)
        with pytest.raises(Killed):
            Problem(stop=20).train(tmp_path / "a")
        before = contents(tmp_path / "a")
        wanted = everything(Problem().train())

        def full(self, name, data):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "_put", full)
            with pytest.warns(UserWarning, match="couldn't be written; the fit goes on.*No space"):
                assert_same(everything(Problem().train(tmp_path / "a")), wanted)
        assert contents(tmp_path / "a") == before
        assert_same(everything(Problem().train(tmp_path / "a")), wanted)

    def test_the_bar_goes_on(self, tmp_path, every, capsys):
        every(1)
        with pytest.raises(Killed):
            Problem(stop=50).train(tmp_path / "a")
        Problem().train(tmp_path / "a", progress=True)
        assert "60/60" in capsys.readouterr().err


def test_it_is_written_once_in_a_while(tmp_path, monkeypatch):
    """At most so often, and never so often that it takes more than its share."""
    clock, written = [0.0], []
    monkeypatch.setattr(checkpoint, "now", lambda: clock[0])
    keeper = Keeper(Checkpoint(tmp_path / "a", ["t.pt"]), "t.pt", {})
    state = TorchGenerators()

    def write(name, _):
        clock[0] += cost
        written.append(clock[0])

    monkeypatch.setattr(keeper.checkpoint, "write", write)
    cost = 0.0
    for _ in range(600):
        clock[0] += 1.0
        keeper.look(state)
    assert written == [60.0 * i for i in range(1, 11)]
    cost = 30.0
    written.clear()
    for _ in range(3000):
        clock[0] += 1.0
        keeper.look(state)
    gaps = np.diff(written)
    assert len(gaps) > 3
    assert (gaps[1:] == 630.0).all(), "30 seconds are 5 % of 600"


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_by_calls_go_on(decay):
    """The optimiser's own state, read back into a fresh one."""
    from pyro_flows.training.flat import Flat

    def steps():
        torch.manual_seed(1)
        parameters = [torch.ones(2, 2, requires_grad=True), torch.ones(3, requires_grad=True)]

        def gradient():
            for p in parameters:
                p.grad = p.detach() * torch.randn(p.shape)
            return torch.zeros(()), torch.zeros(())

        return StepByStep(Flat(parameters, lambda p: p.dim() > 1), gradient, decay)

    one, other = steps(), steps()
    for _ in range(5):
        one(0.1)
    random = torch.get_rng_state()
    other.set_state(copy.deepcopy(one.state()))
    for mine, theirs in zip(other.flat.vectors, one.flat.vectors, strict=True):
        mine.copy_(theirs)
    other.flat.write()
    for step in (one, other):
        torch.set_rng_state(random)
        for _ in range(5):
            step(0.05)
    assert all(map(torch.equal, one.flat.vectors, other.flat.vectors))
