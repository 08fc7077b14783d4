# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The Gaussian processes and differential equations score what their Stan models score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, linalg, stats

from .checks import constrain, reference
from .database import Database
from .models import dynamics, processes
from .ported import (
    ROOT,
    Formula,
    Values,
    assert_same_as_formula,
    data,
    needs_data,
    normal,
    port,
    positive,
)
from .target import Target


def _covariance(given: Values, v: Values, added: float) -> np.ndarray:
    apart = np.subtract.outer(given["x"], given["x"])
    cov = v["alpha"] ** 2 * np.exp(-(apart**2) / (2 * v["rho"] ** 2))
    return cov + added * np.eye(given["N"])


def _gp_prior(v: Values) -> float:
    prior = stats.gamma.logpdf(v["rho"], 25, scale=1 / 4)
    return prior + stats.halfnorm.logpdf(v["alpha"], scale=2) + positive(v["rho"], v["alpha"])


def _gp_regr(given: Values, v: Values) -> float:
    cov = _covariance(given, v, v["sigma"])
    likelihood = stats.multivariate_normal.logpdf(given["y"], np.zeros(given["N"]), cov)
    return likelihood + _gp_prior(v) + stats.halfnorm.logpdf(v["sigma"]) + positive(v["sigma"])


def _gp_pois_regr(given: Values, v: Values) -> float:
    f = linalg.cholesky(_covariance(given, v, 1e-10), lower=True) @ v["f_tilde"]
    likelihood = np.sum(stats.poisson.logpmf(given["k"], np.exp(f)))
    return likelihood + _gp_prior(v) + normal(v["f_tilde"], 0, 1)


def _accel_gp(given: Values, v: Values) -> float:
    total, predictors = 0.0, []
    for suffix in ("1", "sigma_1"):
        sd, length, z = (v[f"{name}_{suffix}"] for name in ("sdgp", "lscale", "zgp"))
        eigen = np.array(given[f"slambda_{suffix}"])[:, 0]
        density = sd**2 * math.sqrt(2 * math.pi) * length * np.exp(-0.5 * length**2 * eigen**2)
        predictors.append(np.array(given[f"Xgp_{suffix}"]) @ (np.sqrt(density) * z))
        total += stats.t.logpdf(sd, 3, 0, 36) - stats.t.logsf(0, 3, 0, 36)
        total += stats.invgamma.logpdf(length, 1.124909, scale=0.0177)
        total += normal(z, 0, 1) + positive(sd, length)
    total += stats.t.logpdf(v["Intercept"], 3, -13, 36)
    total += stats.t.logpdf(v["Intercept_sigma"], 3, 0, 10)
    mean, sd = v["Intercept"] + predictors[0], np.exp(v["Intercept_sigma"] + predictors[1])
    return total + normal(given["Y"], mean, sd)


def _log_normal(x, log_median, sigma) -> float:
    return float(np.sum(stats.lognorm.logpdf(x, sigma, scale=np.exp(log_median))))


def _steps(slope, state, times: list[float]) -> np.ndarray:
    """Runge-Kutta once more, by its table of coefficients."""
    states = [np.array(state, dtype=float)]
    for t, after in zip(times[:-1], times[1:], strict=True):
        h, x, k = after - t, states[-1], []
        for share in (0.0, 0.5, 0.5, 1.0):
            k.append(np.array(slope(t + share * h, x + share * h * (k[-1] if k else 0.0))))
        states.append(x + h * np.average(k, axis=0, weights=[1, 2, 2, 1]))
    return np.array(states)


def _adaptive(slope, state, times: list[float]) -> np.ndarray:
    """The same to 11 digits, whatever the steps."""
    span = (times[0], times[-1])
    options = {"method": "LSODA", "rtol": 1e-11, "atol": 1e-12}
    return integrate.solve_ivp(slope, span, np.atleast_1d(state), t_eval=times, **options).y.T


def _lotka_volterra(solve) -> Formula:
    def formula(given: Values, v: Values) -> float:
        a, b, c, d = v["theta"]

        def slope(t: float, z: np.ndarray) -> list[float]:
            return [(a - b * z[1]) * z[0], (-c + d * z[0]) * z[1]]

        grid = np.linspace(0, 20, 20 * dynamics.YEARLY_STEPS + 1)
        z = solve(slope, v["z_init"], grid)[dynamics.YEARLY_STEPS :: dynamics.YEARLY_STEPS]
        total = normal([a, c], 1, 0.5) + normal([b, d], 0.05, 0.05)
        total += _log_normal(v["sigma"], -1, 1) + _log_normal(v["z_init"], math.log(10), 1)
        total += _log_normal(given["y_init"], np.log(v["z_init"]), v["sigma"])
        total += _log_normal(given["y"], np.log(z), v["sigma"])
        return total + positive(v["theta"], v["z_init"], v["sigma"])

    return formula


