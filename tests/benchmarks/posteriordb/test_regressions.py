# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Each linear regression scores what its Stan model scores, and its log Z is the closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, special, stats

from .models import regressions
from .ported import (
    Formula,
    Values,
    assert_same_as_formula,
    data,
    needs_data,
    normal,
    port,
    positive,
)


def _by_row(outcome: str, row, *, log: float | None = None, scale: float | None = None) -> Formula:
    """A regression, one observation at a time.

    Args:
        outcome: The name of the outcome.
        row: From one observation to what stands beside the intercept.
        log: The base of the logarithm that is taken of the outcome.
        scale: That of sigma's half-Cauchy prior, flat without it.
    """

    def formula(given: Values, v: Values) -> float:
        total = positive(v["sigma"])
        if scale is not None:
            total += stats.halfcauchy.logpdf(v["sigma"], scale=scale)
        for n in range(given["N"]):
            one = {k: value[n] for k, value in given.items() if np.ndim(value)}
            y = one[outcome] if log is None else math.log(one[outcome], log)
            mean = v["beta"][0] + np.dot(v["beta"][1:], row(one))
            total += -0.5 * ((y - mean) / v["sigma"]) ** 2 - math.log(v["sigma"])
        return total - given["N"] * math.log(2 * math.pi) / 2

    return formula


def _nes(d: Values) -> list[float]:
    ages = [d["age_discrete"] == level for level in (2, 3, 4)]
    return [d["real_ideo"], d["race_adj"], *ages, d["educ1"], d["gender"], d["income"]]


def _mesquite(d: Values) -> list[float]:
    shape = [d["diam1"], d["diam2"], d["canopy_height"], d["total_height"]]
    return [*shape, d["density"], d["group"]]


def _logmesquite(d: Values) -> list[float]:
    return [*np.log(_mesquite(d)[:5]), d["group"]]


def _logva(d: Values) -> list[float]:
    area = math.log(d["diam1"]) + math.log(d["diam2"])
    return [area + math.log(d["canopy_height"]), area, d["group"]]


def _logvas(d: Values) -> list[float]:
    shape = math.log(d["diam1"]) - math.log(d["diam2"])
    rest = [math.log(d["total_height"]), math.log(d["density"]), d["group"]]
    return [*_logva(d)[:2], shape, *rest]


def _interaction(change_hs, change_iq) -> Formula:
    """A regression on changed columns; each change sees its whole column."""

    def formula(given: Values, v: Values) -> float:
        hs, iq = change_hs(np.array(given["mom_hs"])), change_iq(np.array(given["mom_iq"]))
        b = v["beta"]
        mean = b[0] + b[1] * hs + b[2] * iq + b[3] * hs * iq
        return normal(given["kid_score"], mean, v["sigma"]) + positive(v["sigma"])

    return formula


def _earn_interaction(change) -> Formula:
    def formula(given: Values, v: Values) -> float:
        height, male, b = change(np.array(given["height"])), np.array(given["male"]), v["beta"]
        mean = b[0] + b[1] * height + b[2] * male + b[3] * height * male
        return normal(np.log(given["earn"]), mean, v["sigma"]) + positive(v["sigma"])

    return formula


def _blr(given: Values, v: Values) -> float:
    likelihood = normal(given["y"], np.array(given["X"]) @ v["beta"], v["sigma"])
    prior = normal(v["beta"], 0, 10) + stats.halfnorm.logpdf(v["sigma"], scale=10)
    return likelihood + prior + positive(v["sigma"])


def _diamonds(given: Values, v: Values) -> float:
    x = np.array(given["X"])
    mean = v["Intercept"] + sum(
        v["b"][i - 1] * (x[:, i] - np.mean(x[:, i])) for i in range(1, given["K"])
    )
    prior = normal(v["b"], 0, 1) + stats.t.logpdf(v["Intercept"], 3, 8, 10)
    prior += stats.t.logpdf(v["sigma"], 3, 0, 10) - stats.t.logsf(0, 3, 0, 10)
    return normal(given["Y"], mean, v["sigma"]) + prior + positive(v["sigma"])


