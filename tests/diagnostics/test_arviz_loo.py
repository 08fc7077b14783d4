# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""Leave-one-out cross-validation from draws of q, against exact answers and both lines of ArviZ.

Loaded as in ``test_arviz_seam``, since this also runs where torch is not installed.
"""

import importlib
import math
import sys
import time
import types
import warnings
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest

ROOM = Path(__file__).resolve().parents[2] / "pyro_flows" / "diagnostics"
_room = sys.modules.setdefault("_diagnostics_room", types.ModuleType("_diagnostics_room"))
_room.__path__ = [str(ROOM)]
seam = importlib.import_module("_diagnostics_room.arviz_seam")
loo = importlib.import_module("_diagnostics_room.loo")
compare_loo = importlib.import_module("_diagnostics_room.comparison").compare_loo
az = seam.import_arviz()
modern = seam.arviz_major() >= 1

# A normal mean with unit noise and a prior N(0, 10^2).
Y = np.array([1.0, 2.0, 3.0, 2.5, 0.5, 1.5, 4.0, 2.0])
PRIOR = 10.0


def normal(x, mean, sd):
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd) - 0.5 * math.log(2 * math.pi)


def posterior(y):
    variance = 1.0 / (1.0 / PRIOR**2 + len(y))
    return variance * y.sum(), math.sqrt(variance)


def exact(y=Y):
    """log p(y_i | the others), each."""
    rest = [posterior(np.delete(y, i)) for i in range(len(y))]
    return np.array([normal(y[i], m, math.hypot(s, 1.0)) for i, (m, s) in enumerate(rest)])


def draws(width=1.0, shift=0.0, n=4000, seed=0, y=Y):
    """log p - log q and log likelihoods at draws of a q that is off by so many sd."""
    mean, sd = posterior(y)
    q = mean + shift * sd, width * sd
    mu = q[0] + q[1] * np.random.default_rng(seed).normal(size=n)
    ll = normal(y, mu[:, None], 1.0)
    return normal(mu, 0.0, PRIOR) + ll.sum(1) - normal(mu, *q), ll


def through_arviz(ll):
    """What ``az.loo`` says of draws that it takes for the posterior's own."""
    groups = {"posterior": {"mu": np.zeros((1, len(ll)))}, "log_likelihood": {"y": ll[None]}}
    data = seam.to_container(groups, dims={}, coords={}, attrs={})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Estimated shape parameter", UserWarning)
        return az.loo(data, pointwise=True)


def elpd_of(found):
    return (found.elpd, found.elpd_i, found.p) if modern else (
        found.elpd_loo, found.loo_i, found.p_loo
    )  # fmt: skip


class TestAgainstTheTruth:
    @pytest.mark.parametrize("seed", range(5))
    def test_corrected_right_and_raw_wrong(self, seed):
        log_ratio, ll = draws(1.3, 0.5, seed=seed)
        found = loo.psis_loo(log_ratio, ll)
        assert abs(found.elpd - exact().sum()) < 3 * found.mcse < 0.1
        assert abs(found.elpd_i - exact()).max() < 0.1
        raw = elpd_of(through_arviz(ll))[0]
        assert abs(raw - exact().sum()) > 10 * found.mcse
        assert found.warnings == ()
        assert found.khat_i.max() < found.threshold == 0.7

    def test_too_narrow_a_q_warns(self):
        for seed in range(5):
            found = loo.psis_loo(*draws(0.5, seed=seed))
            assert found.khat_i.max() >= found.threshold
            assert found.mcse == math.inf
            (text,) = found.warnings
            assert "of 8 points (highest: " in text
            assert "a better guide (train longer" in text
            assert "not known" in str(found)
            assert text in str(found)
            assert str(found).endswith("#leave-one-out")

    def test_p_loo_is_that_of_the_posterior_not_of_q(self):
        wide = loo.psis_loo(*draws(1.5, n=20_000))
        own = loo.psis_loo(*draws(n=20_000))
        assert wide.p_loo == pytest.approx(own.p_loo, abs=0.05)
        assert elpd_of(through_arviz(draws(1.5)[1]))[2] > 1.5 * own.p_loo

    def test_the_monte_carlo_error_is_that_over_seeds(self):
        runs = [loo.psis_loo(*draws(1.3, 0.5, n=1000, seed=s)) for s in range(100)]
        spread = np.std([run.elpd for run in runs], ddof=1)
        assert np.mean([run.mcse for run in runs]) == pytest.approx(spread, rel=0.25)
        # The points share their draws: their errors don't add as those of strangers would.
        log_ratio, ll = draws(1.3, 0.5, n=1000)
        apart = [loo.psis_loo(log_ratio, ll[:, [i]]).mcse for i in range(8)]
        assert math.hypot(*apart) < 0.9 * runs[0].mcse

    def test_an_outlier_has_the_highest_khat(self):
        y = np.r_[Y, 12.0]
        found = loo.psis_loo(
            *draws(y=y, n=2000), dims=["point"], coords={"point": list("abcdefghX")}
        )
        assert int(np.argmax(found.khat_i)) == 8
        assert found.khat_i[8] > found.threshold
        (text,) = found.warnings
        assert "1 of 9 points" in text
        assert "at X)" in text
        assert "Look at these points" in text


