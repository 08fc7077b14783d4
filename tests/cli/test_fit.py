# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""``fit``, ``report`` and ``demo``: from a model file to the page, and all that can be wrong."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_flows import FlowVI, Posterior
from pyro_flows.cli import demo, folder, main
from pyro_flows.cli.models import model_named
from pyro_flows.diagnostics import group_dataset, load_netcdf

MODEL = """\
import pyro
import pyro.distributions as dist
import torch


def mean(y, scale=1.0):
    "A normal mean, whose posterior is known."
    print("the model runs")
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("obs", dist.Normal(mu, scale), obs=y)


def yes(x, y):
    b = pyro.sample("b", dist.Normal(torch.tensor(0.0), 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("obs", dist.Bernoulli(logits=b * x), obs=y)


def product(x, y):
    b = pyro.sample("b", dist.Normal(torch.zeros(1), 1.0).to_event(1))
    with pyro.plate("rows", len(y)):
        pyro.sample("obs", dist.Normal(x[:, None] @ b, 1.0), obs=y)


def wrong(y):
    b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    pyro.sample("obs", dist.Normal(b + y, 1.0).to_event(1), obs=y)


def below(y):
    scale = torch.linspace(-1.0, 1.0, 900)
    pyro.sample("scale", dist.Normal(0.0, scale).to_event(1))
    pyro.sample("obs", dist.Normal(0.0, 1.0).expand([4]).to_event(1), obs=y)
"""
Y = [1.5, 2.5, 0.5, 3.5]
CSV = "y,x,k,town\n1.5,1,0,a\n2.5,2,1,b\n0.5,3,1,a\n3.5,4,0,a\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a model, its data, and a finished fit; not to be changed."""
    home = tmp_path_factory.mktemp("home")
    (home / "models.py").write_text(MODEL)
    (home / "data.csv").write_text(CSV)
    assert fit(home, "mean", "-o", home / "done", "--draws", "50") == 0
    return home


