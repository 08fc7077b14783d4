# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The rules of judgement, and the thresholds they stand on."""

import dataclasses
import math

import numpy as np
import pytest

from pyro_flows.diagnostics import Remark, Verdict, importance_weights, judge
from pyro_flows.diagnostics.verdict import RELIABLE_GAP

S = 10_000


@pytest.fixture
def weights():
    """Weights that are neither perfect nor hopeless; each test sets what it judges."""
    lw = np.random.default_rng(0).normal(scale=0.3, size=S)
    return importance_weights(lw, np.zeros(S))


def change(weights, **figures):
    return dataclasses.replace(weights, **figures)


def test_the_gap_is_that_of_the_definition():
    assert RELIABLE_GAP == 0.00125


@pytest.mark.parametrize(
    ("gap", "se", "status"),
    [
        (0.0, 0.0, "reliable"),
        (0.00124, 0.0, "reliable"),
        (0.0010, 0.0001, "reliable"),  # 0.0012
        (0.0010, 0.0002, "corrected"),  # 0.0014: two standard errors count
        (0.00126, 0.0, "corrected"),
        (-0.01, 0.01, "corrected"),  # an estimate below zero is noise
    ],
)
def test_reliable_needs_a_small_gap_beyond_doubt(weights, gap, se, status):
    assert judge(change(weights, gap=gap, gap_se=se, khat=0.1)).status == status


@pytest.mark.parametrize(
    ("khat", "status"),
    [(0.0, "corrected"), (0.69, "corrected"), (0.7, "not reliable"), (np.inf, "not reliable")],
)
def test_corrected_needs_a_khat_below_the_threshold(weights, khat, status):
    assert judge(change(weights, khat=khat)).status == status


def test_one_draw_that_outweighs_all_is_not_smoothed_away(weights):
    # Of n draws of log-weights N(0, 0.3^2), one weighs as much as all others.
    lw = np.random.default_rng(0).normal(scale=0.3, size=S)
    lw[0] = np.log(S)
    heavy = importance_weights(lw, np.zeros(S))
    assert heavy.kish_ess > 1000 > 10 > heavy.share * heavy.n
    assert judge(change(heavy, khat=0.5)).status == "not reliable"
    assert judge(change(heavy, khat=0.5, share=0.05)).status == "corrected"


def test_the_threshold_is_lower_for_few_draws(weights):
    few = change(weights, khat=0.6, n=200)
    assert few.threshold == pytest.approx(0.5654, abs=1e-4)
    assert judge(few).status == "not reliable"
    assert judge(change(few, n=S)).status == "corrected"


def test_a_small_gap_needs_no_khat(weights):
    assert judge(change(weights, gap=0.0, gap_se=0.0, khat=np.inf)).status == "reliable"


def test_a_high_khat_of_weights_that_are_not_used_is_explained(weights):
    calm = change(weights, gap=0.0, gap_se=0.0)
    assert "no draw is given" not in str(judge(calm))
    said = str(judge(change(calm, khat=1.3)))
    largest = math.exp(weights.log_weights.max()) * weights.n
    assert f"the largest is {largest:.1f} times their mean" in said


@pytest.mark.parametrize(("n_invalid", "status"), [(10, "reliable"), (11, "not reliable")])
def test_invalid_draws_up_to_one_in_a_thousand(weights, n_invalid, status):
    verdict = judge(change(weights, gap=0.0, gap_se=0.0, n_invalid=n_invalid))
    assert verdict.status == status
    if status == "not reliable":
        assert "11 of 10000 draws" in verdict.reasons[0]
        assert verdict.advice


def test_draws_outside_the_support_are_no_fault(weights):
    assert judge(change(weights, gap=0.0, gap_se=0.0, n_zero=5000)).status == "reliable"


def test_a_fault_outweighs_perfect_weights(weights):
    perfect = change(weights, gap=0.0, gap_se=0.0, khat=0.0)
    verdict = judge(perfect, faults=[Remark("A mode is missing.", "try.", "a"), Remark("b", "c")])
    assert verdict.status == "not reliable"
    assert verdict.reasons[:2] == ("A mode is missing.", "b")
    assert verdict.advice == ("try.", "c")
    assert verdict.anchors == ("a",)


