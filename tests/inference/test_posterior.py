# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What a fit hands over: draws, table, figures of merit, picture, ArviZ."""

import copy
import json
import math
import re
import warnings

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from pyro_flows import AutoFlow, FlowVI, assess
from pyro_flows.errors import GuideError
from pyro_flows.inference import Pool
from pyro_flows.inference import table as table_module

from .models import SCORES, Y, fitted, fitted_tails, normal_mean_exact


def group(idata, name):
    """A group of InferenceData or of a DataTree."""
    found = idata[name]
    return found.to_dataset() if hasattr(found, "to_dataset") else found


def group_names(idata):
    """Names of its groups."""
    found = idata.groups
    return {name.strip("/") for name in (found() if callable(found) else found)}


def attributes(idata):
    """Its attributes, which ArviZ 0.x puts on each group."""
    return idata.attrs or group(idata, "posterior").attrs


class TestDraws:
    def test_shapes(self):
        posterior = fitted("groups")
        for n in (1, 7, 4000):
            draws = posterior.draws(n)
            shapes = {name: tuple(value.shape) for name, value in draws.items()}
            assert shapes == {"mu": (n,), "tau": (n,), "weight": (n, 3), "theta": (n, 3)}
            assert all(bool(torch.isfinite(value).all()) for value in draws.values())

    def test_they_are_on_the_constrained_scale(self):
        draws = fitted("groups").draws(500)
        assert bool((draws["tau"] > 0).all())
        torch.testing.assert_close(draws["weight"].sum(-1), torch.ones(500))

    @pytest.mark.parametrize("make", [lambda: fitted("gamma"), fitted_tails])
    def test_the_same_number_gives_the_same_draws(self, make):
        posterior = make()
        first = posterior.draws(50)
        torch.randn(3)
        second = posterior.draws(50)
        for name, value in first.items():
            assert torch.equal(value, second[name])
            assert not value.requires_grad

    @pytest.mark.parametrize("n", [0, -1, 2.0, "all", None])
    def test_nonsense_is_refused(self, n):
        with pytest.raises(GuideError, match=f"expected n >= 1, but got {n!r}"):
            fitted("normal").draws(n)

    def test_more_than_the_pool(self):
        posterior = fitted("normal")
        n = len(posterior.pool) + 5000
        draws = posterior.draws(n)["mean"]
        assert draws.shape == (n,)
        assert len(draws.unique()) == n
        mean, sd, _ = normal_mean_exact(Y)
        assert float(draws[-5000:].mean()) == pytest.approx(mean, abs=5 * sd / math.sqrt(5000))

    def test_draws_outside_the_support_are_left_out(self):
        def half_line():
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.factor("positive", torch.where(x > 0, 0.0, -math.inf))

        posterior = FlowVI(half_line, num_steps=5, progress=False).run()
        assert posterior.weights.n_zero > 100
        assert bool((posterior.draws(4000)["x"] > 0).all())
        assert bool((posterior.draws(45_000)["x"] > 0).all())


class TestCorrectedDraws:
    """A normal guide on StudentT(12) tails of scale 2: the sd is 2 sqrt(12/10)."""

    def test_the_fit_is_corrected(self):
        posterior = fitted_tails()
        assert posterior.verdict.status == "corrected"
        assert posterior.corrected
        assert posterior.ess == posterior.weights.kish_ess < len(posterior.pool)

    @pytest.mark.parametrize("n", [10, 1000, 4000, 5000])
    def test_hardly_any_is_repeated(self, n):
        posterior = fitted_tails()
        draws = posterior.draws(n)["x"]
        heaviest = np.exp(posterior.weights.log_weights.max())
        assert len(draws) == n
        # Only a draw that weighs more than 1/n stands twice.
        assert len(draws.unique()) == n if n * heaviest < 1 else len(draws.unique()) > 0.99 * n

    def test_their_moments_are_the_posteriors(self):
        posterior = fitted_tails()
        raw = torch.as_tensor(posterior.pool.z[:, 0])
        draws = posterior.draws(4000)["x"]
        # Far out, where the guide has too little: P(|x| > 6) under the t and under the guide.
        t = torch.distributions.StudentT(12.0).sample((1_000_000,)).abs()
        truth = float((2 * t > 6).double().mean())
        weighted = np.exp(posterior.weights.log_weights) @ (raw.abs().numpy() > 6)
        assert weighted == pytest.approx(truth, rel=0.25)
        assert float((draws.abs() > 6).double().mean()) == pytest.approx(truth, rel=0.4)
        assert float((raw.abs() > 6).double().mean()) < 0.75 * truth
        assert float(draws.mean()) == pytest.approx(0.0, abs=0.15)

    def test_other_sites_go_with_it(self):
        posterior = fitted_tails()
        pool, _, index = posterior._delivered(100)
        assert pool is posterior.pool
        assert index.shape == (100,)
        assert posterior.draws(100)["v"].shape == (100, 2)

    def test_the_log_evidence_is_right(self):
        posterior = fitted_tails()
        assert posterior.log_evidence == pytest.approx(0.0, abs=0.01)
        assert posterior.elbo < -2 * posterior.elbo_se
        assert 0 < posterior.khat < posterior.weights.threshold


