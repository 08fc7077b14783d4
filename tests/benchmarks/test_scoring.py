# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The scores are right where they are known in closed form."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # the benchmarks are scripts, not a package

import scoring  # noqa: E402

S = 100_000


def _lognormal(gap: float, log_z: float = -7.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Log p and log q whose weights are lognormal: log Z - ELBO = gap = var(lw) / 2."""
    rng = np.random.default_rng(seed)
    lw = log_z - gap + math.sqrt(2 * gap) * rng.standard_normal(S)
    log_q = rng.standard_normal(S)
    return log_q + lw, log_q


@pytest.mark.parametrize("gap", [0.001, 0.02, 0.1])
def test_lognormal_weights(gap: float) -> None:
    out = scoring.score(*_lognormal(gap), log_z=-7.0, khat=lambda lw: 0.1)
    assert out["judged"] == "gap_known"
    assert out["gap"] == out["gap_known"] == -7.0 - out["elbo"]
    assert out["gap_known_se"] == pytest.approx(math.sqrt(2 * gap / S), rel=0.02)
    assert abs(out["gap_known"] - gap) < 4 * out["gap_known_se"]
    assert abs(out["gap_is"] - gap) < 4 * out["gap_is_se"] + 1e-6
    assert out["gap_is_se"] < out["gap_known_se"]
    assert abs(out["ln_z_is"] + 7.0) < 4 * out["ln_z_is_se"]
    assert out["share"] == pytest.approx(math.exp(-2 * gap), abs=0.01)
    assert out["share_min"] <= out["share"]
    assert (out["n"], out["n_inf"], out["n_nan"], out["batch_size"]) == (S, 0, 0, 10_000)
    assert out["khat"] == 0.1


def test_standard_errors_cover() -> None:
    """Over 60 repeats the z-scores of every estimate have sd 1."""
    z_scores = []
    for seed in range(60):
        out = scoring.score(*_lognormal(0.05, seed=seed), log_z=-7.0, khat=lambda lw: 0.1)
        z_scores.append(
            [
                (out["gap_known"] - 0.05) / out["gap_known_se"],
                (out["gap_is"] - 0.05) / out["gap_is_se"],
                (out["ln_z_is"] + 7.0) / out["ln_z_is_se"],
            ]
        )
    assert np.std(z_scores, axis=0) == pytest.approx(np.ones(3), abs=0.35)


def test_which_gap_is_judged() -> None:
    log_p, log_q = _lognormal(0.02)

    def judged(log_z: float | None, log_z_se: float) -> tuple[str, float | None]:
        out = scoring.score(log_p, log_q, log_z, log_z_se, khat=lambda lw: 0.1)
        return out["judged"], out["gap"]

    assert judged(None, 0.0) == ("none", None)
    assert judged(-6.0, 0.0)[0] == "gap_known"  # exact: a missed mode shows
    assert judged(-7.0, 0.002)[0] == "gap_is"
    assert judged(-7.009, 1e-6)[0] == "gap_is"  # within 0.01
    assert judged(-7.05, 0.002) == ("none", None)


def test_exact_guide() -> None:
    log_q = np.random.default_rng(0).standard_normal(S)
    out = scoring.score(log_q - 3.0, log_q, log_z=-3.0, khat=lambda lw: None)
    assert out["gap"] == pytest.approx(0.0, abs=1e-12)
    assert out["share"] == pytest.approx(1.0)
    assert (out["khat"], out["khat_applicable"]) == (None, False)


def test_hard_support() -> None:
    """q = Uniform(0, 2), p = Uniform(0, 1): half the draws are outside, and q restricted is p."""
    x = np.random.default_rng(0).uniform(0, 2, S)
    log_p = np.where(x <= 1, 0.0, -np.inf)
    out = scoring.score(log_p, np.full(S, -math.log(2)), log_z=0.0, khat=lambda lw: None)
    assert out["n_inf"] == (x > 1).sum()
    assert out["share_finite"] == 1 - out["n_inf"] / S
    assert out["share"] == pytest.approx(0.5, abs=0.01)
    assert out["gap_is"] == pytest.approx(0.0, abs=1e-12)
    assert abs(out["gap_known"]) < 4 * out["gap_known_se"]
    assert out["gap_known_se"] == pytest.approx(1 / math.sqrt(S), rel=0.02)


def test_faults_are_never_zeros() -> None:
    log_p, log_q = _lognormal(0.02)
    few, many = log_p.copy(), log_p.copy()
    few[:60] = np.nan
    few[60:99] = np.inf
    many[:200] = np.nan
    out = scoring.score(few, log_q, log_z=-7.0, khat=lambda lw: 0.1)
    assert out["n_nan"] == 99
    assert abs(out["gap"] - 0.02) < 4 * out["gap_se"]
    out = scoring.score(many, log_q, log_z=-7.0, khat=lambda lw: 0.1)
    assert (out["judged"], out["gap"], out["share"], out["khat"]) == ("none", None, None, None)
    log_q[:200] = -np.inf
    assert scoring.score(log_p, log_q, khat=lambda lw: 0.1)["n_nan"] == 200


def test_khat_is_the_median_over_disjoint_batches() -> None:
    log_p, log_q = _lognormal(0.02)
    seen: list[np.ndarray] = []

    def khat(lw: np.ndarray) -> float | None:
        seen.append(lw)
        return None if len(seen) <= 3 else float(len(seen))

    out = scoring.score(log_p, log_q, khat=khat)
    assert out["khat"] == 5.5  # three "not applicable" count as the smallest
    assert np.concatenate(seen).tolist() == (log_p - log_q).tolist()


def test_khat_of_the_package() -> None:
    """Weights of a Pareto tail with k = 0.5."""
    pytest.importorskip("pyro_flows.diagnostics.psis")
    lw = 0.5 * np.random.default_rng(0).exponential(size=S)
    out = scoring.score(lw, np.zeros(S))
    assert out["khat_applicable"]
    assert out["khat"] == pytest.approx(0.5, abs=0.12)
    out = scoring.score(np.zeros(S), np.zeros(S))
    assert (out["khat"], out["khat_applicable"]) == (None, False)


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=r"one shape \(S,\); got \(5,\) and \(5, 1\)"):
        scoring.score(np.zeros(5), np.zeros((5, 1)))
    with pytest.raises(ValueError, match=r"got \(9, 2\) and \(9, 3\)"):
        scoring.moment_errors(np.zeros((9, 2)), np.zeros((9, 3)))


def test_moment_errors() -> None:
    rng = np.random.default_rng(0)
    ref = rng.standard_normal((10_000, 3)) * [1.0, 5.0, 1e-3] + [0.0, -4.0, 100.0]
    draws = rng.standard_normal((40_000, 3)) * [1.0, 5.0, 1e-3] + [0.0, -4.0, 100.0]
    out = scoring.moment_errors(draws, ref)
    assert out["met"]
    bar = 0.05 + 3 * math.sqrt(1 / 10_000 + 1 / 40_000)
    assert out["mean_bar"] == pytest.approx(np.full(3, bar))
    # Kurtosis 3 gives se_s^2 = (1/n_ref + 1/ESS) / 2.
    assert out["log_sd_bar"] == pytest.approx(np.full(3, 0.05 + (bar - 0.05) / 2**0.5), rel=0.02)
    assert np.abs(scoring.quantile_errors(draws, ref)).max() < 0.02

    out = scoring.moment_errors(draws * [1.0, 1.2, 1.0] + [0.1, 0.8, 0.0], ref)
    assert out["mean_error"] == pytest.approx([0.1, 0.0, 0.0], abs=0.04)
    assert out["log_sd_error"] == pytest.approx([0.0, math.log(1.2), 0.0], abs=0.03)
    assert not out["met"]


def test_quantile_errors_of_a_shift() -> None:
    grid = np.linspace(-8, 8, 40_001)
    ref = np.random.default_rng(0).standard_normal((200_000, 1))
    errors = scoring.quantile_errors(ref + 0.5, ref)[:, 0]
    density = np.exp(-(grid**2) / 2) / math.sqrt(2 * math.pi)
    cdf = np.cumsum(density) * (grid[1] - grid[0])
    at = np.interp(scoring.QUANTILES, cdf, grid)
    assert errors == pytest.approx(np.interp(at - 0.5, grid, cdf) - scoring.QUANTILES, abs=0.005)


def test_meets() -> None:
    assert scoring.meets(0.018, 0.001, 0.02)
    assert not scoring.meets(0.019, 0.001, 0.02)
    assert scoring.meets(0.02, None, 0.02)
    assert not scoring.meets(None, None, 0.02)


def test_tail_index_of_students_t() -> None:
    rng = np.random.default_rng(0)
    for df in (1.0, 2.0, 4.0):
        assert scoring.tail_index(rng.standard_t(df, 100_000)) == pytest.approx(1 / df, abs=0.12)
    assert scoring.tail_index(rng.standard_normal(100_000)) < 0.15


def test_evidence_error_is_that_of_its_batches() -> None:
    log_p, log_q = _lognormal(0.05)
    # sd of the weights over sqrt(2000), and the mean of a half-normal.
    expected = math.sqrt((math.exp(0.1) - 1) / 2000) * math.sqrt(2 / math.pi)
    error = scoring.evidence_error(log_p - log_q, -7.0)
    assert error == pytest.approx(expected, rel=0.3)


@pytest.mark.parametrize(
    ("errors", "truth"),
    [
        ({}, "unknown"),
        ({"mean": None, "log_z": math.nan}, "wrong"),
        ({"mean": None, "log_z": None}, "unknown"),
        ({"mean": 0.05, "quantile": 0.04}, "right"),
        ({"mean": -0.15}, "grey"),
        ({"mean": 0.05, "log_z": -0.2}, "wrong"),
        ({"modes": 0.11}, "wrong"),
    ],
)
def test_truth(errors: dict[str, float | None], truth: str) -> None:
    assert scoring.judge_truth(errors) == truth


def test_total_variation() -> None:
    assert scoring.total_variation([0.5, 0.5], [0.5, 0.5]) == 0
    assert scoring.total_variation([1.0, 0.0], [0.0, 1.0]) == 1
