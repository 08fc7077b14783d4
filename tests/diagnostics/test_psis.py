# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""Importance weights against exact answers, and against everything that can go wrong."""

import math

import numpy as np
import pytest

from pyro_flows.diagnostics import (
    importance_weights,
    khat_threshold,
    resample,
    weighted_mcse,
)

S = 10_000


def weigh(log_ratio):
    return importance_weights(log_ratio, np.zeros(len(log_ratio)))


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(
    ("n", "limit"), [(10, 0.0), (100, 0.5), (1000, 2 / 3), (2155, 0.7), (10**6, 0.7)]
)
def test_threshold(n, limit):
    assert abs(khat_threshold(n) - limit) < 1e-4


def test_threshold_needs_draws():
    with pytest.raises(ValueError, match="at least 2 draws.*got 1"):
        khat_threshold(1)


@pytest.mark.parametrize("sd", [0.05, 0.3, 0.7])
def test_lognormal_weights_have_known_figures(sd):
    # lw ~ N(0, sd^2): ELBO 0, log evidence sd^2/2, share exp(-sd^2).
    results = [weigh(np.random.default_rng(i).normal(scale=sd, size=S)) for i in range(20)]
    for exact, name in [(0.0, "elbo"), (sd**2 / 2, "log_evidence"), (sd**2 / 2, "gap")]:
        values = np.array([getattr(r, name) for r in results])
        errors = np.array([getattr(r, f"{name}_se") for r in results])
        assert abs(values.mean() - exact) < 4 * errors.mean() / math.sqrt(20)
        # The standard error is what the value really varies by.
        assert 0.6 < values.std(ddof=1) / errors.mean() < 1.5
    assert abs(np.mean([r.share for r in results]) - math.exp(-(sd**2))) < 0.01
    assert all(r.khat < r.threshold and r.khat_applicable for r in results)


@pytest.mark.parametrize("scale", [0.6, 0.75, 0.9])
def test_khat_of_a_gaussian_that_is_too_narrow(scale):
    # q = N(0, s^2) under p = N(0, 1): P(w > t) ~ t^(-1/k) with k = 1 - s^2.
    khats = []
    for i in range(8):
        z = np.random.default_rng(i).normal(size=S)
        khats.append(weigh(-0.5 * (scale * z) ** 2 + 0.5 * z**2).khat)
    assert abs(np.mean(khats) - (1 - scale**2)) < 0.15


def test_smoothed_weights_sum_to_one_and_correct_the_mean(rng):
    x = rng.normal(size=S)
    result = importance_weights(-0.5 * (x - 0.3) ** 2, -0.5 * x**2)
    w = np.exp(result.log_weights)
    assert abs(w.sum() - 1.0) < 1e-12
    assert abs((w * x).sum() - 0.3) < 4 * weighted_mcse(result.log_weights, x)
    assert abs(result.kish_ess - 1 / (w**2).sum()) < 1e-6 * S
    assert not result.log_weights.flags.writeable
    assert "log_weights" not in repr(result)


def test_share_is_of_unsmoothed_and_ess_of_smoothed_weights(rng):
    lw = 2.0 * rng.normal(size=1000)
    result, w = weigh(lw), np.exp(lw)
    assert result.share == pytest.approx(w.sum() ** 2 / (w**2).sum() / 1000)
    assert result.log_evidence == pytest.approx(math.log(w.mean()))
    assert abs(result.kish_ess - 1000 * result.share) > 1e-3