class TestAgainstArviz:
    def test_exact_draws_give_what_arviz_says(self):
        _, ll = draws(n=1000)
        mine, theirs = loo.psis_loo(np.zeros(1000), ll), through_arviz(ll)
        elpd, pointwise, p_loo = elpd_of(theirs)
        np.testing.assert_allclose(mine.elpd_i, pointwise.values, atol=1e-12)
        np.testing.assert_allclose(mine.khat_i, theirs.pareto_k.values, atol=1e-12)
        np.testing.assert_allclose([mine.elpd, mine.p_loo], [elpd, p_loo], atol=1e-10)
        # A sample's variance, as in 1.x and R's loo; 0.x divides by N.
        assert mine.se == pytest.approx(theirs.se * (1.0 if modern else math.sqrt(8 / 7)))
        assert (mine.n_draws, mine.threshold) == (1000, theirs.good_k)

    @pytest.mark.skipif(not modern, reason="new in ArviZ 1.x")
    def test_the_correction_is_that_of_loo_approximate_posterior(self):
        log_ratio, ll = draws(1.3, 0.5)
        groups = {"posterior": {"mu": np.zeros((1, 4000))}, "log_likelihood": {"y": ll[None]}}
        data = seam.to_container(groups, dims={}, coords={}, attrs={})
        theirs = az.loo_approximate_posterior(data, log_ratio, np.zeros(4000), pointwise=True)
        mine = loo.psis_loo(log_ratio, ll)
        np.testing.assert_allclose(mine.elpd_i, theirs.elpd_i.values, atol=1e-9)
        np.testing.assert_allclose(mine.khat_i, theirs.pareto_k.values, atol=1e-9)

    def test_the_result_is_arvizs_own_class(self):
        log_ratio, ll = draws(1.3, n=1000)
        two = ll.reshape(1000, 2, 4)
        found = loo.psis_loo(log_ratio, two, dims=["a", "b"], coords={"b": list("wxyz")})
        mine, theirs = found.to_arviz(), through_arviz(two)
        assert type(mine).__module__ == type(theirs).__module__
        assert elpd_of(mine)[1].dims == mine.pareto_k.dims == ("a", "b")
        assert list(mine.pareto_k["b"].values) == list("wxyz")
        assert f"{found.elpd:.2f}"[:6] in str(mine)
        names = (
            ["elpd", "se", "p", "n_samples", "n_data_points", "scale", "warning", "good_k"]
            if modern
            else list(theirs.index)
        )
        for name in names:
            assert isinstance(mine[name], type(theirs[name])) or np.isscalar(mine[name])

    # pyplot is ArviZ's way, and old arrays of matplotlib's its trouble.
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_arvizs_plots_take_it(self):
        mpl.use("Agg")
        a, b = (loo.psis_loo(*draws(width, n=500)) for width in (1.0, 1.3))
        table = az.compare({"a": a.to_arviz(), "b": b.to_arviz()})
        assert set(table.index) == {"a", "b"}
        az.plot_khat(a.to_arviz())
        az.plot_compare(table)
        mpl.pyplot.close("all")


class TestWhereNothingCanBeSaid:
    def test_few_draws(self):
        found = loo.psis_loo(np.zeros(20), draws(n=20)[1])
        assert np.isinf(found.khat_i).all()
        assert found.mcse == math.inf
        assert "8 of 8 points" in found.warnings[0]

    def test_constant_weights_are_no_fault(self):
        found = loo.psis_loo(np.zeros(200), np.full((200, 3), -1.5))
        np.testing.assert_allclose(found.elpd_i, -1.5)
        assert (found.khat, found.p_loo, found.warnings) == (0.0, pytest.approx(0.0), ())
        assert (found.khat_i == 0.0).all()

    def test_draws_outside_the_support_count_for_nothing(self):
        log_ratio, ll = draws(1.3)
        more = np.r_[log_ratio, np.full(50, -np.inf)], np.r_[ll, np.full((50, 8), np.nan)]
        mine, theirs = loo.psis_loo(*more), loo.psis_loo(log_ratio, ll)
        assert mine.n_draws == 4000
        np.testing.assert_array_equal(mine.elpd_i, theirs.elpd_i)

    def test_a_point_that_alone_excludes_draws_is_named(self):
        # y ~ U(0, theta): without the largest one, theta may be smaller than it.
        rng = np.random.default_rng(0)
        y = np.array([1.0, 2.0, 5.0])
        theta = rng.uniform(1.5, 20.0, size=4000)
        ll = np.where(theta[:, None] > y, -np.log(theta)[:, None], -np.inf)
        found = loo.psis_loo(ll.sum(1), ll)
        assert found.khat_i[2] == math.inf
        # Draws between 1.5 and 2 are excluded by two points, which leaves both out of it.
        assert np.isfinite(found.khat_i[:2]).all()
        assert any("One point alone excludes draws" in text for text in found.warnings)
        assert found.mcse == math.inf

    def test_a_point_without_probability(self):
        log_ratio, ll = draws(n=500)
        ll[3, 2] = -np.inf
        found = loo.psis_loo(log_ratio, ll)
        assert found.elpd_i[2] == found.elpd == -math.inf
        assert found.khat_i[2] == math.inf
        assert math.isnan(found.se)
        with pytest.raises(ValueError, match="finite elpd of every model, got -inf for 'a'"):
            compare_loo({"a": found, "b": found})

    def test_one_point(self):
        found = loo.psis_loo(np.zeros(500), draws(n=500)[1].sum(1))
        assert found.elpd_i.shape == ()
        assert math.isnan(found.se)
        assert "only one point" in found.warnings[-1]
        assert found.to_arviz().pareto_k.shape == ()

    @pytest.mark.parametrize(
        ("ratio", "ll", "message"),
        [
            (np.zeros((5, 2)), np.zeros((5, 2)), r"got shapes \(5, 2\) and \(5, 2\)"),
            (np.zeros(5), np.zeros((4, 2)), r"got shapes \(5,\) and \(4, 2\)"),
            (np.zeros(5), np.zeros((5, 0)), "of some points"),
            (np.r_[0.0, np.nan], np.zeros((2, 2)), "got 1 NaN or .inf and 1 finite"),
            (np.full(3, -np.inf), np.zeros((3, 2)), "and 0 finite ones"),
            (np.zeros(3), np.full((3, 2), np.nan), "got 6 NaN or .inf, at 2 points and 3 draws"),
        ],
    )
    def test_what_is_no_draw_is_refused(self, ratio, ll, message):
        with pytest.raises(ValueError, match=message):
            loo.psis_loo(ratio, ll)


