# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""Power-scaling sensitivity, against ArviZ 1.x and draws of the exact posterior.

Loaded as in ``test_arviz_seam``, since this also runs where torch is not installed.
"""

import importlib
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest

ROOM = Path(__file__).resolve().parents[2] / "pyro_flows" / "diagnostics"
_room = sys.modules.setdefault("_diagnostics_room", types.ModuleType("_diagnostics_room"))
_room.__path__ = [str(ROOM)]
seam = importlib.import_module("_diagnostics_room.arviz_seam")
module = importlib.import_module("_diagnostics_room.sensitivity")
sensitivity = module.power_scale_sensitivity
az = seam.import_arviz()


def normal(x, mean, sd):
    return -0.5 * ((x - mean) / sd) ** 2 - np.log(sd) - 0.5 * math.log(2 * math.pi)


def case(prior_sd, n, mean, width=1.0, shift=0.0, size=4000, seed=0):
    """A normal mean: draws of a q that is off by so much, log prior, log likelihood, log p / q."""
    variance = 1.0 / (1.0 / prior_sd**2 + n)
    sd = math.sqrt(variance)
    loc = variance * n * mean + shift * sd
    mu = loc + width * sd * np.random.default_rng(seed).normal(size=size)
    log_prior, log_likelihood = normal(mu, 0.0, prior_sd), n * normal(mean, mu, 1.0)
    return mu, log_prior, log_likelihood, log_prior + log_likelihood - normal(mu, loc, width * sd)


CONFLICT, WEAK, FINE = (1.0, 1, 6.0), (0.2, 1, 0.3), (10.0, 20, 1.0)


@pytest.mark.parametrize(
    ("setting", "diagnosis"),
    [
        (CONFLICT, "potential prior-data conflict"),
        (WEAK, "potential strong prior / weak likelihood"),
        (FINE, "-"),
    ],
)
@pytest.mark.parametrize(("width", "shift"), [(1.0, 0.0), (1.3, 0.5)])
def test_diagnoses_of_a_normal_mean(setting, diagnosis, width, shift):
    mu, prior, likelihood, ratio = case(*setting, width, shift)
    table = sensitivity({"mu": mu}, prior, likelihood, log_ratio=ratio)
    assert list(table.columns) == ["prior", "likelihood", "noise", "khat", "diagnosis"]
    assert list(table["diagnosis"]) == [diagnosis]
    assert table["khat"].iloc[0] < 0.7


@pytest.mark.parametrize("setting", [CONFLICT, WEAK, FINE])
@pytest.mark.parametrize(("width", "shift"), [(1.3, 0.5), (1.2, 0.0)])
def test_weighted_draws_give_what_exact_ones_give(setting, width, shift):
    def mean_of(width, shift, corrected):
        tables = []
        for seed in range(10):
            mu, prior, likelihood, ratio = case(*setting, width, shift, seed=seed)
            log_ratio = ratio if corrected else None
            tables.append(sensitivity({"mu": mu}, prior, likelihood, log_ratio=log_ratio))
        return np.mean([table.loc["mu", ["prior", "likelihood"]] for table in tables], axis=0)

    exact = mean_of(1.0, 0.0, corrected=False)
    weighted = mean_of(width, shift, corrected=True)
    raw = mean_of(width, shift, corrected=False)
    assert np.abs(weighted / exact - 1).max() < 0.12
    assert np.abs(weighted / exact - 1).max() < 0.6 * np.abs(raw / exact - 1).max()


@pytest.mark.skipif(seam.arviz_major() < 1, reason="psense is new in ArviZ 1.x")
@pytest.mark.parametrize("setting", [CONFLICT, WEAK, FINE])
def test_equal_weights_give_what_arviz_gives(setting):
    mu, prior, likelihood, _ = case(*setting)
    groups = {
        "posterior": {"mu": mu[None], "square": mu[None] ** 2},
        "log_prior": {"mu": prior[None]},
        "log_likelihood": {"y": likelihood[None]},
    }
    data = seam.to_container(groups, dims={}, coords={}, attrs={})
    table = sensitivity({"mu": mu, "square": mu**2}, prior, likelihood)
    for column in ("prior", "likelihood"):
        theirs = az.psense(data, group=column)
        for name in ("mu", "square"):
            # ArviZ smooths both tails of weights that hardly differ; here the draws' own stand.
            assert table.loc[name, column] == pytest.approx(float(theirs[name]), rel=0.02)


def test_elements_are_named_and_a_monotone_map_keeps_the_diagnosis():
    mu, prior, likelihood, _ = case(*CONFLICT)
    table = sensitivity({"a": np.stack([mu, -mu], 1), "b": np.exp(mu)}, prior, likelihood)
    assert list(table.index) == ["a[0]", "a[1]", "b"]
    # The distance looks from both sides, so a sign changes nothing.
    assert table.loc["a[0]", "prior"] == pytest.approx(table.loc["a[1]", "prior"])
    assert set(table["diagnosis"]) == {"potential prior-data conflict"}


def test_many_parameters_make_noise_that_is_not_taken_for_sensitivity():
    rng = np.random.default_rng(0)
    others = rng.normal(size=(4000, 600))  # 600 parameters that have nothing to do with x
    log_density = -0.5 * (others**2).sum(1)
    table = sensitivity({"x": rng.normal(size=4000)}, log_density, log_density[::-1])
    assert (table[["prior", "likelihood"]] > 0.05).all(axis=None)
    assert table.loc["x", "noise"] > 0.05
    assert table.loc["x", "diagnosis"] == "too few draws to tell"


def test_a_flat_prior_has_no_sensitivity():
    mu, _, likelihood, _ = case(*FINE)
    table = sensitivity({"mu": mu}, np.zeros(4000), likelihood)
    assert table.loc["mu", "prior"] < 1e-6
    assert table.loc["mu", "likelihood"] > 0.05


def test_draws_outside_the_support_are_left_out():
    mu, prior, likelihood, ratio = case(*CONFLICT, 1.2)
    more = [np.r_[x, np.full(9, fill)] for x, fill in
            [(mu, 99.0), (prior, np.nan), (likelihood, -np.inf), (ratio, -np.inf)]]  # fmt: skip
    mine = sensitivity({"mu": more[0]}, *more[1:3], log_ratio=more[3])
    assert mine.equals(sensitivity({"mu": mu}, prior, likelihood, log_ratio=ratio))


def test_where_nothing_can_be_said():
    mu, prior, likelihood, ratio = case(*CONFLICT, 0.4)
    bad = sensitivity({"mu": mu}, prior, likelihood, log_ratio=ratio)
    assert bad.loc["mu", "khat"] > 0.7
    assert bad.loc["mu", "diagnosis"] == "not reliable: k-hat too high"
    mu, prior, likelihood, _ = case(*CONFLICT)
    draws = {"one": np.ones(4000), "wild": np.where(mu > 4, np.inf, mu)}
    table = sensitivity(draws, prior, likelihood)
    assert dict(table["diagnosis"]) == {"one": "constant", "wild": "not finite"}
    assert table["prior"].isna().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((9, 2)), np.zeros(9)), r"got shapes \(9, 2\), \(9,\) and \(9, 2\)"),
        ((np.full(9, np.nan), np.zeros(9)), "got 9 draws with NaN"),
        ((np.zeros(8), np.zeros(8)), "Expected 8 draws of 'mu'"),
    ],
)
def test_contradictions_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        sensitivity({"mu": np.zeros(9)}, *arguments)
    with pytest.raises(ValueError, match="alphas below and above 1"):
        sensitivity({"mu": np.zeros(9)}, np.zeros(9), np.zeros(9), alphas=(1.0, 1.1))