def test_draws_outside_the_support(rng):
    # q = U(0, 1), p = 2 U(0, 1/2): the ELBO of q restricted is log 1 = 0, as is the evidence.
    x = rng.uniform(size=S)
    result = importance_weights(np.where(x < 0.5, math.log(2.0), -np.inf), np.zeros(S))
    assert result.n_zero == (x >= 0.5).sum()
    assert result.n_invalid == 0
    assert abs(result.elbo) < 4 * result.elbo_se
    assert abs(result.elbo_se - 1 / math.sqrt(S)) < 1e-3
    assert abs(result.log_evidence) < 4 * result.log_evidence_se
    assert abs(result.log_evidence_se - 1 / math.sqrt(S)) < 1e-3
    assert abs(result.share - 0.5) < 0.03
    assert abs(result.gap) < 1e-12
    assert not result.khat_applicable
    assert np.array_equal(np.isneginf(result.log_weights), x >= 0.5)


def test_zeros_change_neither_gap_nor_khat(rng):
    lw = rng.normal(size=2000)
    mixed = np.insert(lw, rng.integers(0, 2000, size=700), -np.inf)
    plain, holed = weigh(lw), weigh(mixed)
    assert holed.khat == plain.khat
    assert holed.threshold == plain.threshold
    assert abs(holed.gap - plain.gap) < 1e-12
    assert abs(holed.elbo - plain.elbo - math.log(2000 / 2700)) < 1e-12
    assert abs(holed.share - plain.share * 2000 / 2700) < 1e-12


@pytest.mark.parametrize(
    ("p", "q"),
    [
        (np.nan, 0.0),
        (np.inf, 0.0),
        (0.0, np.nan),
        (0.0, np.inf),
        (0.0, -np.inf),
        (-np.inf, -np.inf),
        (-np.inf, np.nan),
        (1e200, 0.0),
        (1e308, -1e308),
    ],
)
def test_invalid_draws_are_counted_and_enter_no_mean(p, q, rng):
    log_p, log_q = rng.normal(size=1000), np.zeros(1000)
    clean = importance_weights(log_p[7:], log_q[7:])
    log_p[:7], log_q[:7] = p, q
    result = importance_weights(log_p, log_q)
    assert (result.n_invalid, result.n_zero) == (7, 0)
    assert np.isneginf(result.log_weights[:7]).all()
    for name in ("khat", "elbo", "elbo_se", "log_evidence", "log_evidence_se", "gap", "kish_ess"):
        assert getattr(result, name) == pytest.approx(getattr(clean, name), abs=1e-12)
    assert result.share == pytest.approx(clean.share * 993 / 1000)


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
def test_no_finite_draw_is_a_failure(value):
    result = weigh(np.full(200, value))
    assert result.khat == math.inf
    assert result.khat_applicable
    assert (result.elbo, result.log_evidence, result.gap) == (-math.inf, -math.inf, math.inf)
    assert (result.share, result.kish_ess) == (0.0, 0.0)
    assert np.isneginf(result.log_weights).all()
    assert result.n_zero + result.n_invalid == 200


@pytest.mark.parametrize("spread", [0.0, 1e-9, 1e-4])
def test_constant_weights_pass(spread, rng):
    result = weigh(-500.0 + spread * rng.normal(size=S))
    assert (result.khat, result.khat_applicable) == (0.0, False)
    assert result.share > 0.999999
    assert abs(np.exp(result.log_weights).sum() - 1.0) < 1e-9


def test_a_few_common_values_pass(rng):
    result = weigh(rng.choice([0.0, 1.0, 3.0], size=S))
    assert (result.khat, result.khat_applicable) == (0.0, False)


@pytest.mark.parametrize("height", [5.0, 20.0, 2000.0])
def test_one_draw_above_constant_ones_does_not_pass(height):
    # Two values in the tail as well, but one draw is heavier than a tail can bear.
    result = weigh(np.r_[np.zeros(999), height])
    assert (result.khat, result.khat_applicable) == (math.inf, True)


@pytest.mark.parametrize("n", [100, S])
def test_a_spread_of_thousands_of_nats_fails(n, rng):
    result = weigh(5000.0 * rng.normal(size=n))
    assert result.khat == math.inf
    assert math.isfinite(result.gap)
    assert not np.isnan(result.log_weights).any()