class TestSummary:
    def test_rows_and_columns(self):
        table = fitted("groups").summary()
        assert list(table.columns) == ["mean", "sd", "5%", "median", "95%", "mcse", "khat"]
        rows = ["mu", "tau", "weight[0]", "weight[1]", "weight[2]"]
        assert list(table.index) == [*rows, "theta[0]", "theta[1]", "theta[2]"]
        assert table.notna().all().all()

    def test_values(self):
        mean, sd, _ = normal_mean_exact(Y)
        row = fitted("normal").summary(interval=0.8, decimals=None).loc["mean"]
        assert list(row.index) == ["mean", "sd", "10%", "median", "90%", "mcse", "khat"]
        assert row["mean"] == pytest.approx(mean, abs=0.03 * sd)
        assert row["sd"] == pytest.approx(sd, rel=0.03)
        assert row["median"] == pytest.approx(mean, abs=0.03 * sd)
        assert row["10%"] == pytest.approx(mean - 1.2816 * sd, abs=0.05 * sd)
        assert row["90%"] == pytest.approx(mean + 1.2816 * sd, abs=0.05 * sd)
        assert row["mcse"] == pytest.approx(sd / math.sqrt(len(fitted("normal").pool)), rel=0.05)

    def test_an_odd_interval(self):
        columns = list(fitted("normal").summary(interval=0.95).columns)
        assert columns[2:5] == ["2.5%", "median", "97.5%"]

    def test_decimals(self):
        rounded = fitted("normal").summary().loc["mean", "mean"]
        assert rounded == round(rounded, 3)
        full = fitted("normal").summary(decimals=None).loc["mean", "mean"]
        assert full != rounded

    def test_weighted_where_the_draws_are_corrected(self):
        posterior = fitted_tails()
        table = posterior.summary(decimals=None)
        # The raw draws' spread is the guide's, which is too small.
        assert table.loc["x", "sd"] == pytest.approx(2 * math.sqrt(1.2), rel=0.04)
        assert posterior.pool.z[:, 0].std() < 2 * math.sqrt(1.2) * 0.985
        assert table.loc["v[0]", "sd"] == pytest.approx(1.0, rel=0.03)
        # The heavy tail is that of x; v has none of its own.
        assert table.loc["x", "khat"] >= table.loc["v[0]", "khat"] >= posterior.khat


