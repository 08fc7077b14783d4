# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""Plots say what they should of good, bad and broken fits, and draw without a warning."""

import copy
import io
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.figure import Figure

from pyro_flows.diagnostics import (
    plot_marginals,
    plot_posterior_overview,
    plot_training,
    plot_weights,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def history(rng):
    step, held = np.arange(1000), np.arange(0, 1000, 100)

    def curve(t):
        return -31.0 - 1e6 * np.exp(-t / 10)

    return {
        "step": step,
        "elbo": curve(step) + rng.normal(size=1000),
        "heldout_step": held,
        "heldout_elbo": curve(held),
        "heldout_se": np.full(10, 0.1),
        "stage": np.where(step < 300, "gaussian", np.where(step < 310, "tiny", "flow")),
    }


def drawn(fig):
    """The figure's texts, after a real drawing of it."""
    assert isinstance(fig, Figure)
    fig.savefig(io.BytesIO(), format="png", dpi=40)
    return " | ".join(text.get_text() for ax in fig.axes for text in ax.texts)


def shares(fig):
    """Sums of the two histograms of weights: of the draws, and of the weight."""
    return [float(patch.get_data().values.sum()) for patch in fig.axes[0].patches]


def test_training_limits_ignore_the_first_plunge(history):
    fig = plot_training(history, elbo=-31.0)
    texts = drawn(fig)
    low, high = fig.axes[0].get_ylim()
    assert -100 < low < -33
    assert -31 < high < -20
    assert "below the axis" in texts
    assert "gaussian" in texts
    assert "flow" in texts
    assert "tiny" not in texts  # no room for the name
    labels = [text.get_text() for text in fig.axes[0].get_legend().get_texts()]
    assert labels == [
        "training, each step",
        "training, median",
        "final ELBO -31.00",
        "held out ± 2 s.e.",
    ]


def test_training_tells_where_and_why_it_stopped(history):
    texts = drawn(plot_training(history, stop_reason="the last 400 steps gained 0.001 nats"))
    assert "stopped after 1,000 steps: the last 400 steps gained" in texts
    assert "-31.000 at best" in texts
    nothing = {"step": np.empty(0), "elbo": np.empty(0)}
    assert "not trained" in drawn(plot_training(nothing, stop_reason="not trained: improper"))
    long = "because " * 40
    fig = plot_training(history, stop_reason=long)
    lines = next(t.get_text() for t in fig.axes[0].texts if "stopped" in t.get_text())
    assert max(map(len, lines.split("\n"))) < 90
    assert lines.count("because") == 40


def test_training_finds_cycles_by_values_taken_twice(history):
    del history["stage"]
    assert "cycle" not in drawn(plot_training(history))
    history["heldout_step"] = np.array([0, 300, 300, 700, 700, 1000, 1000])
    history["heldout_elbo"] = np.full(7, -31.0)
    history["heldout_se"] = np.full(7, 0.1)
    texts = drawn(plot_training(history))
    assert all(f"cycle {i}" in texts for i in (1, 2, 3))
    assert "cycle 4" not in texts


def test_training_with_little_or_nothing_finite(history):
    history["elbo"][::7] = np.nan
    history["elbo"][5] = -np.inf
    history["elbo"][6] = np.inf
    assert "145 not finite" in drawn(plot_training(history))
    nothing = {"step": np.arange(3), "elbo": np.full(3, np.nan)}
    assert "3 not finite" in drawn(plot_training(nothing, elbo=np.nan))
    drawn(plot_training({"step": np.arange(1), "elbo": np.zeros(1)}))
    drawn(plot_training({"step": np.empty(0), "elbo": np.empty(0)}))


def test_training_shows_differences_of_a_nat_at_a_million():
    fig = plot_training({"step": np.arange(50), "elbo": np.linspace(-1e6 - 7, -1e6, 50)})
    drawn(fig)
    low, high = fig.axes[0].get_ylim()
    assert high - low < 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"step": np.arange(3)}, r"got \(3,\) and \(1000,\)"),
        ({"stage": np.array(["a"])}, "one stage per step"),
        ({"heldout_step": np.arange(3)}, r"got \(3,\) and \(10,\)"),
    ],
)
def test_training_refuses_what_does_not_fit(history, change, message):
    with pytest.raises(ValueError, match=message):
        plot_training({**history, **change})


def test_training_names_what_is_missing(history):
    del history["elbo"]
    with pytest.raises(ValueError, match=r"add \['elbo'\]"):
        plot_training(history)


def test_notebooks_show_figures_and_copies_of_them(history):
    fig = plot_training(history)
    for one in (fig, copy.deepcopy(fig)):
        assert one._repr_png_().startswith(b"\x89PNG")


def test_plots_draw_on_given_axes(history):
    fig = Figure()
    top, bottom = fig.subfigures(2)
    assert plot_training(history, ax=top.add_subplot()) is fig
    assert plot_weights(np.zeros(100), 0.0, ax=bottom.add_subplot()) is fig


def test_weights_name_khat_and_concentration(rng):
    lw = rng.normal(size=2000)
    lw[:50] = -np.inf
    fig = plot_weights(lw, 0.31, threshold=0.7)
    texts = drawn(fig)
    assert fig.axes[0].get_title(loc="left") == "Importance weights: k-hat 0.31 (limit 0.70)"
    assert "2,000 draws" in texts
    assert "50 (2.5%) with weight zero" in texts
    # Every draw with a weight is in a bar, and all of the weight.
    assert shares(fig) == pytest.approx([97.5, 100.0])


