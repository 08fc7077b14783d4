# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A posterior on disk: read back in another process, and no file can do harm."""

import collections
import dataclasses
import enum
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoMultivariateNormal

from pyro_flows import AutoFlow, FlowVI, Posterior
from pyro_flows.errors import SavedPosteriorError
from pyro_flows.inference import saving
from pyro_flows.transforms import CholeskyAffine

from .models import SCORES, Y, fitted, gamma_rate, groups, normal_mean

ROOT = Path(__file__).parents[2]
FILES = ("posterior.json", "guide.pt", "arrays.npz")


@pytest.fixture
def saved(tmp_path):
    return fitted("groups").save(tmp_path / "fit")


def load(path):
    return Posterior.load(path, groups)


def assert_same(first, second, n=200):
    a, b = first.draws(n), second.draws(n)
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name])


class TestRoundTrip:
    def test_everything_comes_back(self, saved):
        posterior, again = fitted("groups"), load(saved)
        assert_same(posterior, again)
        assert again.verdict == posterior.verdict
        assert again.elbo == posterior.elbo
        assert again.khat == posterior.khat
        assert again.cost == posterior.cost
        assert again.report.stop_reason == posterior.report.stop_reason
        assert again.report.settings == posterior.report.settings
        np.testing.assert_array_equal(
            again.report.history["heldout_elbo"], posterior.report.history["heldout_elbo"]
        )
        assert repr(again) == repr(posterior)
        assert again.summary().equals(posterior.summary())

    def test_a_verdict_that_was_saved_without_anchors(self, saved):
        file = saved / FILES[0]
        config = json.loads(file.read_text(encoding="utf-8"))
        del config["verdict"]["anchors"]
        file.write_text(json.dumps(config), encoding="utf-8")
        assert load(saved).verdict == dataclasses.replace(fitted("groups").verdict, anchors=())

    def test_the_guide_is_the_same_density(self, saved):
        posterior, again = fitted("groups"), load(saved)
        for first, second in zip(
            posterior.sample_guide(300, seed=5), again.sample_guide(300, seed=5), strict=True
        ):
            np.testing.assert_allclose(first, second, rtol=1e-12)

    def test_it_can_be_exported_and_saved_again(self, saved, tmp_path):
        again = load(saved)
        assert_same(again, load(again.save(tmp_path / "second")))
        again.to_arviz(20)

    def test_the_global_random_state_is_left_alone(self, saved):
        before = torch.get_rng_state()
        load(saved)
        assert torch.equal(torch.get_rng_state(), before)

    def test_in_a_fresh_process(self, tmp_path):
        script = tmp_path / "again.py"
        script.write_text(
            textwrap.dedent(
                """
                import sys
                import numpy as np
                from pyro_flows import Posterior
                from tests_models import groups, normal_mean

                for name, model in {"groups": groups, "normal": normal_mean}.items():
                    posterior = Posterior.load(sys.argv[1] + name, model)
                    draws = posterior.draws(50)
                    np.savez(sys.argv[1] + name + ".npz", **{k: v for k, v in draws.items()})
                """
            )
        )
        shutil.copy(Path(__file__).with_name("models.py"), tmp_path / "tests_models.py")
        for name in ("groups", "normal"):
            fitted(name).save(tmp_path / name)
        env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
        command = [sys.executable, "-W", "error", str(script), f"{tmp_path}/"]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        for name in ("groups", "normal"):
            with np.load(tmp_path / f"{name}.npz") as draws:
                for site, value in fitted(name).draws(50).items():
                    np.testing.assert_array_equal(draws[site], value.numpy())

    def test_float32(self, tmp_path):
        torch.set_default_dtype(torch.float32)
        y = Y.float()
        posterior = FlowVI(normal_mean, num_steps=2, progress=False).run(y)
        again = Posterior.load(posterior.save(tmp_path / "fit"), normal_mean)
        assert again.draws(5)["mean"].dtype == torch.float32
        assert_same(posterior, again)

    def test_a_dtype_of_ones_own(self, tmp_path):
        guide = AutoFlow(normal_mean, dtype=torch.float32)
        posterior = FlowVI(normal_mean, guide, num_steps=2, progress=False).run(Y)
        again = Posterior.load(posterior.save(tmp_path / "fit"), normal_mean)
        assert {p.dtype for p in again.guide.parameters()} == {torch.float32}
        assert again.guide._dtype == torch.float32
        assert_same(posterior, again)

    def test_numpy_scalars_among_the_arguments(self, tmp_path):
        def model(y, scale):
            normal_mean(y / scale)

        posterior = FlowVI(model, num_steps=2, progress=False).run(Y, np.float64(2.0))
        again = Posterior.load(posterior.save(tmp_path / "fit"), model)
        assert type(again.args[1]) is float
        assert_same(posterior, again)

    @pytest.mark.parametrize("seed", [0, 1])
    def test_a_hierarchy_that_was_noncentred(self, tmp_path, seed):
        def model():
            tau = pyro.sample("tau", dist.HalfNormal(1.0))
            pyro.sample("x", dist.Normal(0.0, tau).expand([3]).to_event(1))

        posterior = FlowVI(model, seed=seed, num_steps=2, progress=False).run()
        assert posterior.log_joint.through is not None
        assert_same(posterior, Posterior.load(posterior.save(tmp_path / "fit"), model))

    def test_parameters_of_the_model(self, tmp_path):
        def model(y):
            scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
            mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(mean, scale), obs=y)

        pyro.clear_param_store()
        posterior = FlowVI(model, num_steps=20, progress=False).run(Y)
        path = posterior.save(tmp_path / "fit")
        fitted_scale = posterior.parameters["scale"]
        assert abs(float(fitted_scale) - 1.0) > 0.01
        pyro.clear_param_store()
        again = Posterior.load(path, model)
        torch.testing.assert_close(again.parameters["scale"], fitted_scale)
        assert_same(posterior, again)

    def test_arguments_that_are_not_plain_are_asked_for(self, tmp_path):
        class Data:
            y = Y

        def model(data):
            normal_mean(data.y)

        path = FlowVI(model, num_steps=2, progress=False).run(Data()).save(tmp_path / "fit")
        with pytest.raises(SavedPosteriorError, match=r"Pass them: Posterior\.load"):
            Posterior.load(path, model)
        again = Posterior.load(path, model, Data())
        assert again.draws(3)["mean"].shape == (3,)

    def test_keyword_arguments(self, tmp_path):
        def model(n, *, y=None):
            normal_mean(y[:n])

        posterior = FlowVI(model, num_steps=2, progress=False).run(3, y=Y)
        again = Posterior.load(posterior.save(tmp_path / "fit"), model)
        assert again.args == (3,)
        assert torch.equal(again.kwargs["y"], Y)

    def test_path_as_text(self, tmp_path):
        path = fitted("normal").save(str(tmp_path / "fit"))
        assert Posterior.load(str(path), normal_mean).elbo == fitted("normal").elbo


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


