# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Pyro ports of posteriordb models, as their Stan authors wrote them.

A *model* is a plain Pyro function. A *builder* turns a posterior's data (under Stan's names) into
a model and its arguments. To add a target: write its model and builder, and add one line to
``_ENTRIES``. Flat priors stay flat (``ImproperUniform``); every constant takes the data's dtype,
so that the log joint is float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from .database import Database
from .target import Model, Target

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


def flat_regression(design: Tensor, y: Tensor) -> None:
    """Linear regression, flat in the coefficients and in sigma (nes, mesquite, earnings)."""
    beta = pyro.sample("beta", _flat_vector(design.shape[-1]))
    sigma = pyro.sample("sigma", dist.ImproperUniform(constraints.positive, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(_linear(design, beta), sigma), obs=y)


def half_cauchy_regression(design: Tensor, y: Tensor, scale: float) -> None:
    """Linear regression with flat coefficients and sigma ~ HalfCauchy(scale) (kidiq)."""
    beta = pyro.sample("beta", _flat_vector(design.shape[-1]))
    sigma = pyro.sample("sigma", dist.HalfCauchy(y.new_tensor(scale)))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(_linear(design, beta), sigma), obs=y)


def ar_k(lags: Tensor, y: Tensor) -> None:
    """Autoregression of order K, given its first K observations.

    Args:
        lags: The K values before each observation, the latest first, of shape ``(T - K, K)``.
        y: The observations from K + 1 on, of shape ``(T - K,)``.
    """
    alpha = pyro.sample("alpha", dist.Normal(y.new_tensor(0.0), 10.0))
    prior = dist.Normal(y.new_tensor(0.0), 10.0).expand([lags.shape[-1]]).to_event(1)
    beta = pyro.sample("beta", prior)
    sigma = pyro.sample("sigma", dist.HalfCauchy(y.new_tensor(2.5)))
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(alpha + _linear(lags, beta), sigma), obs=y)


def radon_hierarchical_intercept_centered(
    county: Tensor, log_uppm: Tensor, floor: Tensor, y: Tensor, n_counties: int
) -> None:
    """Radon with intercepts by county around a common mean."""
    sigma_alpha, sigma_y, mu_alpha, beta = _radon_hyperpriors(y)
    with pyro.plate("county", n_counties):
        alpha = pyro.sample("alpha", dist.Normal(mu_alpha, sigma_alpha))
    mean = alpha[..., county] + log_uppm * beta[..., 0] + floor * beta[..., 1]
    with pyro.plate("home", len(y)):
        pyro.sample("y", dist.Normal(mean, sigma_y), obs=y)


def radon_hierarchical_intercept_noncentered(
    county: Tensor, log_uppm: Tensor, floor: Tensor, y: Tensor, n_counties: int
) -> None:
    """Radon with standardised intercepts by county."""
    sigma_alpha, sigma_y, mu_alpha, beta = _radon_hyperpriors(y)
    with pyro.plate("county", n_counties):
        alpha_raw = pyro.sample("alpha_raw", dist.Normal(y.new_tensor(0.0), 1.0))
    alpha = mu_alpha + sigma_alpha * alpha_raw
    mean = alpha[..., county] + log_uppm * beta[..., 0] + floor * beta[..., 1]
    with pyro.plate("home", len(y)):
        pyro.sample("y", dist.Normal(mean, sigma_y), obs=y)


def _radon_hyperpriors(y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    sigma_alpha = pyro.sample("sigma_alpha", dist.HalfNormal(y.new_tensor(1.0)))
    sigma_y = pyro.sample("sigma_y", dist.HalfNormal(y.new_tensor(1.0)))
    mu_alpha = pyro.sample("mu_alpha", dist.Normal(y.new_tensor(0.0), 10.0))
    beta = pyro.sample("beta", dist.Normal(y.new_tensor(0.0), 10.0).expand([2]).to_event(1))
    return sigma_alpha, sigma_y, mu_alpha, beta


def _flat_vector(size: int) -> dist.ImproperUniform:
    return dist.ImproperUniform(constraints.real, (), (size,))


def _linear(design: Tensor, beta: Tensor) -> Tensor:
    """Gives ``design @ beta`` in the data plate, of shape ``(..., N)``.

    A ``beta`` drawn outside the plate by vectorised particles has shape ``(..., 1, k)``: the 1
    is the place of the plate.
    """
    return design @ beta if beta.dim() == 1 else (design @ beta.mT).squeeze(-1)


# Builders


@dataclass(frozen=True)
class Port:
    """A model, its arguments, and the way from Stan's draws to its sites."""

    model: Model
    args: tuple[Any, ...]
    to_sites: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = dict


def _build_eight_schools_centered(data: dict[str, Any]) -> Port:
    return Port(eight_schools_centered, (_vector(data["sigma"]), _vector(data["y"])))


def _build_eight_schools_noncentered(data: dict[str, Any]) -> Port:
    def to_sites(draws: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        mu, tau = draws["mu"][:, None], draws["tau"][:, None]
        return {"mu": mu[:, 0], "tau": tau[:, 0], "theta_trans": (draws["theta"] - mu) / tau}

    args = (_vector(data["sigma"]), _vector(data["y"]))
    return Port(eight_schools_noncentered, args, to_sites)


def _build_nes(data: dict[str, Any]) -> Port:
    age = _vector(data["age_discrete"])
    columns = [_vector(data[name]) for name in ("real_ideo", "race_adj")]
    columns += [(age == level).to(age.dtype) for level in (2, 3, 4)]
    columns += [_vector(data[name]) for name in ("educ1", "gender", "income")]
    return Port(flat_regression, (_design(*columns), _vector(data["partyid7"])))


def _build_mesquite(data: dict[str, Any]) -> Port:
    names = ("diam1", "diam2", "canopy_height", "total_height", "density", "group")
    design = _design(*(_vector(data[name]) for name in names))
    return Port(flat_regression, (design, _vector(data["weight"])))


def _build_earn_height(data: dict[str, Any]) -> Port:
    return Port(flat_regression, (_design(_vector(data["height"])), _vector(data["earn"])))


def _build_kidscore_momiq(data: dict[str, Any]) -> Port:
    design = _design(_vector(data["mom_iq"]))
    return Port(half_cauchy_regression, (design, _vector(data["kid_score"]), 2.5))


def _build_ar_k(data: dict[str, Any]) -> Port:
    y, order = _vector(data["y"]), int(data["K"])
    lags = torch.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], -1)
    return Port(ar_k, (lags, y[order:]))


