# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Fits of densities that are interrupted and gone on with end as if nothing had been."""

import itertools
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_flows.density import FlowDensity, fitting, flow_density
from pyro_flows.errors import CheckpointError
from pyro_flows.training import checkpoint, loop, whole_step
from pyro_flows.training.checkpoint import MARKER, Checkpoint
from pyro_flows.transforms import ActNorm, AffineCoupling, BatchNorm

QUICK = {"batch_size": 32, "components": None, "num_steps": 40}


class Killed(BaseException):
    """As if the process had been killed: nothing catches it."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short cycles; written every few steps, by a clock that counts looks."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(fitting.Budget, "FIRST_STEPS", 20)
    monkeypatch.setattr(fitting.Budget, "FIRST_EPOCHS", 1)
    monkeypatch.setattr(checkpoint, "now", itertools.count().__next__)
    monkeypatch.setattr(checkpoint, "EVERY", 4)
    monkeypatch.setattr(checkpoint, "SHARE", math.inf)


def rows(n=400, seed=0):
    x = np.random.default_rng(seed).gamma(2.0, size=(n, 2))
    return np.stack([x[:, 0], x[:, 1] + np.sin(3 * x[:, 0]) + 1.0], 1)


def layers(dim):
    return [ActNorm(dim), AffineCoupling(dim), BatchNorm(dim), AffineCoupling(dim)]


SEVERAL = {"num_steps": None, "max_epochs": 12, "components": (1, 3), "batch_size": 32}
CASES = {
    "steps": {},
    "doubles": {"dtype": "float64"},
    "a start": {"components": (1, 3), "support": "positive"},
    "cycles": {"num_steps": None, "max_epochs": 12, "ensemble": False},
    "patience": {"num_steps": None, "max_epochs": 15, "patience": 1, "learning_rate": 0.05},
    "decay": {"weight_decay": 0.1, "dropout": 0.3},
    "buffers": {"flow": layers},
    "two flows": SEVERAL,
    "two flows alike": {**SEVERAL, "dropout": 0.0},
    "whole steps": {"compile": True},
}


def fit(case, folder=None, x=None, **more):
    options = {"flow": "realnvp", "seed": 1, **QUICK, **CASES[case], **more}
    return FlowDensity(**options, progress=False, checkpoint=folder).fit(
        rows() if x is None else x
    )


@pytest.fixture
def stop(monkeypatch):
    """Ends a fit before its step number ``at``, counted from when it is asked for."""
    following, left = fitting.Batches.__next__, [math.inf]

    def counted(batches):
        left[0] -= 1
        if left[0] < 0:
            left[0] = math.inf
            raise stop.error
        return following(batches)

    monkeypatch.setattr(fitting.Batches, "__next__", counted)

    def stop(at, error=Killed):
        left[0], stop.error = at, error

    return stop


def killed(stop, at, case, folder, **more):
    stop(at)
    with pytest.raises(Killed):
        fit(case, folder, **more)


def everything(density):
    return {
        **{k: v for k, v in density.flow_.state_dict().items() if isinstance(v, torch.Tensor)},
        **{f"history's {k}": v for k, v in density.history_.items()},
        "scores": density.score_samples(rows(50, 7)),
        "draws": density.sample(20),
        "facts": (
            *(density.best_score_, density.best_score_se_, density.n_steps_, density.n_epochs_),
            *(density.stop_reason_, density.compiled_, density.components_),
        ),
        "weights": 0.0 if density.weights_ is None else density.weights_,
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


@pytest.mark.parametrize("case", CASES)
def test_it_ends_as_if_nothing_had_been(case, tmp_path, stop, monkeypatch):
    monkeypatch.setattr(whole_step, "_compile", lambda graph, inputs: graph)
    plain = fit(case)
    wanted, steps = everything(plain), plain.n_steps_
    assert (plain.weights_ is not None) == case.startswith("two flows")
    assert plain.compiled_.startswith("compiled") == (case == "whole steps")
    assert_same(everything(fit(case, tmp_path / "whole")), wanted)
    folder = tmp_path / "fit.ckpt"
    # Before it is first written, in a cycle, and near the end: of a second flow, if there is one.
    for at in (2, 17, steps - 25):
        killed(stop, at, case, folder)
    assert (folder / MARKER).exists()
    assert (folder / "second.pt").exists() == case.startswith("two flows")
    resumed = fit(case, folder)
    assert_same(everything(resumed), wanted)
    assert not folder.exists()


@pytest.mark.parametrize("with_validation", [False, True])
def test_with_a_context(tmp_path, stop, with_validation):
    x, context = torch.randn(120, 2), torch.randn(120, 3)
    validation = (torch.randn(40, 2), torch.randn(40, 3)) if with_validation else None

    def run(folder=None):
        density = FlowDensity(
            "maf", num_steps=30, batch_size=32, progress=False, checkpoint=folder
        )
        return density.fit(x, context, validation=validation)

    plain = run()
    stop(20)
    with pytest.raises(Killed):
        run(tmp_path / "a")
    resumed = run(tmp_path / "a")
    assert torch.equal(plain.score_samples(x, context), resumed.score_samples(x, context))
    np.testing.assert_array_equal(plain.history_["log_density"], resumed.history_["log_density"])


@pytest.mark.parametrize(("case", "at"), [("steps", 30), ("two flows", 30), ("two flows", -20)])
def test_after_ctrl_c_the_same_call_goes_on(case, at, tmp_path, stop):
    plain = fit(case)
    at = at if at > 0 else plain.n_steps_ + at
    stop(at, KeyboardInterrupt)
    first = fit(case, tmp_path / "a")
    assert "interrupted by the user" in first.stop_reason_
    assert first.n_steps_ == at
    assert (tmp_path / "a").exists()
    assert_same(everything(fit(case, tmp_path / "a")), everything(plain))
    assert not (tmp_path / "a").exists()


def test_the_same_estimator_goes_on(tmp_path, stop):
    density = FlowDensity("realnvp", **QUICK, progress=False, checkpoint=tmp_path / "a")
    stop(30, KeyboardInterrupt)
    assert density.fit(rows()).n_steps_ == 30
    assert density.fit(rows()).n_steps_ == 40


def test_the_world_keeps_its_random_numbers(tmp_path, stop):
    killed(stop, 20, "steps", tmp_path / "a")
    np.random.seed(5)
    torch.manual_seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1]
    fit("steps", tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_the_time_before_counts(tmp_path, stop, monkeypatch):
    """Of the time limit, too."""
    clock = [0.0]
    for module in (loop, flow_density):
        monkeypatch.setattr(module, "now", lambda: clock[0])
    following = fitting.Batches.__next__

    def slow(batches):
        clock[0] += 2.0
        return following(batches)

    monkeypatch.setattr(fitting.Batches, "__next__", slow)
    limits = {"num_steps": 1000, "max_seconds": 100.0}
    wanted = everything(fit("steps", **limits))
    killed(stop, 30, "steps", tmp_path / "a", **limits)
    clock[0] += 500.0
    resumed = fit("steps", tmp_path / "a", **limits)
    assert resumed.stop_reason_ == "the time limit was reached"
    assert resumed.n_steps_ == 50
    assert resumed.seconds_ == 100.0
    assert_same(everything(resumed), wanted)


class TestAnotherFit:
    @pytest.fixture
    def saved(self, tmp_path, stop):
        killed(stop, 20, "steps", tmp_path / "a")
        return tmp_path / "a"

    def refuses(self, saved, match, **options):
        before = contents(saved)
        with pytest.raises(CheckpointError, match=match) as info:
            fit("steps", saved, **options)
        assert "is of another run: " in str(info.value)
        assert contents(saved) == before

    @pytest.mark.parametrize(
        ("option", "value"),
        [
            ("seed", 2),
            ("num_steps", 41),
            ("max_epochs", 3),
            ("batch_size", 31),
            ("learning_rate", 0.01),
            ("components", (1, 2)),
            ("dropout", 0.1),
            ("weight_decay", 0.1),
            ("max_seconds", 50.0),
            ("patience", 3),
            ("dtype", "float64"),
            ("compile", True),
            ("ensemble", False),
        ],
    )
    def test_other_arguments(self, saved, option, value):
        shown = str(list(value) if isinstance(value, tuple) else repr(value))
        self.refuses(saved, f"its {option} was .* and is ", **{option: value})
        with pytest.raises(CheckpointError) as info:
            fit("steps", saved, **{option: value})
        assert f"and is {shown} here" in str(info.value)

    def test_another_flow(self, saved):
        self.refuses(saved, "its flow was 'realnvp' and is 'maf' here", flow="maf")
        self.refuses(saved, "its flow's layers differed", flow_options={"layers": 2})

    def test_other_rows(self, saved):
        x = rows()
        x[3, 1] *= 1 + 1e-15
        self.refuses(saved, "its (validation )?rows differed", x=x)

    def test_another_support(self, saved):
        self.refuses(saved, "its support differed", support="positive")

    def test_another_start_of_a_flow_of_ones_own(self, tmp_path, stop):
        def flow(scale):
            def layers(dim):
                coupling = AffineCoupling(dim)
                with torch.no_grad():
                    for parameter in coupling.parameters():
                        parameter.add_(scale)
                return [coupling]

            return layers

        killed(stop, 20, "steps", tmp_path / "a", flow=flow(0.0))
        with pytest.raises(CheckpointError, match="before training its log density was"):
            fit("steps", tmp_path / "a", flow=flow(0.1))

    def test_a_damaged_file(self, saved):
        data = (saved / "first.pt").read_bytes()
        (saved / "first.pt").write_bytes(data[:-7])
        with pytest.raises(CheckpointError, match="first.pt is damaged, or was written by"):
            fit("steps", saved)
        assert (saved / "first.pt").read_bytes() == data[:-7]

    def test_a_folder_of_something_else(self, tmp_path):
        (tmp_path / "thesis.tex").write_text("mine")
        with pytest.raises(CheckpointError, match="is something else. It is left as it is"):
            fit("steps", tmp_path)
        assert contents(tmp_path) == {"thesis.tex": b"mine"}


def test_scikit_learns_conventions(tmp_path):
    folder = tmp_path / "a"
    density = FlowDensity("realnvp", checkpoint=folder)
    assert density.get_params()["checkpoint"] is folder
    assert FlowDensity(**density.get_params()).checkpoint is folder
    assert density.set_params(checkpoint=None).checkpoint is None


def test_a_saved_density_has_none(tmp_path):
    density = fit("steps", tmp_path / "a")
    assert density.fit_params_["checkpoint"] == tmp_path / "a"
    again = FlowDensity.load(density.save(tmp_path / "density"))
    assert again.checkpoint is None
    np.testing.assert_array_equal(again.score_samples(rows()), density.score_samples(rows()))


@pytest.mark.slow
def test_compiled_steps(tmp_path, stop):
    plain = fit("whole steps")
    if not plain.compiled_.startswith("compiled"):
        pytest.skip(f"no compiler here: {plain.compiled_}")
    killed(stop, 20, "whole steps", tmp_path / "a")
    assert Checkpoint(tmp_path / "a", []).exists
    torch._dynamo.reset()
    assert_same(everything(fit("whole steps", tmp_path / "a")), everything(plain))