class TestFigures:
    def test_of_merit(self):
        posterior = fitted("gamma")
        assert posterior.elbo <= posterior.log_evidence
        assert posterior.elbo_se > 0
        assert posterior.log_evidence_se > 0
        assert posterior.khat == posterior.weights.khat
        assert fitted("normal").ess == len(fitted("normal").pool)

    def test_repr_says_the_verdict_first(self):
        posterior = fitted("gamma")
        text = repr(posterior)
        assert text.startswith(f"Verdict: {posterior.verdict.status}\n")
        assert f"ELBO {posterior.elbo:.4f}" in text
        assert f"log evidence {posterior.log_evidence:.4f}" in text
        assert "Sites: rate" in text
        assert f"{posterior.report.steps} steps" in text
        assert "gradients" in text
        assert "Stopped: " in text
        assert "Sites: mu, tau, weight[3], theta[3]" in repr(fitted("groups"))

    def test_html(self):
        html = fitted("normal")._repr_html_()
        plain = re.sub(r"<[^>]+>", "", html)
        assert plain.startswith("Verdict: reliable")
        assert "<table" in html
        assert "ELBO" in html

    def test_html_escapes_names(self):
        def model():
            pyro.sample("<b>x</b>", dist.Normal(0.0, 1.0))

        posterior = FlowVI(model, num_steps=1, progress=False).run()
        assert "<b>x</b>" not in posterior._repr_html_()

    @pytest.mark.parametrize("make", [lambda: fitted("groups"), fitted_tails])
    def test_plot(self, make):
        posterior = make()
        figure = posterior.plot()
        try:
            assert isinstance(figure, Figure)
            assert len(figure.axes) >= 3
            title = figure._suptitle.get_text() if figure._suptitle else ""
            assert posterior.verdict.status in title
        finally:
            plt.close(figure)

    def test_report_and_history(self):
        posterior = fitted("gamma")
        assert posterior.report.stop_reason
        assert len(posterior.report.history["elbo"]) == posterior.report.steps

    def test_a_model_without_parameters_has_none(self):
        assert fitted("normal").parameters == {}


@pytest.fixture(scope="module")
def exported():
    torch.set_default_dtype(torch.float64)
    return fitted("groups").to_arviz(300)