class TestBadFiles:
    def test_nothing_there(self, tmp_path):
        with pytest.raises(SavedPosteriorError, match="Expected a posterior saved by Posterior"):
            load(tmp_path / "nothing")

    @pytest.mark.parametrize("name", FILES)
    def test_a_file_is_missing(self, saved, name):
        (saved / name).unlink()
        with pytest.raises(SavedPosteriorError, match=rf"{name} is missing. Check the path"):
            load(saved)

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("share", [0.0, 0.5, 0.98])
    def test_truncated(self, saved, name, share):
        whole = (saved / name).read_bytes()
        (saved / name).write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(SavedPosteriorError, match="damaged"):
            load(saved)

    @pytest.mark.parametrize("name", FILES)
    @pytest.mark.parametrize("content", [b"hello", b"\x80\x04.", b"\xff" * 100, b"[1]", b"{}"])
    def test_foreign(self, saved, name, content):
        (saved / name).write_bytes(content)
        with pytest.raises(SavedPosteriorError, match="Restore it from a copy, or fit again"):
            load(saved)

    @pytest.mark.parametrize("form", ["pickle", "torch", "npy", "npz"])
    @pytest.mark.parametrize("name", ["guide.pt", "arrays.npz"])
    def test_hostile_pickles_are_not_run(self, saved, tmp_path, name, form):
        marker = tmp_path / "run"
        hostile = {"guide": Hostile(marker), "arguments": {"args": [], "kwargs": {}}}
        if form == "pickle":
            (saved / name).write_bytes(pickle.dumps(hostile))
        elif form == "torch":
            torch.save(hostile, saved / name)
        else:
            array = np.array([Hostile(marker)], dtype=object)
            with (saved / name).open("wb") as file:
                if form == "npy":
                    np.save(file, array, allow_pickle=True)
                else:
                    np.savez(file, z=array, log_p=array, log_q=array)
        with pytest.raises(SavedPosteriorError) as refused:
            load(saved)
        assert not marker.exists()
        assert "weights_only" not in str(refused.value)  # torch's advice is to run it

    @pytest.mark.parametrize("key", ["sites", "flow", "seed", "cost", "verdict", "report"])
    def test_a_part_of_the_configuration_is_missing(self, saved, key):
        config = json.loads((saved / "posterior.json").read_text())
        del config[key]
        (saved / "posterior.json").write_text(json.dumps(config))
        with pytest.raises(SavedPosteriorError):
            load(saved)

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            *(("modes", "x"), ("verdict", {}), ("report", {"zz": 1}), ("seed", "q")),
            *(("cost", 3), ("cost", {}), ("sites", [])),
        ],
    )
    def test_a_part_of_the_configuration_is_of_another_kind(self, saved, key, value):
        config = json.loads((saved / "posterior.json").read_text())
        (saved / "posterior.json").write_text(json.dumps({**config, key: value}))
        with pytest.raises(SavedPosteriorError, match="damaged"):
            load(saved)

    @pytest.mark.parametrize("keep", [{"guide"}, {"arguments"}, set()])
    def test_a_part_of_the_tensors_is_missing(self, saved, keep):
        tensors = torch.load(saved / "guide.pt", weights_only=True)
        torch.save({k: v for k, v in tensors.items() if k in keep}, saved / "guide.pt")
        with pytest.raises(SavedPosteriorError):
            load(saved)

    def test_arrays_that_do_not_belong_together(self, saved):
        with np.load(saved / "arrays.npz") as file:
            arrays = dict(file)
        arrays["log_q"] = arrays["log_q"][:-1]
        np.savez(saved / "arrays.npz", **arrays)
        with pytest.raises(SavedPosteriorError):
            load(saved)

    def test_another_format(self, saved):
        config = json.loads((saved / "posterior.json").read_text())
        config.update(format=99, pyro_flows="7.0")
        (saved / "posterior.json").write_text(json.dumps(config))
        with pytest.raises(SavedPosteriorError, match=r"has format 99.*Use the version.*7\.0"):
            load(saved)