@pytest.fixture
def here(home, tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def ends(home, monkeypatch):
    """Let every run end as the finished fit did, but for what is set here; and a short page."""
    change = {}

    def run(self, *args, **kwargs):
        posterior = Posterior.load(home / "done" / "posterior", self.model)
        posterior.verdict = dataclasses.replace(posterior.verdict, **change.get("verdict", {}))
        posterior.report.interrupted = change.get("interrupted", False)
        posterior.report.steps = change.get("steps", 9)
        return posterior

    monkeypatch.setattr(FlowVI, "run", run)
    monkeypatch.setattr(Posterior, "write_report", lambda self, path: path.write_text("page"))
    return change


def fit(home, name, *words, data=True):
    given = ["--data", home / "data.csv"] if data else []
    return main([str(word) for word in ("fit", f"{home}/models.py:{name}", *given, *words)])


class TestWhatIsWritten:
    def test_all_of_it(self, home):
        found = sorted(path.name for path in (home / "done").iterdir())
        assert found == ["fit.json", "posterior", "posterior.nc", "report.html", "summary.csv"]

    def test_the_summary_is_right(self, home):
        table = pd.read_csv(home / "done" / "summary.csv", index_col=0)
        variance = 1 / (len(Y) + 0.01)
        assert table.loc["mu", "mean"] == pytest.approx(sum(Y) * variance, abs=0.02)
        assert table.loc["mu", "sd"] == pytest.approx(math.sqrt(variance), rel=0.02)

    def test_arviz_reads_the_draws(self, home):
        data = load_netcdf(home / "done" / "posterior.nc")
        assert group_dataset(data, "posterior")["mu"].shape == (1, 50)
        np.testing.assert_array_equal(group_dataset(data, "observed_data")["obs"], Y)

    def test_python_loads_the_posterior_in_float64(self, home):
        torch.set_default_dtype(torch.float32)  # as it is where nobody says otherwise
        with model_named(f"{home}/models.py:mean") as model:
            posterior = Posterior.load(home / "done" / "posterior", model=model.function)
        assert posterior.draws(10)["mu"].dtype == torch.float64
        assert posterior.kwargs["y"].dtype == torch.float64

    def test_the_page(self, home):
        assert "Verdict: reliable" in (home / "done" / "report.html").read_text()

    def test_the_note_of_what_it_was(self, home):
        facts = json.loads((home / "done" / "fit.json").read_text())
        assert facts["model"].endswith("models.py:mean")
        assert facts["verdict"] == "reliable"
        assert facts["arguments"]["y"].startswith("4 numbers, from ")


class TestWhatIsPrinted:
    def test_result_and_notes_are_apart(self, home, here, capsys):
        assert fit(home, "mean", "--draws", "2") == 0
        out, err = capsys.readouterr()
        assert out.startswith("Verdict: reliable\n")
        assert "\nmu " in out
        assert "Wrote mean_fit/ with posterior, summary.csv, posterior.nc, report.html." in out
        assert "the model runs" not in out
        assert "Fitting mean(y, scale=1.0)" in err
        assert "not used: x, k, town" in err
        assert "not in the data: scale = 1.0, its default" in err
        assert "Open mean_fit/report.html" in err

    def test_quietly_and_for_programs(self, home, here, ends, capsys):
        assert fit(home, "mean", "--draws", "2", "--quiet", "--json") == 0
        out, err = capsys.readouterr()
        found = json.loads(out)
        assert found["verdict"] == "reliable"
        assert found["summary"]["mu"]["sd"] == pytest.approx(0.499, rel=0.02)
        assert found["exit_code"] == 0
        assert sorted(found["written"]) == sorted(
            ["posterior", "posterior.nc", "report.html", "summary.csv"]
        )
        assert set(err.splitlines()) <= {"the model runs"}

    def test_remarks_stand_below_the_table(self):
        from pyro_flows.cli.results import shown

        rows = [f"a[{i}]" for i in range(8)]
        table = pd.DataFrame({"mean": 1.0, "note": ["", *["odd"] * 7]}, index=rows)
        assert shown(table).splitlines()[-1] == "a[1], a[2], a[3], a[4], a[5] and 2 more: odd"
        assert "note" not in shown(pd.DataFrame({"mean": [1.0]}, index=["a"]))

    def test_the_default_state_is_left_as_it_was(self, home, here, ends):
        torch.set_default_dtype(torch.float32)
        assert fit(home, "mean", "--draws", "2", "--dtype", "float64") == 0
        assert torch.get_default_dtype() == torch.float32


class TestExitCodes:
    def test_not_reliable(self, home, here, ends, capsys):
        ends["verdict"] = {"status": "not reliable"}
        assert fit(home, "mean", "--draws", "2") == 3
        assert capsys.readouterr().out.startswith("Verdict: not reliable")
        assert (here / "mean_fit" / "report.html").exists()

    def test_corrected(self, home, here, ends):
        ends["verdict"] = {"status": "corrected"}
        assert fit(home, "mean", "--draws", "2") == 0

    def test_interrupted(self, home, here, ends):
        ends["interrupted"] = True
        assert fit(home, "mean", "--draws", "2") == 130
        assert (here / "mean_fit" / "report.html").exists()

    def test_interrupted_where_there_was_a_fit(self, home, here, ends, capsys):
        fit(home, "mean", "--draws", "2")
        (here / "mean_fit" / "summary.csv").write_text("whole")
        ends["interrupted"] = True
        assert fit(home, "mean", "--draws", "2") == 130
        assert (here / "mean_fit" / "summary.csv").read_text() == "whole"
        assert (here / "mean_fit_interrupted0" / "report.html").exists()
        assert "Wrote mean_fit_interrupted0/" in capsys.readouterr().out

    def test_interrupted_before_training(self, home, here, ends, capsys):
        ends.update(interrupted=True, steps=0)
        assert fit(home, "mean", "--draws", "2") == 130
        assert "nothing was written" in capsys.readouterr().err
        assert not (here / "mean_fit").exists()

    def test_what_cannot_be_written_is_said_and_the_rest_is_there(
        self, home, here, ends, monkeypatch, capsys
    ):
        def fail(*_, **__):
            raise RuntimeError("no such thing")

        (here / "mean_fit").mkdir()
        (here / "mean_fit" / "fit.json").write_text('{"pyro_flows_fit": 1, "kind": "posterior"}')
        (here / "mean_fit" / "posterior.nc").write_text("of an earlier fit")
        monkeypatch.setattr(Posterior, "to_arviz", fail)
        assert fit(home, "mean") == 1
        out, err = capsys.readouterr()
        assert "mean_fit/posterior.nc could not be written: no such thing" in err
        assert "with posterior, summary.csv, report.html." in out
        assert not (here / "mean_fit" / "posterior.nc").exists()


class TestFolders:
    def test_an_earlier_fit_is_written_over_and_nothing_beside_it(self, home, here):
        shutil.copytree(home / "done", here / "fit")
        (here / "fit" / "notes.txt").write_text("mine")
        assert fit(home, "mean", "--set", "scale=2.0", "--draws", "2", "-o", "fit") == 0
        assert (here / "fit" / "notes.txt").read_text() == "mine"
        assert not list((here / "fit").glob("*partial*"))
        table = pd.read_csv(here / "fit" / "summary.csv", index_col=0)
        assert table.loc["mu", "sd"] == pytest.approx(1.0, rel=0.02)

    def test_nothing_else_is(self, home, here, capsys):
        (here / "fit").mkdir()
        (here / "fit" / "thesis.txt").write_text("precious")
        assert fit(home, "mean", "-o", "fit") == 1
        assert "but fit is something else" in capsys.readouterr().err
        assert [path.name for path in (here / "fit").iterdir()] == ["thesis.txt"]
        assert fit(home, "mean", "-o", home / "data.csv") == 1
        (here / "density").mkdir()
        (here / "density" / "fit.json").write_text('{"pyro_flows_fit": 1, "kind": "density"}')
        assert fit(home, "mean", "-o", "density") == 1


class TestIntegers:
    def test_zeros_and_ones_of_bernoulli(self, home, here, capsys):
        words = ["--columns", "y=k", "--num-steps", "5", "--draws", "2"]
        assert fit(home, "yes", *words) == 0
        assert "y: as floating point, which 'obs' (Bernoulli) needs" in capsys.readouterr().err
        assert (here / "yes_fit" / "report.html").exists()

    def test_elsewhere_the_option_is_named(self, home, here, capsys):
        assert fit(home, "product") == 1
        err = capsys.readouterr().err
        assert "The integers among the arguments (x) were passed as such" in err
        assert "--float NAME" in err
        assert "at models.py, line" in err

    def test_and_it_helps(self, home, here, monkeypatch):
        seen = {}

        def run(self, x, y):
            seen.update(x=x, y=y)
            raise KeyboardInterrupt

        monkeypatch.setattr(FlowVI, "run", run)
        fit(home, "product", "--float", "x", "--dtype", "float32")
        assert seen["x"].dtype == seen["y"].dtype == torch.float32


class TestWrongInput:
    def error(self, capsys):
        out, err = capsys.readouterr()
        assert out == ""
        assert "Traceback" not in err
        assert "pyro-flows: error: " in err
        return err.partition("pyro-flows: error: ")[2]

    def test_no_model(self, home, here, capsys):
        assert fit(home, "meen") == 1
        assert "Did you mean" in self.error(capsys)

    def test_no_data(self, home, here, capsys):
        assert fit(home, "mean", data=False) == 1
        assert "nothing gives it 'y'" in self.error(capsys)
        assert fit(home, "mean", "--data", "nowhere.csv") == 1
        assert "nowhere.csv, but it doesn't exist" in self.error(capsys)

    def test_a_missing_column(self, home, here, capsys):
        (here / "data.csv").write_text("height\n1.5\n")
        assert fit(home, "mean", "--data", "data.csv", data=False) == 1
        text = self.error(capsys)
        assert "mean(y, scale=1.0), but the data has no 'y'; it has height." in text

    def test_a_gap(self, home, here, capsys):
        (here / "data.csv").write_text("y,x\n1.5,1\n,2\n")
        words = ["--data", "data.csv"]
        assert fit(home, "mean", *words, data=False) == 1
        assert "in 1 of 2 rows; the first is row 2" in self.error(capsys)

    def test_a_flow_that_is_none(self, home, here, capsys):
        assert fit(home, "mean", "--flow", "nfs") == 1
        assert "Did you mean 'nsf'?" in self.error(capsys)

    def test_a_device_that_is_not_here(self, home, here, capsys):
        assert fit(home, "mean", "--device", "tpu") == 1
        assert "Expected --device to be one that torch has here" in self.error(capsys)

    def test_twice_the_same(self, home, here, capsys):
        assert fit(home, "mean", "--set", "scale=1", "--set", "scale=2") == 1
        assert "--set gives an argument twice" in self.error(capsys)

    @pytest.mark.parametrize("text", ["y=", "y=x,,k"])
    def test_columns_without_names(self, home, here, capsys, text):
        assert fit(home, "mean", "--columns", text) == 1
        assert "with names of columns, but got" in self.error(capsys)

    def test_the_model_itself(self, home, here, capsys):
        assert fit(home, "wrong") == 1
        text = self.error(capsys)
        assert text.startswith("The model's code raised RuntimeError: ")
        assert "at models.py, line 28, in wrong: " in text
        assert not (here / "wrong_fit").exists()

    def test_a_wrong_tensor_is_not_printed_in_full(self, home, here, capsys):
        assert fit(home, "below") == 1
        text = self.error(capsys)
        assert "parameter scale (Tensor of shape (900,))" in text
        assert "in below: " in text
        assert text.count("\n") < 10

    def test_an_interrupt_before_there_is_anything(self, home, here, capsys, monkeypatch):
        def interrupt(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(FlowVI, "run", interrupt)
        assert fit(home, "mean") == 130
        assert "interrupted" in self.error(capsys)


class TestThreads:
    @pytest.mark.parametrize(
        ("number", "numbers", "given", "expected"),
        [
            (None, 10, None, 1),
            (None, 200_000, None, 2),
            (None, 10, "2", 2),  # OMP_NUM_THREADS
            (3, 10, None, 3),
            (3, 200_000, "2", 3),
        ],
    )
    def test_few_numbers_are_for_one(self, monkeypatch, number, numbers, given, expected):
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if given:
            monkeypatch.setenv("OMP_NUM_THREADS", given)
        torch.set_num_threads(2)  # until the next test
        with folder.threads(number, numbers):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == 2

    def test_the_option(self, home, here, monkeypatch):
        seen = []
        run = FlowVI.run

        def watched(*args, **kwargs):
            seen.append(torch.get_num_threads())
            return run(*args, **kwargs)

        monkeypatch.setattr(FlowVI, "run", watched)
        assert fit(home, "mean", "--threads", "2") == 0
        assert seen == [2]


class TestReport:
    def test_the_page_again(self, home, here, capsys):
        words = ["report", str(home / "done"), "--model", f"{home}/models.py:mean"]
        assert main([*words, "-o", "page.html"]) == 0
        assert "Wrote page.html." in capsys.readouterr().out
        assert "Verdict: reliable" in (here / "page.html").read_text()

    def test_of_what_python_saved(self, home, here):
        words = ["--model", f"{home}/models.py:mean", "-o", "page.html"]
        assert main(["report", str(home / "done" / "posterior"), *words]) == 0

    def test_the_model_is_never_taken_from_the_folder(self, home, here, capsys):
        assert main(["report", str(home / "done")]) == 1
        err = capsys.readouterr().err
        assert "Expected --model FILE.py:NAME" in err
        assert "models.py:mean. Name it, since its code is run." in err
        assert "the model runs" not in err

    def test_another_model(self, home, here, capsys):
        words = ["report", str(home / "done"), "--model", f"{home}/models.py:wrong"]
        assert main(words) == 1
        assert "Pass the model it was fitted to" in capsys.readouterr().err

    def test_no_fit(self, home, here, capsys):
        assert main(["report", "nowhere", "--model", "a.py:b"]) == 1
        assert "at nowhere, but it does not exist" in capsys.readouterr().err
        assert main(["report", str(home), "--model", "a.py:b"]) == 1
        assert "but it is something else" in capsys.readouterr().err
        (here / "odd").mkdir()
        (here / "odd" / "fit.json").write_text("{}")
        assert main(["report", "odd", "--model", "a.py:b"]) == 1
        assert "with a fit.json of ours" in capsys.readouterr().err

    def test_a_browser(self, home, here, capsys, monkeypatch):
        opened = []
        monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or False)
        words = ["report", str(home / "done"), "--model", f"{home}/models.py:mean"]
        assert main([*words, "-o", "page.html", "--open"]) == 0
        assert opened == [(here / "page.html").as_uri()]
        assert "No browser was found" in capsys.readouterr().err


class TestDemo:
    def test_the_files_are_a_pair_that_fits(self, here, capsys, monkeypatch):
        assert main(["demo", "--files-only"]) == 0
        out, err = capsys.readouterr()
        assert "Wrote schools_demo/schools.py and schools_demo/schools.csv." in out
        assert "cd schools_demo\n  pyro-flows fit schools.py:schools --data schools.csv" in err
        monkeypatch.chdir("schools_demo")
        given = {}

        def stop(self, **kwargs):
            given.update(kwargs)
            raise KeyboardInterrupt

        monkeypatch.setattr(FlowVI, "run", stop)
        assert main(["fit", "schools.py:schools", "--data", "schools.csv"]) == 130
        assert given["sigma"].tolist() == [15, 10, 16, 11, 9, 11, 10, 18]
        assert given["y"].tolist() == [28, 8, -3, 7, -1, 1, 18, 12]

    def test_it_is_the_example(self, here):
        """The same log density as examples/eight_schools.py at the same place."""
        import importlib.util
        from pathlib import Path

        from pyro import poutine

        path = Path(__file__).parents[2] / "examples" / "eight_schools.py"
        spec = importlib.util.spec_from_file_location("eight_schools", path)
        example = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(example)
        main(["demo", "--files-only"])
        place = {"mu": 1.0, "tau": 2.0, "theta": torch.arange(8.0)}
        place = {name: torch.as_tensor(value) for name, value in place.items()}
        with model_named("schools_demo/schools.py:schools") as found:
            sums = [
                poutine.trace(poutine.condition(model, place))
                .get_trace(example.SIGMA, y=example.Y)
                .log_prob_sum()
                for model in (found.function, example.model)
            ]
        assert sums[0] == sums[1]

    def test_edited_files_are_left_alone(self, here, capsys):
        assert main(["demo", "--files-only", "-o", "mine"]) == 0
        assert main(["demo", "--files-only", "-o", "mine"]) == 0
        (here / "mine" / "schools.csv").write_text("y,sigma\n1,1\n")
        capsys.readouterr()
        assert main(["demo", "-o", "mine"]) == 1
        err = capsys.readouterr().err
        assert "isn't the demo's: it was edited" in err
        assert "pyro-flows fit mine/schools.py:schools --data mine/schools.csv" in err
        assert (here / "mine" / "schools.csv").read_text() == "y,sigma\n1,1\n"

    @pytest.mark.slow
    def test_from_the_demo_to_the_page(self, here, capsys):
        assert main(["demo"]) == 0
        out = capsys.readouterr().out
        assert "Verdict: reliable" in out
        table = pd.read_csv(here / "schools_demo" / "fit" / "summary.csv", index_col=0)
        assert table.loc["mu", "mean"] == pytest.approx(4.4, abs=0.15)
        assert (here / "schools_demo" / "fit" / "report.html").stat().st_size > 10_000
        assert demo.DATA.count("\n") == 9


@pytest.mark.slow
def test_a_real_fit_that_is_not_reliable(home, here):
    (here / "heavy.py").write_text(
        "import pyro\nimport pyro.distributions as dist\n\n\ndef cauchy():\n"
        '    pyro.sample("x", dist.Cauchy(0.0, 1.0).expand([3]).to_event(1))\n'
    )
    assert main(["fit", "heavy.py:cauchy", "--num-steps", "5", "--draws", "10"]) == 3
    assert (here / "cauchy_fit" / "report.html").exists()