def _build_radon(model: Model) -> Callable[[dict[str, Any]], Port]:
    def build(data: dict[str, Any]) -> Port:
        county = torch.tensor(data["county_idx"]) - 1
        values = (_vector(data[name]) for name in ("log_uppm", "floor_measure", "log_radon"))
        return Port(model, (county, *values, int(data["J"])))

    return build


def _vector(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _design(*columns: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(columns[0]), *columns], -1)


# Registry

_ENTRIES: dict[str, tuple[str, Callable[[dict[str, Any]], Port]]] = {
    "eight_schools_centered": (
        "eight_schools-eight_schools_centered",
        _build_eight_schools_centered,
    ),
    "eight_schools_noncentered": (
        "eight_schools-eight_schools_noncentered",
        _build_eight_schools_noncentered,
    ),
    "nes1972": ("nes1972-nes", _build_nes),
    "nes1976": ("nes1976-nes", _build_nes),
    "nes1980": ("nes1980-nes", _build_nes),
    "nes1984": ("nes1984-nes", _build_nes),
    "nes1992": ("nes1992-nes", _build_nes),
    "nes2000": ("nes2000-nes", _build_nes),
    "mesquite": ("mesquite-mesquite", _build_mesquite),
    "kidscore_momiq": ("kidiq-kidscore_momiq", _build_kidscore_momiq),
    "arK": ("arK-arK", _build_ar_k),
    "earn_height": ("earnings-earn_height", _build_earn_height),
    "radon_mn_centered": (
        "radon_mn-radon_hierarchical_intercept_centered",
        _build_radon(radon_hierarchical_intercept_centered),
    ),
    "radon_mn_noncentered": (
        "radon_mn-radon_hierarchical_intercept_noncentered",
        _build_radon(radon_hierarchical_intercept_noncentered),
    ),
    "radon_all_centered": (
        "radon_all-radon_hierarchical_intercept_centered",
        _build_radon(radon_hierarchical_intercept_centered),
    ),
    "radon_all_noncentered": (
        "radon_all-radon_hierarchical_intercept_noncentered",
        _build_radon(radon_hierarchical_intercept_noncentered),
    ),
}

# Rubin (1981), Journal of Educational Statistics 6: effects and standard errors of eight schools.
_EIGHT_SCHOOLS = {
    "y": [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0],
    "sigma": [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0],
}
# By quadrature over tau, with mu and theta integrated in closed form; test_ports.py repeats it.
_EIGHT_SCHOOLS_LOG_Z = -31.311347352292785


def targets(root: str | Path | None = None) -> dict[str, Target]:
    """Gives the targets by name.

    Args:
        root: Where posteriordb is (see :class:`Database`). Without it only the two forms of eight
            schools are given, which need no file, and they come without reference draws.

    Raises:
        MissingData: If ``root`` is given and no checkout of posteriordb is there.
    """
    if root is None:
        return {
            name: _without_files(name)
            for name in ("eight_schools_centered", "eight_schools_noncentered")
        }
    database = Database(root)
    return {
        name: _target(database, name, posterior, build)
        for name, (posterior, build) in _ENTRIES.items()
    }


def _without_files(name: str) -> Target:
    port = _ENTRIES[name][1](_EIGHT_SCHOOLS)
    return Target(name, port.model, port.args, log_z=_EIGHT_SCHOOLS_LOG_Z)


def _target(
    database: Database, name: str, posterior: str, build: Callable[[dict[str, Any]], Port]
) -> Target:
    port = build(database.data(posterior))
    row = database.log_z(posterior)
    return Target(
        name,
        port.model,
        port.args,
        log_z=None if row is None else row.value + row.n_half_priors * math.log(2.0),
        log_z_se=0.0 if row is None else row.se,
        _read_reference=lambda: port.to_sites(database.draws(posterior).variables()),
    )
