# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""arK, hmm_drive_1 and the Gaussian mixtures score what their Stan models score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from .checks import assert_shares, constrain
from .models import mixtures, series
from .ported import (
    Formula,
    Values,
    assert_same_as_formula,
    data,
    needs_data,
    normal,
    points,
    port,
    positive,
)
from .target import Target

TWO_MODES = "low_dim_gauss_mix_two_modes"


def _ar_k(given: Values, v: Values) -> float:
    y, order = given["y"], given["K"]
    total = normal(v["alpha"], 0, 10) + normal(v["beta"], 0, 10)
    total += stats.halfcauchy.logpdf(v["sigma"], scale=2.5) + positive(v["sigma"])
    for t in range(order, given["T"]):
        mean = v["alpha"] + sum(v["beta"][k] * y[t - k - 1] for k in range(order))
        total += normal(y[t], mean, v["sigma"])
    return total


def _hmm_drive(given: Values, v: Values) -> float:
    total, theta = 0.0, np.array([v["theta1"], v["theta2"]])
    for k in range(2):
        total += stats.dirichlet.logpdf(theta[k], given["alpha"][k])
        total += math.log(theta[k, 0] * theta[k, 1])  # Jacobian of the logit
    for name in ("phi", "lambda"):
        total += normal(v[name], [0, 3], 1) + math.log(v[name][1] - v[name][0])
    gamma = np.zeros(2)
    for t in range(given["N"]):
        if t > 0:
            gamma = [special.logsumexp(gamma + np.log(theta[:, k])) for k in range(2)]
        emission = stats.norm.logpdf(given["u"][t], v["phi"], given["tau"])
        gamma = gamma + emission + stats.norm.logpdf(given["v"][t], v["lambda"], given["rho"])
    return total + special.logsumexp(gamma)


def _mixture(given: Values, v: Values) -> float:
    """Without the Jacobian of mu."""
    total = normal(v["mu"], 0, 2) + stats.beta.logpdf(v["theta"], 5, 5)
    total += np.sum(stats.halfnorm.logpdf(v["sigma"], scale=2)) + positive(v["sigma"])
    for y in given["y"]:
        first = math.log(v["theta"]) + stats.norm.logpdf(y, v["mu"][0], v["sigma"][0])
        second = math.log1p(-v["theta"]) + stats.norm.logpdf(y, v["mu"][1], v["sigma"][1])
        total += np.logaddexp(first, second)
    return total + math.log(v["theta"] * (1 - v["theta"]))


def _ordered_mixture(given: Values, v: Values) -> float:
    return _mixture(given, v) + math.log(v["mu"][1] - v["mu"][0])


FORMULAS: dict[str, Formula] = {
    "arK": _ar_k,
    "hmm_drive_1": _hmm_drive,
    "low_dim_gauss_mix": _ordered_mixture,
    TWO_MODES: _mixture,
}


def test_every_port_has_a_formula() -> None:
    assert set(FORMULAS) == {*series.ENTRIES, *mixtures.ENTRIES}


@needs_data
@pytest.mark.parametrize("name", FORMULAS)
def test_log_joint_is_stans(name: str) -> None:
    assert_same_as_formula(port(name), data(name), FORMULAS[name])


@pytest.mark.parametrize("length", [2, 3, 4, 7, 8])
def test_forward_algorithm_sums_over_all_paths(length: int) -> None:
    rng = np.random.default_rng(0)
    emission, transition = rng.standard_normal((3, length)), rng.standard_normal((3, 3))
    paths = np.stack(np.meshgrid(*[range(3)] * length, indexing="ij"), -1).reshape(-1, length)
    each = emission[paths, range(length)].sum(-1) + transition[paths[:, :-1], paths[:, 1:]].sum(-1)
    log_p = series.forward_algorithm(torch.from_numpy(emission), torch.from_numpy(transition))
    assert log_p.item() == pytest.approx(special.logsumexp(each), abs=1e-12)


def test_the_hidden_chain_goes_from_row_to_column() -> None:
    """The real data can't tell: their states are plain, and as many go up as come down."""
    rng = np.random.default_rng(0)
    given = {"N": 9, "alpha": [[4, 2], [2, 4]], "tau": 2.0, "rho": 3.0}
    given |= {"u": rng.standard_normal(9), "v": rng.standard_normal(9)}
    real = [torch.tensor(given[name], dtype=torch.float64) for name in ("u", "v", "alpha")]
    target = Target("hmm", series.hmm_drive, (*real, 2.0, 3.0))
    assert_same_as_formula(target, given, _hmm_drive)


@needs_data
def test_exchange_of_labels_changes_nothing() -> None:
    target = port(TWO_MODES)
    z = points(target, 6)
    sites, _ = constrain(target, z)
    exchanged = mixtures.exchanged(sites, torch.ones(len(z), dtype=torch.bool))
    other = target.unconstrain(exchanged)
    torch.testing.assert_close(target.log_joint(other), target.log_joint(z))
    assert (target.modes.assign(other) == 1 - target.modes.assign(z)).all()
    back = target.unconstrain(target.canonical(exchanged))
    assert (target.modes.assign(back) == 0).all()
    torch.testing.assert_close(back, target.unconstrain(target.canonical(sites)))


@needs_data
def test_two_modes_have_twice_the_mass() -> None:
    ordered, free = port("low_dim_gauss_mix"), port(TWO_MODES)
    assert free.log_z - ordered.log_z == pytest.approx(math.log(2), abs=1e-12)
    assert free.log_z == pytest.approx(-2114.991, abs=2e-3)
    z = points(ordered, 4)
    sites, _ = constrain(ordered, z)
    gap = (sites["mu"][:, 1] - sites["mu"][:, 0]).log()
    torch.testing.assert_close(free.log_joint(free.unconstrain(sites)), ordered.log_joint(z) - gap)
    assert_shares(free, 0.02)
