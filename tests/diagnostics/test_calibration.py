# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""Calibrated ranks pass as often as they should, faults are found and named, plots say so."""

import io
import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure
from scipy.stats import binom, norm

from pyro_flows.diagnostics import (
    Calibration,
    ecdf_band,
    ecdf_p_value,
    plot_coverage,
    plot_ecdf_difference,
    plot_ranks,
    rank_among,
)
from pyro_flows.diagnostics.calibration import counting_points, counts_below, holm, uniformity


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def normal_ranks(rng, *, simulations=200, n_draws=99, scale=1.0, shift=0.0, elements=1):
    """Ranks for a conjugate normal model whose posterior is off by a factor and a shift, in sd.

    mean ~ N(0, 2), y ~ N(mean, 1), so that the posterior is N(0.8 y, 0.8).
    """
    mean = rng.normal(0.0, 2.0, (simulations, elements))
    y = rng.normal(mean, 1.0)
    sd = np.sqrt(0.8)
    noise = rng.normal(size=(n_draws, simulations, elements))
    draws = 0.8 * y + sd * (shift + scale * noise)
    return rank_among(mean, draws, rng)


# Ranks.


def test_ranks_count_the_draws_below(rng):
    draws = np.arange(10.0)
    assert rank_among(np.array(4.5), draws, rng) == 5
    assert rank_among(np.array(-1.0), draws, rng) == 0
    assert rank_among(np.array(99.0), draws, rng) == 10


def test_ties_are_broken_at_random(rng):
    ranks = [int(rank_among(np.array(1.0), np.ones(4), rng)) for _ in range(2000)]
    assert np.bincount(ranks, minlength=5).min() > 330


@pytest.mark.parametrize(
    ("truth", "draws", "words"),
    [(np.zeros(2), np.zeros((5, 3)), "along the first axis"), (np.array(np.nan), [1.0], "NaN")],
)
def test_what_has_no_rank_is_refused(truth, draws, words, rng):
    with pytest.raises(ValueError, match=words):
        rank_among(truth, draws, rng)


# The band.


def test_the_band_holds_with_the_stated_probability_exactly():
    """Against a sum over all paths of counts of 6 values at 3 points."""
    points, n = (0.2, 0.5, 0.6), 6
    lower, upper = ecdf_band(n, points, 0.9)
    inside = 0.0
    for path in itertools.product(range(n + 1), repeat=3):
        if all(a <= c <= b for a, c, b in zip(lower, path, upper, strict=True)):
            inside += _probability(path, n, points)
    assert inside >= 0.9
    # A count that leaves the band has a p-value below 10%, and only that one.
    for path in itertools.product(range(n + 1), repeat=3):
        if list(path) == sorted(path):
            out = any(c < a or c > b for a, c, b in zip(lower, path, upper, strict=True))
            assert out == (ecdf_p_value(np.array(path), n, points) <= 0.1)


def _probability(path, n, points):
    total, before, at = 1.0, 0, 0.0
    for count, point in zip(path, points, strict=True):
        total *= binom.pmf(count - before, n - before, (point - at) / (1 - at))
        before, at = count, point
    return total


@pytest.mark.parametrize(("n", "n_draws"), [(100, 999), (40, 19), (250, 100)])
def test_calibrated_ranks_leave_the_band_as_often_as_stated(n, n_draws, rng):
    bounds, points = counting_points(n, n_draws)
    lower, upper = ecdf_band(n, points)
    samples = rng.integers(0, n_draws + 1, (5000, n)).astype(float)
    counts = np.stack([counts_below(x, bounds) for x in samples])
    outside = ((counts < lower) | (counts > upper)).any(1)
    assert 0.035 < outside.mean() <= 0.06  # counts are whole numbers: at most 5%, but for chance
    p = np.array([uniformity(x, n_draws) for x in samples[:200]])
    assert ((p <= 0.05) == outside[:200]).all()
    assert abs((p <= 0.5).mean() - 0.5) < 0.12


def test_band_needs_points_inside():
    with pytest.raises(ValueError, match="increase between 0 and 1"):
        ecdf_band(10, (0.5, 0.5))
    with pytest.raises(ValueError, match="leave out 0 and 1"):
        ecdf_band(10, (0.5, 1.0))


def test_holm_is_bonferroni_for_the_least_and_gentler_after():
    assert holm(np.array([0.012, 0.9, 0.02, 0.016])).tolist() == [True, False, True, True]
    assert holm(np.array([0.013, 0.9, 0.02, 0.016])).tolist() == [False] * 4


# What a calibration says.