class TestArviz:
    def test_groups(self, exported):
        found = exported.groups
        names = {name.strip("/") for name in (found() if callable(found) else found)}
        expected = {"posterior", "sample_stats", "log_likelihood", "posterior_predictive"}
        assert expected | {"observed_data", "training"} <= names

    def test_dims_and_coords(self, exported):
        posterior = group(exported, "posterior")
        assert posterior["theta"].dims == ("chain", "draw", "school")
        assert posterior["theta"].shape == (1, 300, 3)
        assert posterior["school"].values.tolist() == [0, 1, 2]
        assert posterior["weight"].dims == ("chain", "draw", "weight_dim_0")
        assert posterior["mu"].dims == ("chain", "draw")
        observed = group(exported, "observed_data")
        assert observed["y"].dims == ("pupil", "school")
        np.testing.assert_array_equal(observed["y"].values, SCORES.numpy())

    def test_values_are_those_of_draws(self, exported):
        draws = fitted("groups").draws(300)
        for name, value in draws.items():
            np.testing.assert_allclose(group(exported, "posterior")[name].values[0], value.numpy())

    def test_deterministic_sites(self, exported):
        posterior = group(exported, "posterior")
        total = posterior["weight"].values[..., 0] + posterior["mu"].values
        np.testing.assert_allclose(posterior["total"].values, total)

    def test_log_likelihood_is_pointwise(self, exported):
        found = group(exported, "log_likelihood")["y"]
        assert found.dims == ("chain", "draw", "pupil", "school")
        theta = torch.as_tensor(group(exported, "posterior")["theta"].values[0])
        expected = dist.Normal(theta[:, None], 1.0).log_prob(SCORES)
        np.testing.assert_allclose(found.values[0], expected.numpy())

    def test_sample_stats(self, exported):
        stats, posterior = group(exported, "sample_stats"), fitted("groups")
        assert {"log_p", "log_q", "log_weight", "lp"} <= set(stats.data_vars)
        assert stats["log_p"].shape == (1, 300)
        _, _, index = posterior._delivered(300)
        np.testing.assert_array_equal(stats["log_q"].values[0], posterior.pool.log_q[index])

    def test_attributes(self, exported):
        attrs, posterior = exported.attrs, fitted("groups")
        # ArviZ 0.x puts them on each group.
        attrs = attrs or group(exported, "posterior").attrs
        assert attrs["verdict"] == posterior.verdict.status
        assert json.loads(attrs["reasons"]) == list(posterior.verdict.reasons)
        assert attrs["elbo"] == posterior.elbo
        assert attrs["inference_library"] == "pyro_flows"
        assert attrs["seed"] == 0

    def test_arviz_can_use_it(self, exported):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = az.summary(exported, var_names=["mu", "theta"], round_to="none")
            loo = az.loo(exported)
        np.testing.assert_allclose(
            table["mean"].astype(float).values[0], float(fitted("groups").draws(300)["mu"].mean())
        )
        elpd = getattr(loo, "elpd_loo", None) or loo.elpd
        assert -60 < elpd < 0

    def test_netcdf_keeps_it(self, exported, tmp_path):
        from pyro_flows.diagnostics import load_netcdf, save_netcdf

        save_netcdf(exported, tmp_path / "fit.nc")
        again = load_netcdf(tmp_path / "fit.nc")
        np.testing.assert_allclose(
            group(again, "posterior")["theta"].values, group(exported, "posterior")["theta"].values
        )

    def test_the_predictive_is_right(self):
        mean, sd, _ = normal_mean_exact(Y)
        new = group(fitted("normal").to_arviz(4000), "posterior_predictive")["y"]
        assert new.shape == (1, 4000, 4)
        assert float(new.mean()) == pytest.approx(mean, abs=0.05)
        assert float(new.std()) == pytest.approx(math.sqrt(1 + sd**2), rel=0.03)
        # One mean per draw: two observations of a draw go together, but for their own noise.
        pair = np.corrcoef(new.values[0, :, 0], new.values[0, :, 1])[0, 1]
        assert pair == pytest.approx(sd**2 / (1 + sd**2), abs=0.06)

    def test_without_the_predictive(self):
        idata = fitted("normal").to_arviz(50, predictive=False)
        with pytest.raises((KeyError, AttributeError)):
            group(idata, "posterior_predictive")
        assert group(idata, "posterior")["mean"].shape == (1, 50)

    def test_corrected_draws_come_with_the_raw_ones(self):
        posterior = fitted_tails()
        idata = posterior.to_arviz(200)
        raw = group(idata, "guide_draws")
        np.testing.assert_array_equal(raw["x"].values[0], posterior.pool.z[:200, 0])
        assert raw["v"].dims == ("chain", "draw", "two")
        np.testing.assert_array_equal(
            raw["log_weight"].values[0], posterior.weights.log_weights[:200]
        )
        np.testing.assert_allclose(
            group(idata, "posterior")["x"].values[0], posterior.draws(200)["x"].numpy()
        )

    def test_a_deterministic_of_a_scalar(self):
        posterior = group(fitted("gamma").to_arviz(50), "posterior")
        np.testing.assert_allclose(posterior["scale"].values, 1 / posterior["rate"].values)

    def test_a_subsampled_plate_has_no_log_likelihood(self):
        def model(y):
            mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            with pyro.plate("data", len(y), subsample_size=3) as index:
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y[index])

        idata = FlowVI(model, num_steps=2, progress=False).run(torch.zeros(10)).to_arviz(40)
        assert "log_likelihood" not in group_names(idata)
        assert "log joint is random" in attributes(idata)["log_likelihood_left_out"]
        assert group(idata, "posterior_predictive")["y"].shape == (1, 40, 3)

    def test_enumerated_sites_have_no_log_likelihood(self):
        def model(y):
            loc = pyro.sample("loc", dist.Normal(torch.tensor([-2.0, 2.0]), 1.0).to_event(1))
            with pyro.plate("data", len(y)):
                k = pyro.sample(
                    "k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"}
                )
                pyro.sample("y", dist.Normal(loc[..., k], 1.0), obs=y)

        posterior = FlowVI(model, num_steps=2, progress=False).run(Y)
        idata = posterior.to_arviz(40)
        assert "log_likelihood" not in group_names(idata)
        assert "enumerated discrete sites" in attributes(idata)["log_likelihood_left_out"]
        assert group(idata, "posterior_predictive")["y"].shape == (1, 40, 4)

    @pytest.mark.parametrize("how", ["handler", "distribution", "event"])
    def test_masked_elements(self, how):
        mask = torch.tensor([True, False, True, False])

        def model(y):
            mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            with pyro.plate("data", len(y)):
                fn = dist.Poisson(mean.exp())
                if how == "event":
                    fn = dist.Normal(mean, 1.0).expand([4, 2]).to_event(1)
                if how == "distribution":
                    pyro.sample("y", fn.mask(mask), obs=y)
                else:
                    with pyro.poutine.mask(mask=mask):
                        pyro.sample("y", fn, obs=y)

        y = torch.tensor([1, 2, 3, 4])
        if how == "event":
            y = torch.stack([y, y], -1).double()
        idata = FlowVI(model, num_steps=2, progress=False).run(y).to_arviz(30)
        found = group(idata, "log_likelihood")["y"].values
        assert found.shape == (1, 30, 4)
        assert np.isfinite(found).all()
        assert (found[..., ~mask.numpy()] == 0).all()
        assert (found[..., mask.numpy()] != 0).all()
        seen = group(idata, "observed_data")["y"].values
        np.testing.assert_array_equal(seen[mask.numpy()], y[mask].double().numpy())
        assert np.isnan(seen[~mask.numpy()]).all()
        assert "log_likelihood_left_out" not in attributes(idata)