def _z(column: np.ndarray) -> np.ndarray:
    return (column - np.mean(column)) / np.std(column, ddof=1)


def _work(d: Values) -> list[float]:
    return [d["mom_work"] == level for level in (2, 3, 4)]


E = math.e
FORMULAS: dict[str, Formula] = {
    **{f"nes{year}": _by_row("partyid7", _nes) for year in regressions._YEARS},
    "mesquite": _by_row("weight", _mesquite),
    "logmesquite": _by_row("weight", _logmesquite, log=E),
    "logmesquite_logva": _by_row("weight", _logva, log=E),
    "logmesquite_logvas": _by_row("weight", _logvas, log=E),
    "kidscore_momiq": _by_row("kid_score", lambda d: [d["mom_iq"]], scale=2.5),
    "kidscore_momhs": _by_row("kid_score", lambda d: [d["mom_hs"]], scale=2.5),
    "kidscore_momhsiq": _by_row("kid_score", lambda d: [d["mom_hs"], d["mom_iq"]], scale=2.5),
    "kidscore_interaction_c": _interaction(lambda x: x - np.mean(x), lambda x: x - np.mean(x)),
    "kidscore_interaction_c2": _interaction(lambda x: x - 0.5, lambda x: x - 100),
    "kidscore_interaction_z": _interaction(lambda x: _z(x) / 2, lambda x: _z(x) / 2),
    "kidscore_mom_work": _by_row("kid_score", _work),
    "earn_height": _by_row("earn", lambda d: [d["height"]]),
    "logearn_height": _by_row("earn", lambda d: [d["height"]], log=E),
    "log10earn_height": _by_row("earn", lambda d: [d["height"]], log=10),
    "logearn_height_male": _by_row("earn", lambda d: [d["height"], d["male"]], log=E),
    "logearn_interaction": _earn_interaction(lambda x: x),
    "logearn_interaction_z": _earn_interaction(_z),
    "blr": _blr,
    "diamonds": _diamonds,
}
FLAT = tuple(
    name
    for name in FORMULAS
    if not name.startswith(("kidscore_momi", "kidscore_momh", "blr", "d"))
)
HALF_CAUCHY = ("kidscore_momiq", "kidscore_momhs", "kidscore_momhsiq")


def test_every_regression_has_a_formula() -> None:
    assert set(FORMULAS) == set(regressions.ENTRIES)


@needs_data
@pytest.mark.parametrize("name", FORMULAS)
def test_log_joint_is_stans(name: str) -> None:
    assert_same_as_formula(port(name), data(name), FORMULAS[name])


@needs_data
@pytest.mark.parametrize("name", FLAT + HALF_CAUCHY)
def test_log_z_of_regressions(name: str) -> None:
    """The table's log Z is the closed form (flat sigma) or a quadrature over sigma."""
    target = port(name)
    x, y = target.args[0].numpy(), target.args[1].numpy()
    n, k = x.shape
    residual = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
    rss = residual @ residual
    # What is left of the likelihood once beta is integrated out: c sigma^(k-n) exp(-rss/2s^2).
    c = -(n - k) / 2 * math.log(2 * math.pi) - np.linalg.slogdet(x.T @ x)[1] / 2
    m = (n - k - 1) / 2
    if name in FLAT:
        log_z = c + special.gammaln(m) - math.log(2) - m * math.log(rss / 2)
    else:
        peak = math.log(rss / (n - k)) / 2
        at_peak = (k - n) * peak - rss / 2 * math.exp(-2 * peak)

        def integrand(u: float) -> float:
            power = (k - n) * u - rss / 2 * math.exp(-2 * u) - at_peak
            return math.exp(power + u) * stats.halfcauchy.pdf(math.exp(u), scale=target.args[2])

        log_z = c + at_peak + math.log(integrate.quad(integrand, peak - 1, peak + 1)[0])
    assert target.log_z == pytest.approx(log_z, abs=2e-4)
    assert target.log_z_se == 0