def test_an_exact_posterior_passes(rng):
    found = Calibration({"mean": normal_ranks(rng, elements=6)}, 99, ["reliable"] * 200)
    table = found.table()
    assert found.p_value > 0.05
    assert list(table.index) == [f"mean[{i}]" for i in range(6)]
    assert (table["note"] == "").all()
    assert (table["shift"].abs() < 4 / np.sqrt(200)).all()
    assert ((table["spread"] - 1).abs() < 4 / np.sqrt(400)).all()
    assert (abs(table["in 90%"] - 0.9) < 0.1).all()
    assert "no sign of a fault in 200 simulations" in repr(found)
    assert "0.3 expected by chance" in repr(found)


@pytest.mark.parametrize(
    ("wrong", "note"),
    [
        ({"scale": 0.6}, "posterior too narrow"),
        ({"scale": 1.7}, "posterior too wide"),
        ({"shift": 0.5}, "posterior too high"),
        ({"shift": -0.5}, "posterior too low"),
    ],
)
def test_faults_are_found_and_named(wrong, note, rng):
    ranks = {
        "right": normal_ranks(rng, elements=4)[:, :, None],
        "wrong": normal_ranks(rng, **wrong),
    }
    found = Calibration(ranks, 99)
    table = found.table()
    assert found.p_value < 0.01
    assert table.loc["wrong[0]", "note"] == note
    assert (table["note"].iloc[:4] == "").all()
    assert "signs of a fault" in repr(found)
    scale, shift = wrong.get("scale", 1.0), wrong.get("shift", 0.0)
    # In units of the posterior that was claimed, and as far as 99 draws reach.
    assert abs(table.loc["wrong[0]", "spread"] - 1 / scale) < 0.3
    assert abs(table.loc["wrong[0]", "shift"] + shift) < 0.25


def test_coverage_of_too_narrow_a_posterior(rng):
    ranks = normal_ranks(rng, simulations=1000, n_draws=199, scale=0.5)[:, 0]
    row = Calibration({"mean": ranks}, 199).coverage([0.5, 0.9]).loc[("mean", 0.9)]
    exact = 2 * norm.cdf(0.5 * norm.ppf(0.95)) - 1
    assert row["nominal"] == pytest.approx(0.9)
    assert row["low"] < exact < row["high"] < 0.9
    assert row["low"] < row["actual"] < row["high"]


def test_coverage_when_all_or_none_are_inside():
    table = Calibration({"in": np.full(20, 50), "out": np.zeros(20)}, 99).coverage([0.5])
    assert table.loc[("in", 0.5), "high"] == 1.0
    assert table.loc[("out", 0.5), "low"] == 0.0
    assert 0.5 < table.loc[("in", 0.5), "low"] < 1.0
    with pytest.raises(ValueError, match="between 0 and 1"):
        Calibration({"x": np.zeros(3)}, 99).coverage([95])


def test_failures_are_counted_and_shown(rng):
    ranks = normal_ranks(rng, simulations=50)[:, 0].astype(float)
    ranks[[3, 7]] = np.nan
    verdicts = ["failed" if i in (3, 7) else "corrected" for i in range(50)]
    verdicts[0] = "not reliable"
    failures = {3: "DataError: not finite", 7: "another"}
    found = Calibration({"mean": ranks}, 99, verdicts, failures, ["Something else."])
    text = repr(found)
    assert found.simulations == 50
    assert found.table()["simulations"].tolist() == [48]
    assert "47 corrected, 1 not reliable, 2 failed" in text
    assert "count like all others" in text
    assert "2 simulations gave no ranks" in text
    assert "number 3: DataError: not finite" in text
    assert text.endswith("  Something else.")


def test_elements_without_ranks_are_left_out(rng):
    ranks = normal_ranks(rng, elements=3).astype(float)
    ranks[:, 1] = np.nan
    found = Calibration({"x": ranks}, 99)
    assert list(found.table().index) == ["x[0]", "x[2]"]
    drawn(found.plot())


def test_no_ranks_at_all():
    found = Calibration(
        {"x": np.full((3, 2), np.nan)}, 99, ["failed"] * 3, dict.fromkeys(range(3), "no")
    )
    assert np.isnan(found.p_value)
    assert "no ranks from 3 simulations" in repr(found)
    assert len(found.table()) == 0
    with pytest.raises(ValueError, match="no simulation gave any"):
        found.plot()