def _one_compartment(solve) -> Formula:
    def formula(given: Values, v: Values) -> float:
        def slope(t: float, c: np.ndarray) -> np.ndarray:
            dose = math.exp(-v["k_a"] * t) * given["D"] * v["k_a"] / given["V"]
            return dose - v["V_m"] / given["V"] * c / (v["K_m"] + c)

        grid, observed = port("one_comp_mm_elim_abs").args[1:3]
        c = solve(slope, 0.0, grid)[observed].ravel()
        total = sum(stats.halfcauchy.logpdf(value) for value in v.values())
        return total + _log_normal(given["C_hat"], np.log(c), v["sigma"]) + positive(*v.values())

    return formula


FORMULAS: dict[str, Formula] = {
    "gp_regr": _gp_regr,
    "gp_pois_regr": _gp_pois_regr,
    "accel_gp": _accel_gp,
    "lotka_volterra": _lotka_volterra(_steps),
    "one_comp_mm_elim_abs": _one_compartment(_steps),
}


def test_every_port_has_a_formula() -> None:
    assert set(FORMULAS) == {*processes.ENTRIES, *dynamics.ENTRIES}


@needs_data
@pytest.mark.parametrize("name", FORMULAS)
def test_log_joint_is_stans(name: str) -> None:
    assert_same_as_formula(port(name), data(name), FORMULAS[name])


@needs_data
def test_draws_of_f_are_turned_into_f_tilde() -> None:
    draws = Database(ROOT).draws("gp_pois_regr-gp_pois_regr").variables()
    sites = port("gp_pois_regr").reference()
    for i in range(0, 10_000, 2000):
        v = {name: value[i] for name, value in sites.items()}
        factor = linalg.cholesky(_covariance(data("gp_pois_regr"), v, 1e-10), lower=True)
        np.testing.assert_allclose(factor @ v["f_tilde"], draws["f"][i], rtol=1e-9)


@needs_data
@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("lotka_volterra", _lotka_volterra(_adaptive)),
        ("one_comp_mm_elim_abs", _one_compartment(_adaptive)),
    ],
)
def test_the_steps_are_short_enough(name: str, formula: Formula) -> None:
    """Against an adaptive solver, on draws that take the stiffest equations along."""
    target = port(name)
    z = reference(target, 10_000)
    stiffest = z[:, 1].argsort()[:3] if name == "one_comp_mm_elim_abs" else z[:, 0].argsort()[-3:]
    z = torch.cat([z[:3], z[stiffest]])
    sites = {k: v.numpy() for k, v in constrain(target, z)[0].items()}
    exact = [formula(data(name), {k: v[i] for k, v in sites.items()}) for i in range(len(z))]
    np.testing.assert_allclose(target.log_joint(z).numpy(), exact, rtol=0, atol=2e-4)


@needs_data
@pytest.mark.parametrize("name", dynamics.ENTRIES)
def test_half_the_step_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for steps in ("YEARLY_STEPS", "FIRST_STEPS", "LATER_STEPS"):
        monkeypatch.setattr(dynamics, steps, 2 * getattr(dynamics, steps))
    made = dynamics.ENTRIES[name][1](data(name))
    z = reference(port(name), 10_000)
    fine, coarse = Target(name, made.model, made.args).log_joint(z), port(name).log_joint(z)
    assert (fine - coarse).abs().max() < 1e-4
    assert (fine - coarse).abs().mean() < 2e-5


@needs_data
def test_explosions_are_not_finite_and_leave_the_rest_alone() -> None:
    """Many animals at rates of 1 overflow: that particle is NaN or -inf, its neighbours aren't."""
    target = port("lotka_volterra")
    z = reference(target, 3)
    z[1, :4], z[1, 4:6] = 0.0, math.log(1000.0)
    log_p = target.log_joint(z)
    assert torch.isfinite(log_p).tolist() == [True, False, True]
    assert log_p[1] != math.inf


def test_a_covariance_without_factor_gives_nan() -> None:
    cov = torch.stack([torch.eye(2), -torch.eye(2)]).double()
    factor = processes.cholesky(cov, torch.zeros((), dtype=torch.float64))
    assert torch.isfinite(factor).all((-2, -1)).tolist() == [True, False]
