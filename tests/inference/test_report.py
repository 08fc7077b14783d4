# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The page about a fit: complete, readable by a browser, and there for broken fits, too."""

from __future__ import annotations

import copy
import functools
import os
import re
import shutil
import subprocess
import tempfile

import arviz as az
import matplotlib.image
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import MCMC, NUTS

from pyro_flows import AutoFlow, assess
from pyro_flows.diagnostics import importance_weights, judge
from pyro_flows.errors import OptionError
from pyro_flows.guides import LogJoint
from pyro_flows.inference import Objective, Pool, Posterior, report, report_sections
from pyro_flows.training import Report
from tests.reading_html import Page

from .models import Y, fitted, fitted_tails, normal_mean

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell")
# The colour of draws in all pictures, as a browser shows it.
BLUE = np.array([0x00, 0x72, 0xB2]) / 255


def untrained(model, *args, draws=1000, training=None, **kwargs):
    """A posterior of a guide as it starts: what a page needs, at no cost."""
    guide = AutoFlow(model)
    with torch.no_grad(), pyro.validation_enabled(False):
        guide.setup(*args, **kwargs)
        joint = LogJoint(model, guide, args, kwargs, through=guide.noncentring)
        pool = Pool(
            *(part.numpy() for part in Objective(guide, joint, args, kwargs, 64).draw(draws))
        )
    weights = importance_weights(pool.log_p, pool.log_q)
    return Posterior(
        guide=guide,
        log_joint=joint,
        pool=pool,
        weights=weights,
        verdict=judge(weights),
        report=training or Report(stop_reason="not trained here"),
        cost={"gradients": 0, "seconds": 0.0},
        seed=0,
        args=args,
        kwargs=kwargs,
    )


def page_of(posterior, tmp_path, **options):
    path = posterior.write_report(tmp_path / "report.html", **options)
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"could not be made [^<]*", text) == []
    return Page(text)


def sections(page):
    return [text for level, text in page.headings if level == 2][1:]


@functools.cache
def good_page():
    """The page of a good fit as text, made once."""
    with tempfile.TemporaryDirectory() as folder:
        path = fitted("groups").write_report(f"{folder}/report.html")
        assert os.listdir(folder) == ["report.html"]
        return path.read_text(encoding="utf-8")


def test_the_page_of_a_good_fit_is_complete():
    posterior, text = fitted("groups"), good_page()
    assert re.findall(r"could not be made [^<]*", text) == []
    page = Page(text)
    assert page.headings[0][1] == "Posterior of groups"
    assert page.text.index(f"Verdict: {posterior.verdict.status}") < 200
    assert sections(page) == [
        "Summary",
        "Training",
        "Importance weights",
        "Intervals",
        "Pairs",
        "Predictive check",
        "Model",
        "Cost",
        "How to reproduce",
    ]
    assert len(page.pictures) == 5
    for said in (*posterior.verdict.reasons, *posterior.verdict.advice, "theta[2]", "weight[0]"):
        assert said in page.text
    assert posterior.report.stop_reason in page.text
    assert f"{posterior.cost['gradients']:,} gradients" in page.text
    assert "num_steps=80, seed=0).run(<float64[2, 3]>)" in page.text
    assert torch.__version__ in page.text
    assert "school, pupil" in page.text or "pupil, school" in page.text
    assert "deterministic" in page.text
    assert len(text) < 3e6


def test_a_corrected_fit_says_not_to_weight_again(tmp_path):
    page = page_of(fitted_tails(), tmp_path, title="Tails < & >")
    assert page.headings[0][1] == "Tails < & >"
    assert "Verdict: corrected" in page.text
    assert "don't weight them again" in page.text
    assert "predictive" not in " ".join(sections(page)).lower()  # it has no data


def test_figures_on_the_page_are_those_of_the_posterior(tmp_path):
    posterior = fitted_tails()
    text = page_of(posterior, tmp_path).text
    assert f"{posterior.elbo:,.4f} ± {posterior.elbo_se:.4f}" in text
    assert f"{posterior.log_evidence:,.4f} ± {posterior.log_evidence_se:.4f}" in text
    assert f"{posterior.ess:,.0f}" in text
    mean = posterior.summary().loc["x", "mean"]
    assert report.page._number(mean) in text.split("Summary")[2]