class TestAnotherModel:
    def test_other_sites(self, saved):
        with pytest.raises(SavedPosteriorError, match=r"'theta'.*Pass the model"):
            Posterior.load(saved, gamma_rate)

    def test_other_shapes(self, saved):
        with pytest.raises(SavedPosteriorError, match="Pass the model and arguments"):
            Posterior.load(saved, groups, SCORES[:, :2])

    def test_one_that_does_not_take_the_arguments(self, saved):
        def model(x, z):
            normal_mean(x)

        with pytest.raises(SavedPosteriorError, match="Pass the model it was fitted to"):
            Posterior.load(saved, model)

    def test_one_with_the_same_sites_and_shapes(self, saved):
        def model(y):
            with poutine.scale(scale=2.0):
                groups(y)

        with pytest.raises(
            SavedPosteriorError, match=r"log densities.*expected -?\d.*Pass the mod"
        ):
            Posterior.load(saved, model)

    def test_one_with_other_parameters(self, saved):
        def model(y):
            normal_mean(y)
            pyro.factor("nothing", 0.0 * pyro.param("shift", torch.tensor(0.0)))

        fitted("normal").save(saved)
        with pytest.raises(SavedPosteriorError, match=r"the parameters \{\}.*'shift': \[\]"):
            Posterior.load(saved, model)

    def test_other_data_of_the_same_shape(self, saved):
        with pytest.raises(SavedPosteriorError, match="differ from the given model's"):
            Posterior.load(saved, groups, SCORES + 0.1)

    def test_a_random_log_joint_is_not_compared(self, tmp_path):
        def model(y):
            mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            with pyro.plate("data", len(y), subsample_size=2) as index:
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y[index])

        posterior = FlowVI(model, num_steps=2, progress=False).run(Y)
        assert_same(posterior, Posterior.load(posterior.save(tmp_path / "fit"), model))

    def test_one_without_latents(self, saved):
        def model(y):
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=y.mean())

        with pytest.raises(SavedPosteriorError, match="Pass the model"):
            Posterior.load(saved, model)

    def test_one_that_fails(self, saved):
        def model(y):
            raise RuntimeError("no such data")

        with pytest.raises(SavedPosteriorError, match="no such data"):
            Posterior.load(saved, model)