@pytest.mark.parametrize(
    ("ranks", "n_draws", "words"),
    [
        ({"x": np.array([0, 100])}, 99, "from 0 to n_draws=99"),
        ({"x": np.array([0.5, 1])}, 99, "take them from rank_among"),
        ({"x": np.zeros(3), "y": np.zeros(4)}, 99, "simulations along the first axis"),
        ({"x": np.zeros(3)}, 1, "draw more"),
    ],
)
def test_what_is_no_rank_is_refused(ranks, n_draws, words):
    with pytest.raises(ValueError, match=words):
        Calibration(ranks, n_draws)


# Pictures.


def drawn(fig):
    """The figure's texts, after a real drawing of it."""
    assert isinstance(fig, Figure)
    fig.savefig(io.BytesIO(), format="png", dpi=40)
    texts = [text.get_text() for ax in fig.axes for text in ax.texts]
    legends = [ax.get_legend() for ax in fig.axes]
    texts += [t.get_text() for legend in legends if legend for t in legend.get_texts()]
    return " | ".join(texts)


def test_what_leaves_the_band_is_named():
    rng = np.random.default_rng(1)
    ranks = {"right": normal_ranks(rng, elements=3), "narrow": normal_ranks(rng, scale=0.5)[:, 0]}
    texts = drawn(plot_ecdf_difference(ranks, 99))
    assert "1 of 4 curves outside, 0.2 expected by chance" in texts
    assert "narrow: p < 0.001" in texts
    assert "right" not in texts
    assert "narrow: p < 0.001" in drawn(plot_coverage(ranks, 99))
    fig = Calibration(ranks, 99).plot()
    assert drawn(fig).count("narrow") == 2
    colours = [line.get_color() for ax in fig.axes for line in ax.lines if line.get_lw() == 1.8]
    assert len(colours) == 2
    assert len(set(colours)) == 1


def test_the_curve_leaves_the_band_where_the_p_value_says(rng):
    for scale in (1.0, 0.7, 1.3):
        ranks = normal_ranks(rng, simulations=80, scale=scale)[:, 0]
        for plot in (plot_ecdf_difference, plot_coverage):
            ax = plot({"x": ranks}, 99).axes[0]
            (band,) = [c for c in ax.collections if len(c.get_paths()) == 1]
            vertices = band.get_paths()[0].vertices
            x, y = ax.lines[0].get_data()
            limits = {float(t): vertices[np.isclose(vertices[:, 0], t), 1] for t in x[1:-1]}
            inside = [limits[float(t)].min() - 1e-9 <= v <= limits[float(t)].max() + 1e-9
                      for t, v in zip(x[1:-1], y[1:-1], strict=True)]  # fmt: skip
            assert ("1 of 1 curve outside" in drawn(ax.figure)) == (not all(inside))


def test_histograms_mark_bars_beyond_the_band(rng):
    ranks = {"right": normal_ranks(rng)[:, 0], "narrow": normal_ranks(rng, scale=0.4)[:, 0]}
    fig = plot_ranks(ranks, 99)
    drawn(fig)
    orange = [
        sum(patch.get_facecolor()[0] > 0.7 for patch in ax.patches if hasattr(patch, "get_height"))
        for ax in fig.axes
    ]
    assert orange[0] == 0
    assert orange[1] >= 2


def test_of_many_elements_the_least_uniform_are_shown(rng):
    ranks = normal_ranks(rng, elements=40)
    ranks[:, 33] = normal_ranks(rng, scale=0.5)[:, 0]
    fig = plot_ranks({"theta": ranks}, 99, max_panels=4)
    drawn(fig)
    titles = [ax.get_title(loc="left") for ax in fig.axes]
    assert len(titles) == 4
    assert any(title.startswith("theta[33]:") for title in titles)
    assert "the 4 least uniform of 40 elements" in fig.get_suptitle()
    assert drawn(plot_ecdf_difference({"theta": ranks}, 99, max_named=1)).count("theta") == 1


@pytest.mark.parametrize("n_draws", [2, 3, 100])
@pytest.mark.parametrize("simulations", [1, 30])
def test_any_numbers_can_be_drawn(n_draws, simulations, rng):
    ranks = {"x": rng.integers(0, n_draws + 1, (simulations, 2))}
    drawn(Calibration(ranks, n_draws).plot())
    drawn(plot_ranks(ranks, n_draws))
    Calibration(ranks, n_draws).table()
    Calibration(ranks, n_draws).coverage()


def test_plots_check_what_they_get():
    with pytest.raises(ValueError, match="from 0 to n_draws=9"):
        plot_ecdf_difference({"x": np.full(5, 10)}, 9)
    with pytest.raises(ValueError, match="max_panels=0"):
        plot_ranks({"x": np.full(5, 1)}, 9, max_panels=0)