def test_every_fault_and_the_invalid_draws_are_told(weights):
    verdict = judge(change(weights, n_invalid=500), faults=[Remark("first", "do")])
    assert verdict.reasons[0] == "first"
    assert "500 of 10000" in verdict.reasons[1]
    assert len(verdict.advice) == 2


def test_the_figures_are_told_whatever_the_status(weights):
    for figures in ({"gap": 0.0, "gap_se": 0.0}, {"khat": 0.3}, {"khat": 2.0}):
        verdict = judge(change(weights, **figures))
        assert "gap log evidence - ELBO" in verdict.reasons[-2]
        assert "k-hat" in verdict.reasons[-1]
        assert "threshold 0.70" in verdict.reasons[-1]
        assert f"{S} draws" in verdict.reasons[-1]
    assert "k-hat not applicable" in judge(change(weights, khat_applicable=False)).reasons[-1]


def test_advice_where_something_needs_doing_only(weights):
    assert judge(change(weights, gap=0.0, gap_se=0.0)).advice == ()
    assert judge(change(weights, khat=0.3)).advice == ()
    assert judge(change(weights, khat=2.0)).advice


def test_no_finite_draw_is_not_reliable():
    nan = np.full(S, np.nan)
    assert judge(importance_weights(nan, np.zeros(S))).status == "not reliable"
    zero = np.full(S, -np.inf)
    assert judge(importance_weights(zero, np.zeros(S))).status == "not reliable"


@pytest.mark.parametrize(
    ("shift", "status"),
    # A mean off by so many standard deviations: its gap is half the square.
    [(0.01, "reliable"), (0.3, "corrected"), (4.0, "not reliable")],
)
def test_a_shifted_gaussian(shift, status):
    x = np.random.default_rng(1).normal(size=40_000)
    verdict = judge(importance_weights(-0.5 * (x - shift) ** 2, -0.5 * x**2))
    assert verdict.status == status


@pytest.mark.parametrize(("scale", "status"), [(0.95, "corrected"), (0.5, "not reliable")])
def test_a_gaussian_too_narrow(scale, status):
    x = scale * np.random.default_rng(1).normal(size=40_000)
    log_q = -0.5 * (x / scale) ** 2 - np.log(scale)
    assert judge(importance_weights(-0.5 * x**2, log_q)).status == status


def test_anchors_come_in_order_and_once(weights):
    calm = change(weights, gap=0.0, gap_se=0.0, n_zero=5)
    assert judge(change(weights, gap=0.0, gap_se=0.0)).anchors == ()
    notes = [Remark("One.", anchor="n"), Remark("Two."), Remark("Three.", anchor="n")]
    verdict = judge(calm, notes=notes)
    assert verdict.reasons[-4:-1] == ("One.", "Two.", "Three.")
    assert verdict.anchors == ("n", "draws-outside-the-support")
    assert verdict.advice == ()
    both = judge(change(calm, n_invalid=500), faults=[Remark("f", "do", "n")], notes=notes)
    assert both.anchors == ("n", "invalid-draws", "draws-outside-the-support")


@pytest.mark.parametrize(
    ("figures", "anchors"),
    [
        ({"gap": 0.0, "gap_se": 0.0}, ()),
        ({"gap": 0.0, "gap_se": 0.0, "khat": 1.3}, ("k-hat-of-unused-weights",)),
        ({"khat": 0.3}, ("corrected-draws",)),
        ({"khat": 2.0}, ("k-hat-too-high",)),
    ],
)
def test_each_status_says_where_to_read_on(weights, figures, anchors):
    assert judge(change(weights, **figures)).anchors == anchors


def test_as_text_the_status_comes_first():
    verdict = Verdict("not reliable", ("Because.", "Figures."), ("more steps.",), ("a-b", "c"))
    assert str(verdict).split("\n") == [
        "Verdict: not reliable",
        "  Because.",
        "  Figures.",
        "  Try: more steps.",
        "  More: docs/explanation/warnings.md#a-b",
        "  More: docs/explanation/warnings.md#c",
    ]
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.status = "reliable"
