# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Hierarchical models: eight schools and radon, centred and non-centred."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ..target import Model
from .common import Builder, Data, Entries, Port, Variables, vector

# Rubin (1981), Journal of Educational Statistics 6: effects and standard errors of eight schools.
EIGHT_SCHOOLS = {
    "y": [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0],
    "sigma": [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0],
}
# By quadrature over tau, with mu and theta integrated in closed form; a test repeats it.
EIGHT_SCHOOLS_LOG_Z = -31.311347352292785


# Models


def eight_schools_centered(sigma: Tensor, y: Tensor) -> None:
    """Eight schools as first written: a funnel between ``theta`` and ``tau``."""
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def eight_schools_noncentered(sigma: Tensor, y: Tensor) -> None:
    """Eight schools with standardised effects ``theta_trans``."""
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("school", len(y)):
        theta_trans = pyro.sample("theta_trans", dist.Normal(y.new_tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(mu + tau * theta_trans, sigma), obs=y)


def radon_hierarchical_intercept_centered(
    county: Tensor, log_uppm: Tensor, floor: Tensor, y: Tensor, n_counties: int
) -> None:
    """Radon with intercepts by county around a common mean."""
    sigma_alpha, sigma_y, mu_alpha, beta = _intercept_hyperpriors(y)
    with pyro.plate("county", n_counties):
        alpha = pyro.sample("alpha", dist.Normal(mu_alpha, sigma_alpha))
    mean = alpha[..., county] + log_uppm * beta[..., 0] + floor * beta[..., 1]
    with pyro.plate("home", len(y)):
        pyro.sample("y", dist.Normal(mean, sigma_y), obs=y)


def radon_hierarchical_intercept_noncentered(
    county: Tensor, log_uppm: Tensor, floor: Tensor, y: Tensor, n_counties: int
) -> None:
    """Radon with standardised intercepts by county."""
    sigma_alpha, sigma_y, mu_alpha, beta = _intercept_hyperpriors(y)
    with pyro.plate("county", n_counties):
        alpha_raw = pyro.sample("alpha_raw", dist.Normal(y.new_tensor(0.0), 1.0))
    alpha = mu_alpha + sigma_alpha * alpha_raw
    mean = alpha[..., county] + log_uppm * beta[..., 0] + floor * beta[..., 1]
    with pyro.plate("home", len(y)):
        pyro.sample("y", dist.Normal(mean, sigma_y), obs=y)


def radon_variable_intercept_slope_centered(
    county: Tensor, floor: Tensor, y: Tensor, n_counties: int
) -> None:
    """Radon with intercepts and slopes by county around common means."""
    sigma_y, sigma_alpha, sigma_beta, mu_alpha, mu_beta = _slope_hyperpriors(y)
    with pyro.plate("county", n_counties):
        alpha = pyro.sample("alpha", dist.Normal(mu_alpha, sigma_alpha))
        beta = pyro.sample("beta", dist.Normal(mu_beta, sigma_beta))
    mean = alpha[..., county] + floor * beta[..., county]
    with pyro.plate("home", len(y)):
        pyro.sample("y", dist.Normal(mean, sigma_y), obs=y)


def radon_variable_intercept_slope_noncentered(
    county: Tensor, floor: Tensor, y: Tensor, n_counties: int
) -> None:
    """Radon with standardised intercepts and slopes by county."""
    sigma_y, sigma_alpha, sigma_beta, mu_alpha, mu_beta = _slope_hyperpriors(y)
    with pyro.plate("county", n_counties):
        alpha_raw = pyro.sample("alpha_raw", dist.Normal(y.new_tensor(0.0), 1.0))
        beta_raw = pyro.sample("beta_raw", dist.Normal(y.new_tensor(0.0), 1.0))
    alpha, beta = mu_alpha + sigma_alpha * alpha_raw, mu_beta + sigma_beta * beta_raw
    mean = alpha[..., county] + floor * beta[..., county]
    with pyro.plate("home", len(y)):
        pyro.sample("y", dist.Normal(mean, sigma_y), obs=y)


def _intercept_hyperpriors(y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sigma_alpha = pyro.sample("sigma_alpha", dist.HalfNormal(y.new_tensor(1.0)))
    sigma_y = pyro.sample("sigma_y", dist.HalfNormal(y.new_tensor(1.0)))
    mu_alpha = pyro.sample("mu_alpha", dist.Normal(y.new_tensor(0.0), 10.0))
    beta = pyro.sample("beta", dist.Normal(y.new_tensor(0.0), 10.0).expand([2]).to_event(1))
    return sigma_alpha, sigma_y, mu_alpha, beta


def _slope_hyperpriors(y: Tensor) -> tuple[Tensor, ...]:
    names = ("sigma_y", "sigma_alpha", "sigma_beta")
    scales = [pyro.sample(name, dist.HalfNormal(y.new_tensor(1.0))) for name in names]
    mu_alpha = pyro.sample("mu_alpha", dist.Normal(y.new_tensor(0.0), 10.0))
    mu_beta = pyro.sample("mu_beta", dist.Normal(y.new_tensor(0.0), 10.0))
    return (*scales, mu_alpha, mu_beta)


# Builders


def _eight_schools_centered(data: Data) -> Port:
    return Port(eight_schools_centered, (vector(data["sigma"]), vector(data["y"])))


def _eight_schools_noncentered(data: Data) -> Port:
    def to_sites(draws: Variables) -> Variables:
        mu, tau = draws["mu"][:, None], draws["tau"][:, None]
        return {"mu": mu[:, 0], "tau": tau[:, 0], "theta_trans": (draws["theta"] - mu) / tau}

    args = (vector(data["sigma"]), vector(data["y"]))
    return Port(eight_schools_noncentered, args, to_sites)


# By quadrature (quadrature.py): the same for both forms of a model.
_RADON_LOG_Z = {
    "radon_mn": -1045.317457,
    "radon_mn_slopes": -1061.749580,
    "radon_all": -17254.021886,
    "radon_all_slopes": -17098.457550,
}


def _radon(model: Model, name: str, *columns: str) -> Builder:
    def build(data: Data) -> Port:
        county = torch.tensor(data["county_idx"]) - 1
        values = (vector(data[name]) for name in (*columns, "log_radon"))
        args = (county, *values, int(data["J"]))
        return Port(model, args, log_z=_RADON_LOG_Z[name], group="hierarchical")

    return build


# Registry


def _radon_entries(data: str) -> Entries:
    forms = {
        "centered": (
            radon_hierarchical_intercept_centered,
            radon_variable_intercept_slope_centered,
        ),
        "noncentered": (
            radon_hierarchical_intercept_noncentered,
            radon_variable_intercept_slope_noncentered,
        ),
    }
    entries: Entries = {}
    for form, (intercepts, slopes) in forms.items():
        entries[f"{data}_{form}"] = (
            f"{data}-{intercepts.__name__}",
            _radon(intercepts, data, "log_uppm", "floor_measure"),
        )
        entries[f"{data}_slopes_{form}"] = (
            f"{data}-{slopes.__name__}",
            _radon(slopes, f"{data}_slopes", "floor_measure"),
        )
    return entries


ENTRIES: Entries = {
    "eight_schools_centered": ("eight_schools-eight_schools_centered", _eight_schools_centered),
    "eight_schools_noncentered": (
        "eight_schools-eight_schools_noncentered",
        _eight_schools_noncentered,
    ),
    **_radon_entries("radon_mn"),
    **_radon_entries("radon_all"),
}
