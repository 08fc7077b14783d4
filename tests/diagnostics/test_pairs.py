# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""Pairs and forests: the right elements, odd draws counted, a reference where it belongs."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from pyro_flows.diagnostics import plot_forest, plot_pairs


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def drawn(fig):
    """The figure's texts, after a real drawing of it."""
    assert isinstance(fig, Figure)
    fig.savefig(io.BytesIO(), format="png", dpi=40)
    texts = [text.get_text() for ax in fig.axes for text in ax.texts]
    return " | ".join([fig.get_suptitle(), *texts, *legend(fig)])


def legend(fig):
    return [text.get_text() for one in fig.legends for text in one.get_texts()]


def panels(fig):
    """The labels along the bottom of a pair plot."""
    return [ax.get_xlabel() for ax in fig.axes if ax.get_xlabel()]


def rows(fig):
    return [label.get_text() for ax in fig.axes for label in ax.get_yticklabels()]


def outlines(fig):
    """Those of the one joint panel of two elements."""
    joint = next(ax for ax in fig.axes if ax.get_ylabel() and ax.get_xlabel())
    return next(one for one in joint.collections if getattr(one, "filled", True) is False)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_pairs_of_every_number_of_elements(rng, count):
    draws = {"x": rng.normal(size=(3000, count))}
    reference = {"x": rng.normal(size=(500, count))}
    fig = plot_pairs(draws, reference=reference, reference_name="NUTS", max_elements=8)
    texts = drawn(fig)
    assert len(fig.axes) == count * (count + 1) // 2
    assert panels(fig) == [f"x[{i}]" for i in range(count)]
    assert legend(fig) == ["posterior", "NUTS"]
    assert "out of" not in texts


def test_pairs_choose_what_depends_on_another_one(rng):
    neck, plain = rng.normal(size=4000), rng.normal(size=(4000, 50))
    wide = np.exp(1.5 * neck) * rng.normal(size=4000)  # uncorrelated with the neck
    plain[:, 30] = 0.9 * plain[:, 10] + 0.4 * plain[:, 30]
    fig = plot_pairs({"plain": plain, "neck": neck, "wide": wide}, max_elements=4)
    assert "4 out of 52 elements" in drawn(fig)
    assert panels(fig) == ["plain[10]", "plain[30]", "neck", "wide"]


def test_pairs_choose_what_differs_from_the_reference(rng):
    draws = {"x": rng.normal(size=(2000, 40)), "fixed": np.ones((2000, 3))}
    reference = {"x": rng.normal(size=(2000, 40))}
    reference["x"][:, 7] += 2.0
    reference["x"][:, 23] *= 3.0
    fig = plot_pairs(draws, reference=reference, max_elements=3)
    assert panels(fig)[:2] == ["x[7]", "x[23]"]
    assert panels(fig)[2].startswith("fixed")  # a site is never left out for another's elements


def test_pairs_of_more_sites_than_panels_keep_the_best(rng):
    draws = {f"site{i}": rng.normal(size=1500) for i in range(30)}
    draws["skewed"] = rng.exponential(size=1500) ** 2
    assert "skewed" in panels(plot_pairs(draws, max_elements=2))


def test_pairs_of_odd_draws(rng):
    draws = {
        "cauchy": rng.standard_cauchy(3000),
        "constant": np.full(3000, 1e9),
        "broken": np.full(3000, np.nan),
        "partly": np.where(rng.uniform(size=3000) < 0.5, np.inf, 0.5 * rng.normal(size=3000)),
        "count": rng.poisson(2, 3000),
        "flag": rng.uniform(size=3000) < 0.3,
        "a_long_scope_and.a_long_site_$name$": rng.normal(size=3000),
    }
    fig = plot_pairs(draws, max_elements=7)
    texts = drawn(fig)
    assert "3,000 not finite" not in texts
    assert "no finite draws" in texts
    assert "not finite" in texts
    assert "% outside" in texts
    low, high = fig.axes[0].get_xlim()
    assert high - low < 60  # the Cauchy draws reach thousands
    assert fig.axes[-1].get_xlabel().startswith("…")


def test_pairs_draw_no_density_beyond_a_bound(rng):
    scale = rng.exponential(size=(4000, 2)) ** 2
    fig = plot_pairs({"scale": scale})
    drawn(fig)
    lines = np.concatenate([path.vertices for path in outlines(fig).get_paths()])
    assert lines.min() >= 0.0


