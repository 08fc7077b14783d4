# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""The seam gives one behaviour on ArviZ 0.x and 1.x.

Needs numpy, xarray, ArviZ, h5netcdf and pytest only: ``tests/run_arviz1.sh`` runs ``test_arviz_*``
where torch is not installed. So the room's modules are loaded from their folder, without the
package's ``__init__``, and nothing comes from a conftest.
"""

import importlib
import json
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest

ROOM = Path(__file__).resolve().parents[2] / "pyro_flows" / "diagnostics"
_room = sys.modules.setdefault("_diagnostics_room", types.ModuleType("_diagnostics_room"))
_room.__path__ = [str(ROOM)]
seam = importlib.import_module("_diagnostics_room.arviz_seam")
az = seam.import_arviz()

DRAWS, SCHOOLS = 400, 8
NAMES = list("ABCDEFGH")


def make(**changes):
    rng = np.random.default_rng(0)
    theta = rng.normal(size=(1, DRAWS, SCHOOLS))
    y = rng.normal(size=SCHOOLS)
    arguments = {
        "groups": {
            "posterior": {"mu": theta.mean(-1), "theta": theta},
            "unconstrained_posterior": {"theta": theta},
            "sample_stats": {"lp": theta.sum(-1), "log_weight": theta.sum(-1)},
            "log_likelihood": {"y": -0.05 * (y - theta) ** 2},
            "log_prior": {"theta": -0.5 * theta**2},
            "posterior_predictive": {"y": theta + rng.normal(size=theta.shape)},
            "observed_data": {"y": y},
            "constant_data": {"sigma": np.ones(SCHOOLS)},
            "training": {"elbo": np.linspace(-9, -1, 30), "stage": np.repeat(["a", "flow"], 15)},
        },
        "dims": {"theta": ["school"], "y": ["school"], "sigma": ["school"]},
        "coords": {"school": NAMES},
        "attrs": {"elbo": -1.5, "psis_khat": 0.2},
    }
    return seam.to_container(**{**arguments, **changes})


def one(group, entries, dims=None, coords=None, **more):
    """A container of one group, as its dataset."""
    data = seam.to_container(
        {group: entries}, dims=dims or {}, coords=coords or {}, attrs={}, **more
    )
    return seam.group_dataset(data, group)


def test_the_line_is_told_by_the_version():
    assert seam.arviz_major() == int(az.__version__.split(".")[0])
    expected = "DataTree" if seam.arviz_major() >= 1 else "InferenceData"
    assert type(make()).__name__ == expected


def test_missing_arviz_names_the_command(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(seam.importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match="pip install 'arviz>=0.20,<2'"):
        seam.import_arviz()


def test_dims_coords_and_attributes_of_every_group():
    data = make()
    sizes = {"chain": 1, "draw": DRAWS, "school": SCHOOLS}
    for group in ("posterior", "unconstrained_posterior", "posterior_predictive", "log_prior"):
        dataset = seam.group_dataset(data, group)
        assert dict(dataset.sizes) == sizes
        assert list(dataset["school"].values) == NAMES
        assert list(dataset.attrs["sample_dims"]) == ["chain", "draw"]
    assert dict(seam.group_dataset(data, "sample_stats").sizes) == {"chain": 1, "draw": DRAWS}
    assert dict(seam.group_dataset(data, "observed_data").sizes) == {"school": SCHOOLS}
    assert dict(seam.group_dataset(data, "training").sizes) == {
        "elbo_dim_0": 30,
        "stage_dim_0": 30,
    }
    assert data.attrs["elbo"] == -1.5


def test_round_trip_through_a_file(tmp_path):
    data = make()
    path = seam.save_netcdf(data, tmp_path / "fit.nc")
    again = seam.load_netcdf(path)
    seam.save_netcdf(again, path)  # the file was closed, and may be replaced
    again = seam.load_netcdf(str(path))
    for group in ("posterior", "log_likelihood", "log_prior", "observed_data", "training"):
        before, after = seam.group_dataset(data, group), seam.group_dataset(again, group)
        assert dict(before.sizes) == dict(after.sizes)
        assert set(before.coords) == set(after.coords)
        for name in [*before.data_vars, *before.coords]:
            assert before[name].dims == after[name].dims
            assert np.array_equal(
                before[name].values, after[name].values.astype(before[name].dtype)
            )
    assert again.attrs["elbo"] == -1.5
    assert again.attrs["psis_khat"] == 0.2


def test_a_missing_file_is_said_plainly(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        seam.load_netcdf(tmp_path / "none.nc")


def test_files_need_h5netcdf(monkeypatch, tmp_path):
    monkeypatch.setattr(seam.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install h5netcdf"):
        seam.save_netcdf(None, tmp_path / "fit.nc")


def test_attributes_survive_a_file(tmp_path):
    config = {"layers": 4, "hidden": (64, 64), "dtype": float, "sd": np.float32(0.5), "s": {2, 1}}
    attrs = {
        "none": None,
        "config": config,
        "flag": True,
        "seed": 2**70,
        "count": np.int64(3),
        "half": np.float32(0.5),
        "array": np.arange(3),
        "empty": np.empty(0),
        "nul": "a\0b",
        "inf": math.inf,
    }
    groups = {"training": {"elbo": np.zeros(3)}}
    data = seam.to_container(
        groups, dims={}, coords={}, attrs=attrs, group_attrs={"training": {"why": ["a", "b"]}}
    )
    back = seam.load_netcdf(seam.save_netcdf(data, tmp_path / "fit.nc"))
    kept = back.attrs
    assert kept["none"] == ""
    read = json.loads(kept["config"])
    assert (read["hidden"], read["sd"], read["s"]) == ([64, 64], 0.5, [1, 2])
    assert (kept["flag"], kept["count"], kept["half"], kept["inf"]) == (1, 3, 0.5, math.inf)
    assert json.loads(kept["seed"]) == 2**70
    assert list(kept["array"]) == [0, 1, 2]
    assert json.loads(kept["empty"]) == []
    assert json.loads(kept["nul"]) == "a\0b"
    assert json.loads(seam.group_dataset(back, "training").attrs["why"]) == ["a", "b"]


def test_slashes_in_names_become_dots():
    x = np.zeros((1, 9, 2))
    dataset = one("posterior", {"outer/x": x}, {"outer/x": ["outer/plate"]})
    assert dataset["outer.x"].dims == ("chain", "draw", "outer.plate")
    with pytest.raises(ValueError, match=r"got 'a\.b' twice in group 'posterior'.*rename"):
        one("posterior", {"a/b": x, "a.b": x})


def test_a_variable_may_share_its_dims_name_or_a_sample_dims(tmp_path):
    groups = {
        "posterior": {"school": np.zeros((1, 9, 2)), "draw": np.zeros((1, 9))},
        "observed_data": {"y": np.zeros(2)},
    }
    dims = {"school": ["school"], "y": ["school"]}
    data = seam.to_container(groups, dims=dims, coords={"school": ["a", "b"]}, attrs={})
    data = seam.load_netcdf(seam.save_netcdf(data, tmp_path / "fit.nc"))
    posterior = seam.group_dataset(data, "posterior")
    assert posterior["school"].dims == ("chain", "draw", "school_dim")
    assert posterior["draw_var"].dims == ("chain", "draw")
    observed = seam.group_dataset(data, "observed_data")
    assert list(observed["school_dim"].values) == ["a", "b"]


def test_log_likelihood_uses_the_leading_dims():
    groups = {
        "posterior": {"mu": np.zeros((1, 9))},
        "log_likelihood": {"y": np.zeros((1, 9, 4))},
        "observed_data": {"y": np.zeros((4, 3))},
    }
    data = seam.to_container(groups, dims={"y": ["unit", "axis"]}, coords={}, attrs={})
    assert seam.group_dataset(data, "log_likelihood")["y"].dims == ("chain", "draw", "unit")
    assert seam.group_dataset(data, "observed_data")["y"].dims == ("unit", "axis")


@pytest.mark.parametrize("coords", [{}, {"unit": list("abcd"), "part": list("xyz")}])
def test_unconstrained_dims_keep_the_names_that_fit(coords):
    groups = {
        "unconstrained_posterior": {
            "simplex": np.zeros((1, 9, 4, 2)),
            "chol": np.zeros((1, 9, 3)),
            "mu": np.zeros((1, 9)),
        },
        "posterior": {
            "simplex": np.zeros((1, 9, 4, 3)),
            "chol": np.zeros((1, 9, 3, 3)),
            "mu": np.zeros((1, 9)),
        },
    }
    dims = {"simplex": ["unit", "part"], "chol": ["row", "column"]}
    data = seam.to_container(groups, dims=dims, coords=coords, attrs={})
    free = seam.group_dataset(data, "unconstrained_posterior")
    assert free["simplex"].dims == ("chain", "draw", "unit", "simplex_dim_1")
    assert free["chol"].dims == ("chain", "draw", "chol_dim_0")
    assert free["mu"].dims == ("chain", "draw")


def test_default_names_and_dtypes(tmp_path):
    x = np.zeros((1, 9, 2, 3), dtype=np.float16)
    entries = {"x": x, "flag": np.ones((1, 9), dtype=bool)}
    data = seam.to_container(
        {"posterior": entries, "empty": {}}, dims={"x": [None, "column"]}, coords={}, attrs={}
    )
    dataset = seam.group_dataset(
        seam.load_netcdf(seam.save_netcdf(data, tmp_path / "fit.nc")), "posterior"
    )
    assert dataset["x"].dims == ("chain", "draw", "x_dim_0", "column")
    assert dataset["x"].dtype == np.float32
    assert dataset["flag"].dtype == bool
    with pytest.raises(ValueError, match=r"groups \['posterior'\], got 'empty'"):
        seam.group_dataset(data, "empty")


@pytest.mark.parametrize(
    ("entries", "dims", "coords", "message"),
    [
        ({"x": np.zeros(9)}, {}, {}, r"shape \(chain, draw, \*shape\), got \(9,\)"),
        ({"x": np.zeros((1, 9))}, {"x": ["a"]}, {}, "at most 0 dims"),
        ({"x": np.zeros((1, 9, 2))}, {"x": ["a"]}, {"a": [1, 2, 3]}, "Expected 3 elements"),
        ({"x": np.zeros((1, 9)), "y": np.zeros((1, 8))}, {}, {}, "size 9 as in 'x', got 8"),
        ({"x": np.array([[None]])}, {}, {}, "got Python objects"),
    ],
)
def test_contradictions_are_refused_with_a_sentence(entries, dims, coords, message):
    with pytest.raises(ValueError, match=message):
        one("posterior", entries, dims, coords)


def test_attributes_of_an_absent_group_are_refused():
    with pytest.raises(ValueError, match=r"among \['posterior'\], got \['prior'\]"):
        one("posterior", {"x": np.zeros((1, 9))}, group_attrs={"prior": {"a": 1}})


# ArviZ's own chatter about a single chain, on either line.
@pytest.mark.filterwarnings("ignore:.*[Ss]hape validation failed")
@pytest.mark.parametrize("saved", [False, True])
def test_arviz_itself_works_on_the_result(saved, tmp_path):
    data = make()
    if saved:
        data = seam.load_netcdf(seam.save_netcdf(data, tmp_path / "fit.nc"))
    for kind in ("stats", "all"):
        table = az.summary(data, kind=kind)
        assert list(table.index) == ["mu", *(f"theta[{name}]" for name in NAMES)]
    loo = az.loo(data, pointwise=True)
    elpd = loo.elpd if seam.arviz_major() >= 1 else loo.elpd_loo
    assert math.isfinite(elpd)
    assert loo.pareto_k.sizes == {"school": SCHOOLS}
