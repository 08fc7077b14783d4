# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Densities on disk."""

import json
import pickle

import numpy as np
import pytest
import torch

from pyro_flows import transforms
from pyro_flows.density import FlowDensity
from pyro_flows.errors import SavedDensityError

QUICK = {"num_steps": 10, "progress": False}


def rows(seed=0):
    return np.random.default_rng(seed).gamma(2.0, size=(80, 2))


def build(dim, context_dim=0):
    return [transforms.AffineCoupling(dim, context_dim=context_dim)]


@pytest.fixture
def saved(tmp_path):
    density = FlowDensity("realnvp", **QUICK, support="positive", seed=3)
    density.fit(rows())
    return density, density.save(tmp_path / "fit")


def test_it_comes_back_the_same(saved):
    density, path = saved
    back = FlowDensity.load(path)
    x = rows(1)
    np.testing.assert_array_equal(back.score_samples(x), density.score_samples(x))
    np.testing.assert_array_equal(back.sample(5), density.sample(5))
    assert back.score_samples([[-1.0, 1.0]]) == -np.inf
    assert back.best_score_ == density.best_score_
    assert back.stop_reason_ == density.stop_reason_
    assert back.n_features_in_ == 2
    for name, value in density.history_.items():
        np.testing.assert_array_equal(back.history_[name], value)
    params = density.get_params()
    changed = {k: v for k, v in back.get_params().items() if v != params[k]}
    assert changed == {"support": [[0.0, None]] * 2}, "the same, written out"
    back.plot()


def test_it_can_be_fitted_again(saved):
    density, path = saved
    back = FlowDensity.load(path).fit(rows())
    np.testing.assert_array_equal(back.score_samples(rows()), density.score_samples(rows()))


def test_with_context_and_tensors(tmp_path):
    x = torch.as_tensor(rows(), dtype=torch.float32)
    density = FlowDensity("nsf", **QUICK).fit(x[:, :1], x[:, 1:])
    density.save(tmp_path / "fit")
    back = FlowDensity.load(tmp_path / "fit")
    got = back.score_samples(x[:, :1], x[:, 1:])
    assert torch.equal(got, density.score_samples(x[:, :1], x[:, 1:]))
    assert torch.equal(back.sample(3, x[:2, 1:]), density.sample(3, x[:2, 1:]))
    back.plot()


def test_names_come_back(tmp_path):
    pd = pytest.importorskip("pandas")
    density = FlowDensity("realnvp", **QUICK, support={"b": (0, None)})
    density.fit(pd.DataFrame(rows(), columns=["a", "b"]))
    back = FlowDensity.load(density.save(tmp_path / "fit"))
    assert back.feature_names_in_ == ["a", "b"]
    assert back.support == [None, [0.0, None]]


def test_a_flow_of_ones_own_is_given_again(tmp_path):
    density = FlowDensity(build, **QUICK).fit(rows())
    path = density.save(tmp_path / "fit")
    with pytest.raises(SavedDensityError, match=r"Pass the same: FlowDensity.load\(path, flow="):
        FlowDensity.load(path)
    back = FlowDensity.load(path, flow=build)
    np.testing.assert_array_equal(back.score_samples(rows()), density.score_samples(rows()))
    with pytest.raises(SavedDensityError, match="another architecture"):
        FlowDensity.load(path, flow="nsf")


def test_without_bounds_it_can_be_fitted_to_other_columns(tmp_path):
    density = FlowDensity("realnvp", **QUICK).fit(rows())
    back = FlowDensity.load(density.save(tmp_path / "fit"))
    assert back.support is None
    assert back.fit(rows()[:, :1]).n_features_in_ == 1


def test_tuples_come_back_as_such(tmp_path):
    options = {"hidden_dims": (8, 8), "layers": 2}
    density = FlowDensity("realnvp", **QUICK, flow_options=options, components=(1, 2))
    back = FlowDensity.load(density.fit(rows()).save(tmp_path / "fit"))
    assert (back.flow_options, back.components) == (options, (1, 2))