class TestComparison:
    def models(self):
        log_ratio, ll = draws(1.1, n=2000)
        worse = normal(Y, draws(1.1, n=2000)[1][:, :1] * 0 + 1.0, 2.0)
        return {
            "flat": loo.psis_loo(np.zeros(2000), worse + 0 * ll, observed=Y),
            "good": loo.psis_loo(log_ratio, ll, observed=Y),
        }

    def test_table(self):
        models = self.models()
        table = compare_loo(models)
        assert list(table.columns) == [
            "rank", "elpd", "p_loo", "elpd_diff", "dse", "se", "weight", "warning"
        ]  # fmt: skip
        assert list(table.index) == ["good", "flat"]
        assert list(table["rank"]) == [0, 1]
        gap = models["flat"].elpd_i - models["good"].elpd_i
        np.testing.assert_allclose(table["elpd_diff"], [0.0, gap.sum()], atol=1e-10)
        np.testing.assert_allclose(table["dse"], [0.0, math.sqrt(8 * gap.var())], atol=1e-10)
        np.testing.assert_allclose(table["elpd"], [models[k].elpd for k in table.index])
        assert table["weight"].sum() == pytest.approx(1.0)
        assert not table["warning"].any()

    def test_weights_of_points_of_tiny_density(self):
        # exp(-2000) is zero: stacking has to work on differences.
        rng = np.random.default_rng(0)
        ll = rng.normal(scale=0.1, size=(500, 40)) - 2000.0
        better = ll + np.where(np.arange(40) % 4, 1.0, -1.0)
        table = compare_loo(
            {"a": loo.psis_loo(np.zeros(500), ll), "b": loo.psis_loo(np.zeros(500), better)}
        )
        # The best mixture of densities 1 and e (3 in 4) or 1/e, worked out by hand.
        e, w = math.e, np.linspace(0, 1, 100_001)
        best = w[np.argmax(0.75 * np.log(w * e + 1 - w) + 0.25 * np.log(w / e + 1 - w))]
        assert table.loc["b", "weight"] == pytest.approx(best, abs=1e-3)

    def test_a_result_with_warnings_is_marked(self):
        bad = loo.psis_loo(*draws(0.5))
        table = compare_loo({"bad": bad, "good": loo.psis_loo(*draws())})
        assert dict(table["warning"]) == {"bad": True, "good": False}

    def test_other_data_are_refused(self):
        models = self.models()
        shorter = loo.psis_loo(np.zeros(500), draws(n=500)[1][:, 1:])
        with pytest.raises(ValueError, match="got 8 points for 'good' and 7 for 'short'"):
            compare_loo({"good": models["good"], "short": shorter})
        other = loo.psis_loo(*draws(n=500), observed=np.log(Y + 1))
        with pytest.raises(ValueError, match="other observed values for 'good' than for 'log'"):
            compare_loo({"good": models["good"], "log": other})
        with pytest.raises(ValueError, match="at least two models"):
            compare_loo({"good": models["good"]})


def test_a_thousand_points_are_quick():
    ll = np.random.default_rng(0).normal(size=(4000, 1000))
    begun = time.perf_counter()
    found = loo.psis_loo(np.zeros(4000), ll)
    assert time.perf_counter() - begun < 20  # 1 to 2 seconds where nothing else runs
    assert found.elpd_i.shape == (1000,)