@pytest.mark.parametrize(
    "lw", [np.zeros(500), np.linspace(0, 5000, 500), np.r_[np.zeros(999), 1e4], np.zeros(1)]
)
def test_weights_of_any_spread(lw):
    fig = plot_weights(lw, np.inf, threshold=0.6)  # the gauge ends below infinity
    drawn(fig)
    assert shares(fig) == pytest.approx([100.0, 100.0])


def test_weights_without_khat_or_without_draws():
    fig = plot_weights(np.zeros(500), 0.0, khat_applicable=False)
    assert "not applicable" in fig.axes[0].get_title(loc="left")
    assert "no draw has a positive weight" in drawn(plot_weights(np.full(9, -np.inf), np.inf))
    with pytest.raises(ValueError, match="NaN"):
        plot_weights(np.array([0.0, np.nan]), 0.0)


def test_marginals_label_every_element(rng):
    draws = {
        "mu": rng.normal(size=400),
        "corr": rng.normal(size=(400, 2, 2)),
        "none": np.ones((400, 0)),
    }
    fig = plot_marginals(draws)
    drawn(fig)
    assert [ax.get_title() for ax in fig.axes] == [
        "mu",
        "corr[0, 0]",
        "corr[0, 1]",
        "corr[1, 0]",
        "corr[1, 1]",
    ]


def test_marginals_say_how_many_are_left_out(rng):
    fig = plot_marginals({"theta": rng.normal(size=(400, 30))}, max_panels=5)
    assert len(fig.axes) == 5
    assert "first 5 of 30" in fig.get_suptitle()


def test_marginals_of_odd_draws(rng):
    draws = {
        "cauchy": rng.standard_cauchy(2000),
        "count": rng.poisson(3, 2000),
        "flag": rng.uniform(size=2000) < 0.3,
        "constant": np.ones(2000),
        "broken": np.full(2000, np.nan),
        "partly": np.where(rng.uniform(size=2000) < 0.5, np.inf, 0.5),
        "a_long_scope_and_a_long_site.sigma": rng.normal(size=2000),
    }
    fig = plot_marginals(draws)
    texts = drawn(fig)
    assert "no finite draws" in texts
    assert "not finite" in texts
    assert "% outside" in texts
    low, high = fig.axes[0].get_xlim()
    assert high - low < 100  # the Cauchy draws reach thousands
    assert fig.axes[-1].get_title().startswith("…")
    assert fig.axes[-1].get_title().endswith(".sigma")


@pytest.mark.parametrize(
    ("draws", "message"),
    [
        ({}, "at least one site"),
        ({"x": np.float64(1.0)}, r"shape \(S, \*shape\)"),
        ({"x": np.empty((0, 3))}, r"got \(0, 3\)"),
    ],
)
def test_marginals_refuse_what_is_not_draws(draws, message):
    with pytest.raises(ValueError, match=message):
        plot_marginals(draws)


def test_marginals_need_a_panel(rng):
    with pytest.raises(ValueError, match="at least one element, got 0"):
        plot_marginals({"x": rng.normal(size=9)}, max_panels=0)


def test_overview_composes_training_weights_and_intervals(history, rng):
    draws = {"mu": rng.normal(size=400), "theta": rng.normal(size=(400, 30))}
    fig = plot_posterior_overview(
        history, rng.normal(size=400), 0.2, draws, title="Reliable: " + "word " * 40, threshold=0.7
    )
    drawn(fig)
    training, weights, forest = fig.axes
    assert training.get_ylabel() == "ELBO"
    assert "k-hat 0.20" in weights.get_title(loc="left")
    labels = [label.get_text() for label in forest.get_yticklabels()]
    assert labels == ["mu", *(f"theta[{i}]" for i in range(19))]
    assert "first 20 of 31" in forest.get_xlabel()
    assert "\n" in fig.get_suptitle()


def test_overview_gives_sites_on_other_scales_axes_of_their_own(history, rng):
    draws = {
        "intercept": 1000 + rng.normal(size=400),
        "slope": 0.01 * rng.normal(size=(400, 5)),
        "broken": np.full(400, np.nan),
    }
    fig = plot_posterior_overview(history, np.zeros(400), 0.0, draws, title="Not reliable")
    assert "no finite draw of 400" in drawn(fig)
    labels = [[label.get_text() for label in ax.get_yticklabels()] for ax in fig.axes[2:]]
    assert labels == [["intercept"], [*(f"slope[{i}]" for i in range(5)), "broken"]]
    broken = {"broken": np.full(400, np.nan)}
    drawn(plot_posterior_overview(history, np.zeros(400), 0.0, broken, title="Not reliable"))


def test_importing_the_room_loads_nothing_heavy():
    # In a fresh process, by path, since the package itself may import torch.
    from pyro_flows import diagnostics

    code = (
        "import sys, types; m = types.ModuleType('room'); "
        f"m.__path__ = [{str(diagnostics.__path__[0])!r}]; sys.modules['room'] = m; "
        "import room.arviz_seam, room.plots, room.psis; "
        "heavy = ('arviz', 'matplotlib', 'pyro', 'torch', 'xarray'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