class TestSaving:
    @pytest.mark.parametrize("where", ["json", "torch", "numpy", "replace"])
    def test_an_interrupted_save_leaves_the_older_one(self, saved, monkeypatch, where):
        rename = Path.rename

        def interrupted(*args, **kwargs):
            if where == "replace" and ".partial" not in args[0].name:
                return rename(*args)
            raise KeyboardInterrupt

        owner, name = {
            "json": (Path, "write_text"),
            "torch": (saving.torch, "save"),
            "numpy": (saving.np, "savez_compressed"),
            "replace": (Path, "rename"),
        }[where]
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, interrupted)
            with pytest.raises(KeyboardInterrupt):
                fitted("normal").save(saved)
        assert_same(fitted("groups"), load(saved))
        # And what it left beside does not stand in the way.
        fitted("normal").save(saved)
        assert Posterior.load(saved, normal_mean).elbo == fitted("normal").elbo

    def test_it_replaces_an_older_one_and_leaves_nothing_beside(self, saved):
        fitted("normal").save(saved)
        assert_same(fitted("normal"), Posterior.load(saved, normal_mean))
        assert [path.name for path in saved.parent.iterdir()] == [saved.name]

    def test_names_beside_it_are_left_alone(self, saved):
        mine = [saved.with_name(saved.name + end) for end in (".partial", ".older", ".partial0")]
        for folder in mine:
            folder.mkdir()
            (folder / "mine.txt").write_text("1")
        fitted("normal").save(saved)
        assert sorted(saved.parent.iterdir()) == sorted([saved, *mine])
        assert all((folder / "mine.txt").exists() for folder in mine)

    def test_something_else_is_never_overwritten(self, tmp_path):
        folder, file = tmp_path / "thesis", tmp_path / "notes.txt"
        folder.mkdir()
        (folder / "chapter").write_text("1")
        file.write_text("2")
        for path in (folder, file):
            with pytest.raises(SavedPosteriorError, match="something else. Choose another name"):
                fitted("normal").save(path)
        assert (folder / "chapter").read_text() == "1"
        assert file.read_text() == "2"
        assert len(list(tmp_path.iterdir())) == 2

    def test_folders_are_made(self, tmp_path):
        path = fitted("normal").save(tmp_path / "a" / "b" / "fit")
        assert sorted(p.name for p in path.iterdir()) == sorted(FILES)

    def test_other_guides_are_refused(self, tmp_path):
        guide = AutoMultivariateNormal(normal_mean)
        posterior = FlowVI(normal_mean, guide, num_steps=1, progress=False).run(Y)
        with pytest.raises(SavedPosteriorError, match="expected an AutoFlow guide, but got Auto"):
            posterior.save(tmp_path / "fit")
        assert not (tmp_path / "fit").exists()

    def test_a_flow_without_a_name_is_refused(self, tmp_path):
        guide = AutoFlow(normal_mean, flow=lambda dim: [CholeskyAffine(dim)])
        posterior = FlowVI(normal_mean, guide, num_steps=1, progress=False).run(Y)
        with pytest.raises(SavedPosteriorError, match=r"registered name.*register_flow"):
            posterior.save(tmp_path / "fit")
        assert not (tmp_path / "fit").exists()

    def test_what_is_plain(self):
        class Text(str, enum.Enum):
            A = "a"

        Pair = collections.namedtuple("Pair", "x y")
        whole = {"a": (1, 2.0, [None, True, "text"]), "b": Y}
        assert saving._is_plain(whole)
        for value in (Text.A, Pair(1, 2), collections.OrderedDict(), {1: 2}, np.float64(1.0)):
            assert not saving._is_plain(value)
            assert not saving._is_plain([value])
        converted = saving._without_numpy([np.float64(1.5), {"n": np.int32(3)}, (np.bool_(True),)])
        assert converted == [1.5, {"n": 3}, (True,)]
        assert saving._is_plain(converted)