def test_outlines_hold_their_shares(rng):
    x = rng.normal(size=(20_000, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
    fig = plot_pairs({"x": x})
    drawn(fig)
    shares = [path.contains_points(x).mean() for path in outlines(fig).get_paths()]
    np.testing.assert_allclose(sorted(shares), [0.5, 0.89], atol=0.03)


def test_pairs_mark_divergences_of_the_reference(rng):
    draws = {"x": rng.normal(size=(900, 2)), "alone": rng.normal(size=(900, 2))}
    reference = {"x": rng.normal(size=(600, 2))}
    fig = plot_pairs(draws, reference=reference, divergences=np.arange(600) < 7)
    assert "divergent (7)" in drawn(fig)
    marks = [line for ax in fig.axes for line in ax.lines if line.get_marker() == "x"]
    assert len(marks) == 1  # of the six pairs, the one that the reference has
    assert len(marks[0].get_xdata()) == 7
    alone = plot_pairs({"x": draws["x"]}, divergences=np.arange(900) < 5)
    assert "divergent (5)" in drawn(alone)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({"y": np.zeros((9, 2))}, "some of the sites"),
        ({"x": np.zeros((9, 3))}, r"\('S', 2\)"),
        ({"x": np.zeros((0, 2))}, r"got \(0, 2\)"),
    ],
)
def test_a_reference_of_something_else_is_refused(rng, reference, message):
    draws = {"x": rng.normal(size=(50, 2))}
    for plot in (plot_pairs, plot_forest):
        with pytest.raises(ValueError, match=message):
            plot(draws, reference=reference)


def test_pairs_refuse_what_is_not_joint_draws(rng):
    with pytest.raises(ValueError, match="as many draws of each site"):
        plot_pairs({"x": rng.normal(size=50), "y": rng.normal(size=60)})
    with pytest.raises(ValueError, match="divergences as one bool per draw"):
        plot_pairs({"x": rng.normal(size=50)}, divergences=np.zeros(3))
    with pytest.raises(ValueError, match="at least one element"):
        plot_pairs({"x": rng.normal(size=50)}, max_elements=0)


def test_forest_gives_each_scale_its_axes(rng):
    draws = {
        "mu": rng.normal(size=400),
        "theta": 2 * rng.normal(size=(400, 3)),
        "rate": 1e-3 * rng.exponential(size=400),
        "total": 1e6 + rng.normal(size=400),
    }
    fig = plot_forest(draws)
    drawn(fig)
    assert rows(fig) == ["mu", "theta[0]", "theta[1]", "theta[2]", "rate", "total"]
    assert [len(ax.get_yticklabels()) for ax in fig.axes] == [4, 1, 1]


def test_forest_of_one_site_on_many_scales_is_readable(rng):
    fig = plot_forest({"beta": rng.normal(size=(400, 6)) * 10.0 ** np.arange(-3, 3)})
    drawn(fig)
    assert fig.axes[0].get_xscale() == "symlog"


def test_forest_measures_against_the_reference(rng):
    draws = {"x": 1.0 + 2.0 * rng.normal(size=50_000), "new": rng.normal(size=50_000)}
    fig = plot_forest(draws, reference={"x": rng.normal(size=50_000)}, reference_name="NUTS")
    texts = drawn(fig)
    shift, width = next(
        t.get_text() for ax in fig.axes for t in ax.texts if "sd" in t.get_text()
    ).split(" sd, width × ")
    assert float(shift) == pytest.approx(1.0, abs=0.05)
    assert float(width) == pytest.approx(2.0, abs=0.05)
    assert "[-1.6" in texts  # a site of the draws alone has its figures
    assert legend(fig) == ["posterior", "NUTS"]


def test_forest_counts_what_it_leaves_out(rng):
    draws = {"x": rng.normal(size=(300, 100)), "y": np.full(300, np.nan)}
    draws["x"][:5, 0] = np.inf
    texts = drawn(plot_forest(draws, max_elements=10))
    assert "first 10 of 101 elements" in texts
    assert "5 not finite" in texts
    assert "no finite draw of 300" in drawn(plot_forest({"y": draws["y"]}))