def test_few_finite_draws_never_pass():
    result = weigh(np.r_[np.zeros(20), np.full(500, -np.inf)])
    assert (result.khat, result.khat_applicable, result.gap_se) == (math.inf, True, math.inf)
    one = weigh(np.r_[0.0, np.full(500, -np.inf)])
    assert (one.khat, one.elbo_se, one.log_evidence_se) == (math.inf, math.inf, math.inf)


def test_bad_input_is_refused_with_a_sentence():
    with pytest.raises(ValueError, match="at least 100 draws.*got 99: draw more"):
        weigh(np.zeros(99))
    with pytest.raises(ValueError, match=r"shapes \(200,\) and \(100,\)"):
        importance_weights(np.zeros(200), np.zeros(100))
    with pytest.raises(ValueError, match=r"got shapes \(20, 10\)"):
        importance_weights(np.zeros((20, 10)), np.zeros((20, 10)))


def test_resampling_is_in_proportion(rng):
    w = np.array([0.5, 0.3, 0.0, 0.2])
    with np.errstate(divide="ignore"):
        lw = np.log(w) + 700.0
    counts, repeats = np.zeros(4), 4000
    for _ in range(repeats):
        index = resample(lw, 2, rng)
        counts += np.bincount(index, minlength=4)
    assert np.allclose(counts / repeats, 2 * w, atol=4 * math.sqrt(0.25 / repeats))


def test_no_repeats_while_no_weight_is_above_its_share(rng):
    x = rng.normal(scale=1.5, size=40_000)
    lw = -0.5 * x**2 + 0.5 * (x / 1.5) ** 2
    index = resample(lw, 4000, rng)
    assert np.unique(index).size == 4000
    assert np.array_equal(index, np.sort(index))
    assert abs(x[index].std() - 1.0) < 0.04


@pytest.mark.parametrize("shift", [1.0, 1.7])
def test_few_effective_draws_are_not_pulled_to_the_guide(shift, rng):
    """Sampling without replacement from such weights is off by up to 0.4 sd."""
    x = rng.normal(size=40_000)
    index = resample(shift * x, 4000, rng)  # q = N(0, 1), p = N(shift, 1)
    assert abs(x[index].mean() - shift) < 0.08
    assert abs(x[index].std() - 1.0) < 0.08


def test_resampling_bounds(rng):
    lw = np.array([0.0, -np.inf, 1.0])
    assert 1 not in resample(lw, 5, rng)
    with pytest.raises(ValueError, match="n >= 1 and a positive weight, got n=0"):
        resample(lw, 0, rng)
    with pytest.raises(ValueError, match="0 positive weights: draw more"):
        resample([-np.inf, -np.inf], 1, rng)
    with pytest.raises(ValueError, match="NaN or \\+inf"):
        resample([0.0, np.nan], 1, rng)


def test_weighted_mcse_is_how_much_the_mean_varies():
    means, errors = [], []
    for i in range(200):
        x = np.random.default_rng(i).normal(size=1000)
        lw = 0.5 * x
        w = np.exp(lw) / np.exp(lw).sum()
        means.append(w @ x)
        errors.append(weighted_mcse(lw, x))
    assert 0.85 < np.std(means) / np.mean(errors) < 1.15


def test_weighted_mcse_shapes_and_zeros(rng):
    h = rng.normal(size=(50, 2, 3))
    lw = np.zeros(50)
    lw[:5], h[:5] = -np.inf, np.nan
    error = weighted_mcse(lw, h)
    assert error.shape == (2, 3)
    assert np.allclose(error, h[5:].std(0) / math.sqrt(45))
    with pytest.raises(ValueError, match=r"shape \(50, \.\.\.\).*got \(49,\)"):
        weighted_mcse(lw, np.zeros(49))
    with pytest.raises(ValueError, match="0 positive ones"):
        weighted_mcse(np.full(50, -np.inf), h)