def test_writing_takes_no_more_of_the_log_joint_and_changes_nothing(tmp_path, monkeypatch):
    posterior = fitted_tails()
    monkeypatch.setattr(posterior, "sample_guide", None)
    before, state = torch.get_rng_state(), np.random.get_state()[1].copy()
    page_of(posterior, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


def cauchy():
    pyro.sample("x", dist.Cauchy(torch.zeros(3), 1.0).to_event(1))


def test_a_note_is_given_once(tmp_path):
    posterior = untrained(cauchy)
    posterior.pool.z[:] = np.random.default_rng(0).standard_cauchy(posterior.pool.z.shape)
    assert posterior.summary()["note"].str.contains("withheld").all()
    page = page_of(posterior, tmp_path)
    assert page.text.count("mean and sd withheld") == 1


def odd_names():
    with pyro.plate("a/b", 2):
        pyro.sample("<script>alert(1)</script>", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("x$y$_{", dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("a.long.scope." * 9, dist.Normal(torch.zeros(()), 1.0))
    pyro.sample("温度/sd", dist.HalfNormal(torch.ones(())))


def many():
    pyro.sample("x", dist.Normal(torch.zeros(520), 1.0).to_event(1))


def shapes():
    pyro.sample("chol", dist.LKJCholesky(4, torch.tensor(1.0)))  # zeros and a one are constant
    with pyro.plate("i", 2, dim=-2), pyro.plate("j", 3, dim=-1):
        pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))


def enumerated(y):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(2), 3.0).to_event(1))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(0.4), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(mean[z.long()], 1.0), obs=y)


def stochastic(y):
    mean = pyro.sample("mean", dist.Normal(torch.zeros(()), 3.0))
    with pyro.plate("data", len(y), subsample_size=2) as index:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[index])


def bounded():
    x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
    pyro.factor("edge", torch.where(x > 0, 0.0, -torch.inf))


def outside():
    x = pyro.sample("x", dist.Normal(torch.zeros(()), 1.0))
    pyro.factor("edge", torch.where(x > 50, 0.0, -torch.inf))


def broken():
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.factor("nan", torch.where(x[..., 0] > 0, 0.0, torch.nan))