class TestWithheldMoments:
    def table(self, df, model="normal"):
        """The summary of a posterior whose draws are Student's t's."""
        posterior = copy.copy(fitted(model))
        rng = np.random.default_rng(0)
        z = rng.standard_t(df, size=(40_000, posterior.pool.z.shape[1]))
        posterior.pool = Pool(z, posterior.pool.log_p, posterior.pool.log_p)
        return posterior.summary().iloc[0]

    def test_where_only_the_square_has_no_mean(self):
        row = self.table(2)
        assert math.isnan(row["sd"])
        assert math.isfinite(row["mean"])
        assert row["note"].startswith("sd withheld")
        assert row["median"] == pytest.approx(0.0, abs=0.05)

    def test_where_there_is_no_mean(self):
        row = self.table(1)
        assert math.isnan(row["sd"])
        assert math.isnan(row["mean"])
        assert math.isnan(row["mcse"])
        assert row["note"].startswith("mean and sd withheld")
        assert row["median"] == pytest.approx(0.0, abs=0.05)

    def test_where_the_constrained_value_has_none(self):
        """The exponential of a Student's t with 4 degrees of freedom has no mean."""
        row = self.table(4, "gamma")
        assert math.isnan(row["mean"])
        assert row["median"] == pytest.approx(1.0, abs=0.1)

    def test_where_few_draws_are_at_hand(self):
        """As of a model that is scored particle by particle."""
        posterior = copy.copy(fitted("normal"))
        posterior.pool = Pool(
            *(part[:2000] for part in (posterior.pool.z, *[posterior.pool.log_p] * 2))
        )
        assert "note" not in posterior.summary().columns

    def test_values_that_overflow_have_no_mean(self):
        assert table_module._heavy(*table_module._tails(0.0, np.full(500, np.inf))) == 1
        assert table_module._heavy(np.nan, 0.1) == 1

    def test_there_is_no_note_where_all_is_well(self):
        assert "note" not in fitted("normal").summary().columns


def test_draws_outside_the_support_are_not_handed_over():
    """A guide of which two draws in a hundred are inside."""

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("edge", torch.where(x > 2.0, 0.0, -math.inf))

    guide = AutoFlow(model, init_loc_fn=lambda site: torch.tensor(3.0)).setup()
    guide.affine.set(torch.zeros(1), torch.eye(1))
    posterior = assess(model, guide)
    assert posterior.weights.n_zero > 0.9 * posterior.weights.n
    for n in (500, 4000):
        x = posterior.draws(n)["x"]
        assert len(x) == n
        assert bool((x > 2).all())
    assert re.search(
        r"2\.\d\d% of the guide's draws are inside the support", str(posterior.verdict)
    )


@pytest.mark.parametrize("wrap", ["to_event", "mask"])
def test_the_evidence_is_relative_however_a_flat_prior_is_wrapped(wrap):
    def model():
        shape = (3,) if wrap == "to_event" else ()
        flat = dist.ImproperUniform(dist.constraints.real, shape, ())
        x = pyro.sample("x", flat.to_event(1) if wrap == "to_event" else flat.mask(True))
        pyro.sample("y", dist.Normal(x, 1.0).to_event(x.dim()), obs=torch.zeros(x.shape))

    posterior = FlowVI(model, num_steps=1, progress=False).run()
    assert "(relative: improper prior on 'x')" in str(posterior)


def test_a_summary_of_draws_that_are_all_outside_the_support():
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.factor("nowhere", torch.where(x.sum() < 1e6, 0.0, -math.inf))

    posterior = FlowVI(model, num_steps=2, progress=False).run()
    posterior.pool.log_p[:] = -math.inf
    table = posterior.summary()
    assert list(table.index) == ["x[0]", "x[1]"]
    assert table["mean"].notna().all()
