# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""PSIS through the seam is the same on ArviZ 0.x and 1.x; loaded as in ``test_arviz_seam``."""

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


@pytest.mark.parametrize("tail", [0.3, 0.5, 0.7, 0.9])
def test_khat_of_a_known_pareto_tail(tail):
    # Weights that are generalised Pareto with shape k have tails of shape k; k-hat is shrunk
    # towards 0.5 by ten draws' worth, so it is compared on the mean of a few batches.
    rng = np.random.default_rng(1)
    khats = []
    for _ in range(10):
        u = rng.uniform(size=10_000)
        khats.append(seam.psislw(np.log1p((u**-tail - 1.0) / tail))[1])
    assert abs(np.mean(khats) - tail) < 0.08


def test_the_sign_is_that_of_log_p_minus_log_q():
    # A q too narrow has unbounded weights, a q too wide bounded ones: only the sign tells them.
    x = np.random.default_rng(0).normal(size=10_000)
    narrow = 0.5 * x**2 - 0.5 * (x / 2.0) ** 2
    assert seam.psislw(narrow)[1] > 0.5
    assert seam.psislw(-narrow)[1] < 0.0


def test_smoothed_weights_are_normalised_and_keep_zeros():
    ratio = np.random.default_rng(0).normal(size=1000) + 1e4
    ratio[::10] = -np.inf
    before = ratio.copy()
    log_weights, khat = seam.psislw(ratio)
    assert np.array_equal(ratio, before)
    assert abs(np.exp(log_weights).sum() - 1.0) < 1e-12
    assert np.array_equal(np.isneginf(log_weights), np.isneginf(ratio))
    assert khat < 0.7


@pytest.mark.parametrize(
    ("ratio", "khat"),
    [
        (np.full(1000, -7.0), 0.0),
        (np.full(100, -np.inf), math.inf),
        (np.random.default_rng(0).normal(size=24), math.inf),
        (1000.0 * np.random.default_rng(0).normal(size=26), math.inf),
        (3000.0 * np.random.default_rng(0).normal(size=10_000), math.inf),
        (np.r_[np.zeros(999), 20.0], math.inf),
        (np.where(np.arange(1000) % 2, 0.0, 5.0), math.inf),
        (np.r_[np.zeros(500), 1e308, -1e308], math.inf),
    ],
    ids=["constant", "zeros", "few", "26 wide", "wide", "outlier", "two values", "overflow"],
)
def test_where_no_tail_can_be_fitted(ratio, khat):
    log_weights, found = seam.psislw(ratio)
    assert found == khat
    assert not np.isnan(log_weights).any()
    if np.isfinite(ratio).any():
        assert abs(np.exp(log_weights).sum() - 1.0) < 1e-12


@pytest.mark.parametrize(
    "bad", [np.r_[np.zeros(99), np.nan], np.r_[0.0, np.inf], np.zeros((9, 9))]
)
def test_a_nan_is_never_smoothed_over(bad):
    with pytest.raises(ValueError, match="vector of finite numbers or -inf"):
        seam.psislw(bad)