def improper(y):
    scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
    mean = pyro.sample("MEAN", dist.ImproperUniform(constraints.real, (), ()))
    pyro.sample("y", dist.Normal(mean, scale).expand([len(y)]).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("model", "args", "said"),
    [
        (odd_names, (), ["<script>alert(1)</script>[1]", "温度/sd", "x$y$_{"]),
        pytest.param(
            many,
            (),
            ["The other 500 rows", "520 unconstrained dimensions"],
            marks=pytest.mark.slow,
        ),
        pytest.param(shapes, (), ["4 × 4", "2 × 3 × 3", "simplex[1,2,2]"], marks=pytest.mark.slow),
        (enumerated, (Y,), ["latent, summed out", "mean[1]"]),
        (stochastic, (Y,), ["It is random"]),
        (bounded, (), ["inside the support"]),
        (outside, (), ["Don't report these draws", "nothing to sum up"]),
        (broken, (), ["NaN or infinite log density"]),
        (improper, (Y,), ["parameter", "ImproperUniform"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_odd_posteriors_have_a_page(model, args, said, tmp_path):
    page = page_of(untrained(model, *args, draws=600), tmp_path)
    assert len(page.pictures) == 3 + len(args)  # with data, a predictive check
    for text in said:
        assert text in page.text, f"{text} isn't on the page"


def test_an_untrained_guide_of_nan_has_a_page(tmp_path):
    posterior = untrained(shapes, draws=200)
    posterior.pool.z[:, 3] = np.nan
    posterior.pool.z[:150, 4] = np.inf
    page = page_of(posterior, tmp_path)
    assert "NaN" in page.text


def test_an_interrupted_fit_has_a_page(tmp_path):
    posterior = copy.copy(fitted("normal"))
    reason = "interrupted by the user in the warm start"
    posterior.report = Report(stop_reason=reason, interrupted=True)
    page = page_of(posterior, tmp_path)
    assert f"Stopped: {reason}." in page.text
    assert len(page.pictures) == 4  # no curve


def test_a_section_that_fails_is_named_and_the_others_stay(tmp_path, monkeypatch):
    def _impossible(fit):
        raise RuntimeError("a < b")

    monkeypatch.setattr(report, "SECTIONS", (*report.SECTIONS, _impossible, lambda fit: None))
    path = fitted("normal").write_report(tmp_path / "report.html")
    page = Page(path.read_text())
    assert sections(page)[-1] == "Impossible"
    assert "This section could not be made (RuntimeError: a < b)." in page.text
    assert "Summary" in sections(page)


def as_arviz(draws):
    chains = {name: value.reshape(2, -1, *value.shape[1:]) for name, value in draws.items()}
    return (
        az.from_dict(posterior=chains)
        if az.__version__ < "1"
        else az.from_dict({"posterior": chains})
    )


@pytest.mark.parametrize("kind", ["dict", "tensors", "posterior", "mcmc", "arviz"])
def test_references_of_every_kind(kind):
    posterior = fitted("normal")
    draws = {"mean": np.random.default_rng(0).normal(2.0, 0.5, (600, 2))}
    if kind == "mcmc":
        mcmc = MCMC(NUTS(posterior.log_joint.model), 60, 20, disable_progbar=True)
        mcmc.run(Y)
        assert report._draws_of(mcmc)["mean"].shape == (60,)
    elif kind == "posterior":
        assert report._draws_of(posterior)["mean"].shape == (4000,)
    else:
        given = {"tensors": {"mean": torch.as_tensor(draws["mean"])}, "arviz": as_arviz(draws)}
        found = report._draws_of(given.get(kind, draws))
        np.testing.assert_array_equal(found["mean"], draws["mean"])


def test_the_reference_takes_the_place_of_the_gaussian(tmp_path):
    reference = {"mean": np.random.default_rng(0).normal(2.0, 0.5, 600)}
    page = page_of(fitted("normal"), tmp_path, reference=reference)
    assert "Lines: the reference." in page.text
    assert report_sections.GAUSSIAN not in page.text
    assert report_sections.GAUSSIAN in page_of(fitted("normal"), tmp_path).text


def test_a_reference_that_is_no_draws_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(OptionError, match="got int"):
        fitted("normal").write_report(tmp_path / "report.html", reference=3)
    assert os.listdir(tmp_path) == []


def test_a_folder_is_refused_and_folders_above_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_compose", lambda fit, title: "new")
    with pytest.raises(OptionError, match="is something else"):
        fitted("normal").write_report(tmp_path)
    path = fitted("normal").write_report(tmp_path / "new" / "deep" / "r.html")
    assert path == (tmp_path / "new" / "deep" / "r.html").resolve()
    assert path.exists()


def test_an_older_file_stays_until_the_new_one_is_complete(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "_compose", lambda fit, title: "new")
    path = tmp_path / "report.html"
    path.write_text("older")
    link = tmp_path / "link.html"
    link.symlink_to(path)

    def full(*names):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(report.os, "replace", full)
        with pytest.raises(OSError, match="no space"):
            fitted("normal").write_report(link)
    assert path.read_text() == "older"
    assert sorted(os.listdir(tmp_path)) == ["link.html", "report.html"]
    fitted("normal").write_report(link)
    assert link.is_symlink()
    assert path.read_text() == "new"


def browser():
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found is None:
        pytest.skip(f"no browser among {', '.join(BROWSERS)} is installed")
    return found


@pytest.mark.parametrize("width", [1200, 400])
def test_a_browser_shows_the_page_and_its_pictures(width, tmp_path):
    program = browser()
    path = tmp_path / "report.html"
    path.write_text(good_page(), encoding="utf-8")
    shot = tmp_path / "shot.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/user"]
    for what in ("--dump-dom", f"--screenshot={shot}"):
        command = [program, *options, f"--window-size={width},5000", what, path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
        if what == "--dump-dom":
            assert re.search(r"Verdict: \w+", done.stdout)
            assert done.stdout.count("<img ") == 5
    pixels = matplotlib.image.imread(shot)[..., :3]
    assert (np.abs(pixels - BLUE) < 0.02).all(axis=-1).sum() > 1000  # nothing else is blue


def test_a_guide_trained_elsewhere_is_reproduced_by_assess(tmp_path):
    posterior = assess(normal_mean, fitted("normal").guide, Y)
    text = page_of(posterior, tmp_path).text
    assert "posterior = assess(normal_mean, AutoFlow, <float64[4]>, seed=0)" in text
    assert "FlowVI(normal_mean" not in text
