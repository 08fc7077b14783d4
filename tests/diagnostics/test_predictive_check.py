# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Statistics of data among those of new data, LOO-PIT values, and their picture."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy import stats

from pyro_flows.diagnostics import (
    PredictiveCheck,
    loo_pit,
    plot_predictive_check,
    predictive_pvalues,
)


def normal_data(n, size, seed, true_sd=1.0):
    """A normal mean with unit noise, flat prior: data, new data, log likelihoods; exact draws."""
    rng = np.random.default_rng(seed)
    y = true_sd * rng.normal(size=n)
    mu = y.mean() + rng.normal(size=size) / math.sqrt(n)
    return y, mu[:, None] + rng.normal(size=(size, n)), -0.5 * (y - mu[:, None]) ** 2, mu


class TestPValues:
    def test_by_hand(self):
        new = np.arange(10.0)[:, None] + np.zeros((10, 3))
        table = predictive_pvalues(np.full(3, 7.0), new, statistics=["mean", "sd", "min"])
        assert table.loc["mean", "observed"] == 7.0
        assert table.loc["mean", "p_value"] == pytest.approx(2 * 3 / 10)  # 7, 8 and 9 of ten
        assert table.loc["sd", "p_value"] == 1.0
        np.testing.assert_allclose(
            table.loc["min", ["5%", "median", "95%"]],
            np.quantile(np.arange(10), [0.05, 0.5, 0.95]),
        )

    def test_a_misfit_shows_where_it_is(self):
        y, new, _, _ = normal_data(100, 1000, 0, true_sd=2.0)
        table = predictive_pvalues(y, new)
        assert table.loc["sd", "p_value"] == 0.0
        assert table.loc["mean", "p_value"] > 0.5  # fitted directly, so it can't be off

    def test_they_are_conservative_where_the_model_is_right(self):
        p = [predictive_pvalues(*normal_data(30, 200, seed)[:2]) for seed in range(50)]
        means = np.array([table.loc["mean", "p_value"] for table in p])
        assert (means > 0.5).mean() > 0.9

    def test_functions_get_the_datas_shape(self):
        shapes = set()

        def spread(y):
            shapes.add(y.shape)
            return np.ptp(y)

        y = np.random.default_rng(0).normal(size=(4, 5))
        table = predictive_pvalues(y, np.stack([y, y + 1, y - 1]), statistics=[spread, "median"])
        assert list(table.index) == ["spread", "median"]
        assert shapes == {(4, 5)}
        assert table.loc["spread", "p_value"] == 1.0

    def test_a_nan_is_not_a_p_value(self):
        y, new, _, _ = normal_data(10, 50, 0)
        new[3, 2] = np.nan
        table = predictive_pvalues(y, new)
        assert table["p_value"].isna().all()
        assert predictive_pvalues(y[:1], new[:, :1])["p_value"].isna()["sd"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"observed": np.zeros(3)}, r"got \(3,\) and \(5, 4\)"),
            ({"observed": np.zeros(0), "replicated": np.zeros((5, 0))}, "Expected data"),
            ({"statistics": ["mode"]}, r"among \['max', .* got 'mode'"),
            ({"statistics": ["mean", "mean"]}, "'mean' twice"),
            ({"statistics": [np.sort]}, r"number from the statistic 'sort', got shape \(4,\)"),
            ({"interval": 1.0}, "between 0 and 1, got 1.0"),
        ],
    )
    def test_refusals(self, arguments, message):
        given = {"observed": np.zeros(4), "replicated": np.zeros((5, 4)), **arguments}
        with pytest.raises(ValueError, match=message):
            predictive_pvalues(given.pop("observed"), given.pop("replicated"), **given)