def test_saving_again_replaces(saved):
    density, path = saved
    density.set_params(seed=4).fit(rows()).save(path)
    assert FlowDensity.load(path).seed == 4
    assert [p.name for p in path.parent.iterdir()] == ["fit"]


def test_what_was_set_since_fit_is_not_saved(saved):
    density, path = saved
    density.set_params(flow="maf", dtype="float64", flow_options={"layers": 9}).save(path)
    back = FlowDensity.load(path)
    assert back.flow == "realnvp"
    np.testing.assert_array_equal(back.score_samples(rows()), density.score_samples(rows()))


def test_numbers_of_numpy_are_saved(tmp_path):
    density = FlowDensity(
        "realnvp", seed=np.int64(3), flow_options={"layers": np.int64(2)}, **QUICK
    )
    back = FlowDensity.load(density.fit(rows()).save(tmp_path / "fit"))
    assert (back.seed, back.flow_options) == (3, {"layers": 2})


def test_a_device_that_is_not_here(saved):
    density, path = saved
    params = json.loads((path / "density.json").read_text())["params"]
    _edit(path, params={**params, "device": "cuda:99"})
    with pytest.warns(UserWarning, match=r"'cuda:99', which isn't here .*loaded to the CPU"):
        back = FlowDensity.load(path)
    assert back.device is None
    np.testing.assert_array_equal(back.score_samples(rows(1)), density.score_samples(rows(1)))


def test_a_device_of_torch_is_saved(tmp_path):
    density = FlowDensity("realnvp", device=torch.device("cpu"), **QUICK).fit(rows())
    assert FlowDensity.load(density.save(tmp_path / "fit")).device == "cpu"


def test_names_beside_it_are_left_alone(saved):
    density, path = saved
    for end in (".older", ".partial", ".older0"):
        path.with_name(path.name + end).mkdir()
        (path.with_name(path.name + end) / "mine.txt").write_text("1")
    density.save(path)
    assert len(list(path.parent.glob("*/mine.txt"))) == 3
    assert len(list(path.parent.iterdir())) == 4


def test_it_overwrites_nothing_else(saved, tmp_path):
    density, _ = saved
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("1")
    with pytest.raises(SavedDensityError, match="something else. Choose another name"):
        density.save(tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter.txt").exists()


class Code:
    def __reduce__(self):
        return (exec, ("raise SystemExit('ran')",))


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda p: (p / "tensors.pt").unlink(), "tensors.pt is missing"),
        (lambda p: (p / "density.json").write_text("{"), "damaged"),
        (lambda p: (p / "tensors.pt").write_bytes(b"x"), "damaged"),
        (lambda p: (p / "tensors.pt").write_bytes(pickle.dumps(Code())), "damaged"),
        (lambda p: torch.save({"flow": {}}, p / "tensors.pt"), "damaged.*without columns"),
        (lambda p: _edit(p, format=99), "has format 99"),
        (lambda p: _edit(p, facts={}), "damaged.*without best_score_"),
        (lambda p: _edit(p, params={}), "damaged.*without params.dtype, params.flow"),
    ],
)
def test_damaged_files(saved, damage, text):
    _, path = saved
    damage(path)
    with pytest.raises(SavedDensityError, match=text):
        FlowDensity.load(path)


def _edit(path, **values):
    config = json.loads((path / "density.json").read_text())
    (path / "density.json").write_text(json.dumps({**config, **values}))


def test_options_that_cannot_be_written(tmp_path):
    def with_extra(dim, extra):
        return build(dim)

    density = FlowDensity(with_extra, flow_options={"extra": object()}, **QUICK).fit(rows())
    with pytest.raises(SavedDensityError, match="flow_options of plain values"):
        density.save(tmp_path / "fit")
