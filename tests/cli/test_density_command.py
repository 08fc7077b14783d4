# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""``density``: rows in, a density out; scores and draws; columns by name."""

import importlib.util
import json
import os

import numpy as np
import pandas as pd
import pytest

from pyro_flows import FlowDensity
from pyro_flows.cli import main

HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None
STEPS = ["--num-steps", "5", "--flow", "realnvp", "--quiet"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Data, a density of two columns, and one given a third; not to be changed."""
    home = tmp_path_factory.mktemp("home")
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "fare": rng.gamma(3.0, 2.0, size=200),
            "city": ["Ulm", "Bonn"] * 100,
            "km": rng.normal(5, 2, size=200),
            "hour": rng.uniform(0, 24, size=200),
        }
    )
    table.to_csv(home / "rides.csv", index=False)
    data = str(home / "rides.csv")
    words = ["--columns", "fare,km", "--support", "fare=positive", "-o", str(home / "plain")]
    assert main(["density", "fit", data, *words, *STEPS]) == 0
    words = ["--columns", "fare", "--context-columns", "km,hour", "-o", str(home / "given")]
    assert main(["density", "fit", data, *words, *STEPS]) == 0
    return home


@pytest.fixture
def here(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def density(*words):
    return main(["density", *map(str, words)])


def read(text):
    from io import StringIO

    return pd.read_csv(StringIO(text))


class TestFit:
    def test_what_is_written(self, home):
        found = sorted(path.name for path in (home / "plain").iterdir())
        assert found == ["density", "density.png", "fit.json"]
        loaded = FlowDensity.load(home / "plain" / "density")
        assert loaded.feature_names_in_ == ["fare", "km"]
        assert loaded.score_samples([[-1.0, 5.0]]) == -np.inf
        assert FlowDensity.load(home / "given" / "density").n_context_in_ == 2

    def test_what_is_printed(self, home, here, capsys):
        words = ["--columns", "fare,km", "--num-steps", "5", "--flow", "maf"]
        assert density("fit", home / "rides.csv", *words, "--flow-option", "layers=2") == 0
        out, err = capsys.readouterr()
        assert out.startswith("Mean log density of the rows held out: ")
        assert "Wrote rides_density/ with density, density.png." in out
        assert "Fitting the density of fare, km to 200 rows" in err
        assert FlowDensity.load(here / "rides_density/density").flow_options == {"layers": 2}

    def test_for_programs_and_from_arrays(self, home, here, capsys):
        np.save(here / "x.npy", np.random.default_rng(0).normal(size=(100, 3)))
        words = ["--columns", "0,2", "--context-columns", "1", "--json", *STEPS]
        assert density("fit", "x.npy", *words) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["columns"] == ["0", "2"]
        assert found["steps"] == 5
        assert density("score", "x_density", "x.npy", "-o", "s.npy") == 0
        assert np.isfinite(np.load("s.npy")).all()
        np.save(here / "c.npy", np.zeros((4, 1)))
        assert density("sample", "x_density", "-n", 7, "--context", "c.npy", "-o", "d.npy") == 0
        assert np.load("d.npy").shape == (7, 4, 2)

    def test_an_interrupted_fit_is_written(self, home, here, monkeypatch):
        fit = FlowDensity.fit

        def interrupted(self, *args):
            fit(self, *args)
            self.stop_reason_ = "interrupted by the user; the best state so far was kept"
            return self

        monkeypatch.setattr(FlowDensity, "fit", interrupted)
        assert density("fit", home / "rides.csv", "--columns", "fare,km", *STEPS) == 130
        assert (here / "rides_density" / "density").is_dir()

    @pytest.mark.parametrize(
        ("words", "sentence"),
        [
            ([], "columns of text, which has no density: city. Leave them out: --columns fare,km"),
            (["--columns", "fare,mile"], "there is no 'mile' among fare, city, km, hour"),
            (["--columns", "fares"], "Did you mean 'fare'?"),
            (["--columns", "fare", "--context-columns", "fare"], "other columns for the density"),
            (["--columns", "fare", "--support", "km=positive"], "one of the columns fare"),
            (
                ["--columns", "fare,km", "--support", "odd"],
                "positive, negative, unit, or LOW,HIGH",
            ),
            (["--columns", "fare", "--support", "negative"], "fare"),
            (["--columns", "fare", "--flow", "nfs"], "Did you mean 'nsf'?"),
            (["--columns", "fare", "--flow-option", "depth=2"], "'depth'"),
            (["--columns", "fare", "--device", "tpu"], "Expected --device"),
            (["--columns", "fare", "-o", "."], "is something else"),
        ],
    )
    def test_what_is_wrong(self, home, here, capsys, words, sentence):
        (here / "keep.txt").write_text("mine")
        assert density("fit", home / "rides.csv", *words) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert "pyro-flows: error: " in err
        assert sentence in err
        assert "Traceback" not in err
        assert os.listdir(here) == ["keep.txt"]

    def test_gaps_are_located(self, here, capsys):
        (here / "data.csv").write_text("a,b\n1.5,2\n,3\n2.5,\n")
        assert density("fit", "data.csv") == 1
        err = capsys.readouterr().err
        assert "Column 'a' of data.csv has missing or infinite values in 1 of 3 rows" in err
        np.save(here / "x.npy", np.array([[1.0, np.nan]]))
        assert density("fit", "x.npy") == 1
        assert "x.npy has missing or infinite values in 1 of 1" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("words", "support"),
        [
            (["positive"], "positive"),
            (["0,"], (0.0, None)),
            (["a=,1.5", "b=unit"], {"a": (None, 1.5), "b": "unit"}),
        ],
    )
    def test_bounds(self, words, support):
        from pyro_flows.cli.density_runs import _support

        assert _support(words, ["a", "b"], named=True) == support
        if isinstance(support, dict):
            assert _support(words, ["a", "b"], named=False) == {0: (None, 1.5), 1: "unit"}


class TestScore:
    def test_to_the_screen_and_to_files(self, home, here, capsys):
        data = home / "rides.csv"
        assert density("score", home / "plain", data) == 0
        out, err = capsys.readouterr()
        scores = read(out)["log_density"].to_numpy()
        table = pd.read_csv(data)[["fare", "km"]]
        expected = FlowDensity.load(home / "plain" / "density").score_samples(table)
        np.testing.assert_allclose(scores, expected, rtol=1e-6)
        assert f"Mean log density of 200 rows: {expected.mean():.4f}" in err
        assert "Not used: city, hour" in err
        for name in ("s.csv", "s.npy"):
            assert density("score", home / "plain", data, "-o", name) == 0
            assert f"Wrote {name}." in capsys.readouterr().out
        np.testing.assert_allclose(np.load("s.npy"), expected, rtol=1e-6)
        np.testing.assert_allclose(pd.read_csv("s.csv")["log_density"], expected, rtol=1e-6)

    def test_columns_go_by_name(self, home, here, capsys):
        table = pd.read_csv(home / "rides.csv")
        table[["hour", "km", "fare"]].to_csv("other.csv", index=False)
        for folder in ("plain", "given"):
            assert density("score", home / folder, home / "rides.csv") == 0
            first = capsys.readouterr().out
            assert density("score", home / folder, "other.csv") == 0
            assert capsys.readouterr().out == first

    def test_for_programs(self, home, capsys):
        assert density("score", home / "plain", home / "rides.csv", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert len(found["log_density"]) == found["rows"] == 200
        assert min(found["log_density"]) == found["lowest"]
        assert found["log_density"][found["lowest_row"] - 1] == found["lowest"]

    def test_outside_the_support(self, home, here, capsys):
        (here / "new.csv").write_text("km,fare\n5.0,3.0\n5.0,-3.0\n")
        assert density("score", home / "plain", "new.csv") == 0
        out, err = capsys.readouterr()
        assert out.splitlines()[2] == "-inf"
        assert "1 outside the support, not counted in the mean" in err

    def test_what_python_saved(self, home, here, capsys):
        assert density("score", home / "given" / "density", home / "rides.csv") == 0
        first = capsys.readouterr().out
        assert density("score", home / "given", home / "rides.csv") == 0
        assert capsys.readouterr().out == first

    @pytest.mark.parametrize(
        ("folder", "data", "words", "sentence"),
        [
            ("nowhere", "rides.csv", [], "but it does not exist"),
            (".", "rides.csv", [], "but it is something else"),
            ("plain", "short.csv", [], "there is no 'fare' among km"),
            (
                "plain",
                "rides.csv",
                ["-o", "s.txt"],
                "Expected -o to end in .csv, .parquet or .npy",
            ),
            ("plain", "rides.csv", ["-o", "no/where.csv"], "lies in no, which doesn't exist"),
            ("plain", "x.npy", [], "has no names"),
        ],
    )
    def test_what_is_wrong(self, home, here, capsys, folder, data, words, sentence):
        (home / "short.csv").write_text("km\n1.5\n")
        np.save(home / "x.npy", np.ones((3, 2)))
        assert density("score", home / folder, home / data, *words) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert sentence in err

    def test_names_where_there_were_none(self, here, capsys):
        np.save(here / "x.npy", np.random.default_rng(0).normal(size=(50, 2)))
        assert density("fit", "x.npy", *STEPS) == 0
        (here / "x.csv").write_text("a,b\n1.5,2.5\n")
        assert density("score", "x_density", "x.csv") == 1
        assert "Pass the rows as .npy" in capsys.readouterr().err


class TestSample:
    def test_rows(self, home, here, capsys):
        assert density("sample", home / "plain", "-n", 20) == 0
        first = capsys.readouterr().out
        table = read(first)
        assert list(table) == ["fare", "km"]
        assert len(table) == 20
        assert (table["fare"] > 0).all()
        assert density("sample", home / "plain", "-n", 20, "-o", "more.csv") == 0
        assert (here / "more.csv").read_text() == first
        assert density("sample", home / "plain", "-n", 20, "--seed", 1) == 0
        assert capsys.readouterr().out != first

    def test_given_a_context(self, home, here, capsys):
        (here / "context.csv").write_text("hour,km\n8.0,1.0\n9.0,2.0\n")
        assert density("sample", home / "given", "-n", 3, "--context", "context.csv") == 0
        table = read(capsys.readouterr().out)
        assert list(table) == ["km", "hour", "fare"]
        assert table["km"].tolist() == [1, 1, 1, 2, 2, 2]
        drawn = FlowDensity.load(home / "given" / "density").sample(3, [[1, 8.0], [2, 9.0]])
        np.testing.assert_allclose(table["fare"], drawn[:, :, 0].T.ravel(), rtol=1e-6)

    def test_what_is_wrong(self, home, here, capsys):
        assert density("sample", home / "given") == 1
        assert "one given km, hour. Say --context FILE" in capsys.readouterr().err
        assert density("sample", home / "plain", "--context", home / "rides.csv") == 1
        assert "has no context" in capsys.readouterr().err


class TestParquet:
    @pytest.mark.skipif(not HAS_PYARROW, reason="pyarrow is not installed")
    def test_in_and_out(self, home, here):
        pd.read_csv(home / "rides.csv").to_parquet("rides.parquet")
        assert density("score", home / "plain", "rides.parquet", "-o", "s.parquet") == 0
        assert len(pd.read_parquet("s.parquet")) == 200

    @pytest.mark.skipif(HAS_PYARROW, reason="pyarrow is installed")
    def test_the_extra_is_named(self, home, here, capsys):
        assert density("sample", home / "plain", "-o", "s.parquet") == 1
        assert "pip install 'pyro-flows[parquet]'" in capsys.readouterr().err
        assert os.listdir(here) == []