class TestLooPit:
    def test_it_is_the_predictive_distribution_without_the_point(self):
        y, new, ll, _ = normal_data(8, 20_000, 0)
        pit, khat = loo_pit(np.zeros(20_000), ll, y, new, rng=np.random.default_rng(0))
        rest = np.array([np.delete(y, i).mean() for i in range(8)])
        exact = stats.norm.cdf(y, rest, math.sqrt(1 + 1 / 7))
        np.testing.assert_allclose(pit, exact, atol=0.02)
        assert khat.shape == (8,)
        raw = (new < y).mean(0)
        assert np.abs(raw - exact).max() > 2 * np.abs(pit - exact).max()

    def test_it_is_corrected_for_a_q_that_is_off(self):
        y, _, _, _ = normal_data(8, 1, 0)
        rng = np.random.default_rng(1)
        sd = 1 / math.sqrt(8)
        mu = y.mean() + 0.5 * sd + 1.3 * sd * rng.normal(size=20_000)
        log_ratio = stats.norm.logpdf(mu, y.mean(), sd) - stats.norm.logpdf(
            mu, y.mean() + 0.5 * sd, 1.3 * sd
        )
        new, ll = mu[:, None] + rng.normal(size=(20_000, 8)), -0.5 * (y - mu[:, None]) ** 2
        rest = np.array([np.delete(y, i).mean() for i in range(8)])
        exact = stats.norm.cdf(y, rest, math.sqrt(1 + 1 / 7))
        pit, _ = loo_pit(log_ratio, ll, y, new, rng=rng)
        np.testing.assert_allclose(pit, exact, atol=0.02)
        uncorrected, _ = loo_pit(np.zeros(20_000), ll, y, new, rng=rng)
        assert np.abs(uncorrected - exact).max() > 0.04

    def test_counts_are_uniform_too(self):
        rng = np.random.default_rng(0)
        y = rng.poisson(1.5, size=400)
        new = rng.poisson(1.5, size=(1000, 400))
        pit, _ = loo_pit(np.zeros(1000), np.zeros((1000, 400)), y, new, rng=rng)
        assert stats.kstest(pit, "uniform").pvalue > 0.01
        assert np.unique(pit).size > 390

    def test_event_axes_share_their_points_weights(self):
        rng = np.random.default_rng(0)
        y, new = rng.normal(size=(5, 2)), rng.normal(size=(500, 5, 2))
        ll = rng.normal(size=(500, 5))
        pit, khat = loo_pit(np.zeros(500), ll, y, new, rng=rng)
        assert (pit.shape, khat.shape) == ((5, 2), (5,))
        one, _ = loo_pit(np.zeros(500), ll, y[:, 0], new[..., 0], rng=rng)
        np.testing.assert_allclose(pit[:, 0], one)

    def test_nan_stays_and_shapes_must_fit(self):
        y, new, ll, _ = normal_data(4, 200, 0)
        new[7, 1] = np.nan
        pit, _ = loo_pit(np.zeros(200), ll, y, new, rng=np.random.default_rng(0))
        assert np.isnan(pit).tolist() == [False, True, False, False]
        with pytest.raises(ValueError, match=r"Expected data of shape \(4,\)"):
            loo_pit(np.zeros(200), ll, y[:3], new[:, :3], rng=np.random.default_rng(0))


def check(y, new, **more):
    return PredictiveCheck(table=predictive_pvalues(y, new), observed=y, replicated=new, **more)


class TestResult:
    def test_uniform_and_not(self):
        good = check(*normal_data(50, 200, 0)[:2], pit=np.linspace(0.01, 0.99, 50))
        bad = check(*normal_data(50, 200, 0)[:2], pit=np.linspace(0.4, 0.6, 50))
        assert good.pit_p_value > 0.5
        assert bad.pit_p_value < 1e-3
        assert "uniform with p < 0.001." in str(bad)
        assert math.isnan(check(*normal_data(50, 200, 0)[:2]).pit_p_value)

    def test_it_prints_what_p_values_are(self):
        text = str(check(*normal_data(50, 200, 0)[:2], notes=("Look out.",)))
        assert text.startswith("50 data, 200 sets of new data.")
        assert "conservative: the data were used to fit, too" in text
        assert text.endswith("Note: Look out.")


def titles(figure):
    return [ax.get_title(loc="left") for ax in figure.axes]


class TestPlot:
    def test_panels(self):
        y, new, ll, _ = normal_data(40, 300, 0)
        figure = plot_predictive_check(y, new)
        assert isinstance(figure, Figure)
        assert titles(figure)[:2] == ["Data and new data", "Distribution functions"]
        pit, _ = loo_pit(np.zeros(300), ll, y, new, rng=np.random.default_rng(0))
        found = check(y, new, pit=pit, statistics=("mean", np.ptp))
        assert titles(found.plot())[1].startswith("LOO-PIT less uniform: p = ")
        assert [title.split(":")[0] for title in titles(found.plot())[2:]] == ["mean", "ptp"]

    def test_counts_get_a_bar_each(self):
        rng = np.random.default_rng(0)
        y, new = rng.poisson(3.0, size=60), rng.poisson(3.0, size=(200, 60))
        bars = plot_predictive_check(y, new, discrete=True).axes[0].patches[0]
        edges = bars.get_data().edges
        np.testing.assert_allclose(np.diff(edges), 1.0)
        assert edges[0] % 1 == 0.5
        # The bars of the data add up to the data.
        own = plot_predictive_check(y, new, discrete=True).axes[0].patches[-1].get_data().values
        assert own.sum() == 60

    @pytest.mark.parametrize(
        ("y", "new"),
        [
            (np.zeros(1), np.zeros((3, 1))),
            (np.zeros(5), np.full((3, 5), np.nan)),
            (np.arange(5.0), np.random.default_rng(0).standard_cauchy(size=(50, 5)) * 1e9),
            (np.arange(6.0).reshape(2, 3), np.zeros((4, 2, 3))),
        ],
        ids=["one", "nan", "cauchy", "matrix"],
    )
    @pytest.mark.parametrize("discrete", [False, True])
    def test_odd_data_are_drawn(self, y, new, discrete, tmp_path):
        figure = plot_predictive_check(
            y, new, discrete=discrete, statistics=["mean", "max"], pit=np.full(y.shape, np.nan)
        )
        figure.savefig(tmp_path / "check.png")

    def test_no_statistics(self, tmp_path):
        y, new, _, _ = normal_data(10, 50, 0)
        figure = plot_predictive_check(y, new, statistics=())
        assert len(figure.axes) == 2
        figure.savefig(tmp_path / "check.png")
