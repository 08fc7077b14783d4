# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Eight schools and radon score what their Stan models score; the two forms of each agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from . import models
from .checks import constrain
from .models import hierarchical
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


def _eight_schools(given: Values, v: Values) -> float:
    theta = v["theta"] if "theta" in v else v["mu"] + v["tau"] * v["theta_trans"]
    prior = normal(theta, v["mu"], v["tau"]) if "theta" in v else normal(v["theta_trans"], 0, 1)
    hyper = normal(v["mu"], 0, 5) + stats.halfcauchy.logpdf(v["tau"], scale=5)
    return normal(given["y"], theta, given["sigma"]) + prior + hyper + positive(v["tau"])


def _half_normal(*values: float) -> float:
    return sum(stats.halfnorm.logpdf(value) + math.log(value) for value in values)


def _effects(v: Values, name: str) -> tuple[np.ndarray, float]:
    """The effects by county, in either form, and their log prior."""
    loc, scale = v[f"mu_{name}"], v[f"sigma_{name}"]
    if name in v:
        return v[name], normal(v[name], loc, scale)
    return loc + scale * v[f"{name}_raw"], normal(v[f"{name}_raw"], 0, 1)


def _radon_intercepts(given: Values, v: Values) -> float:
    alpha, total = _effects(v, "alpha")
    total += normal(v["mu_alpha"], 0, 10) + normal(v["beta"], 0, 10)
    total += _half_normal(v["sigma_alpha"], v["sigma_y"])
    mean = alpha[np.array(given["county_idx"]) - 1] + v["beta"][0] * np.array(given["log_uppm"])
    mean += v["beta"][1] * np.array(given["floor_measure"])
    return total + normal(given["log_radon"], mean, v["sigma_y"])


def _radon_slopes(given: Values, v: Values) -> float:
    (alpha, log_alpha), (beta, log_beta) = _effects(v, "alpha"), _effects(v, "beta")
    total = log_alpha + log_beta + normal([v["mu_alpha"], v["mu_beta"]], 0, 10)
    total += _half_normal(v["sigma_y"], v["sigma_alpha"], v["sigma_beta"])
    county = np.array(given["county_idx"]) - 1
    mean = alpha[county] + np.array(given["floor_measure"]) * beta[county]
    return total + normal(given["log_radon"], mean, v["sigma_y"])


def _formula(name: str) -> Formula:
    if name.startswith("eight_schools"):
        return _eight_schools
    return _radon_slopes if "slopes" in name else _radon_intercepts


@pytest.mark.parametrize("name", ["eight_schools_centered", "eight_schools_noncentered"])
def test_eight_schools_needs_no_files(name: str) -> None:
    assert_same_as_formula(models.targets()[name], hierarchical.EIGHT_SCHOOLS, _eight_schools)


def test_log_z_of_eight_schools() -> None:
    y, s = (np.array(hierarchical.EIGHT_SCHOOLS[name]) for name in ("y", "sigma"))

    def integrand(u: float) -> float:  # tau = 5 tan(u) makes the half-Cauchy flat on (0, pi/2)
        variance = s**2 + (5 * math.tan(u)) ** 2
        cov = np.diag(variance) + 25.0
        return stats.multivariate_normal.pdf(y, np.zeros(8), cov) * 2 / math.pi

    value, _ = integrate.quad(integrand, 0, math.pi / 2, epsabs=0, epsrel=1e-12, limit=500)
    for target in models.targets().values():
        assert target.log_z == pytest.approx(math.log(value), abs=1e-9)


@needs_data
@pytest.mark.parametrize("name", hierarchical.ENTRIES)
def test_log_joint_is_stans(name: str) -> None:
    assert_same_as_formula(port(name), data(name), _formula(name))


@needs_data
@pytest.mark.parametrize("name", ["radon_mn", "radon_mn_slopes", "radon_all", "radon_all_slopes"])
def test_radon_forms_agree(name: str) -> None:
    """The two forms differ by the Jacobian of alpha = mu_alpha + sigma_alpha * alpha_raw."""
    centred, noncentred = port(f"{name}_centered"), port(f"{name}_noncentered")
    z = points(noncentred, 4)
    sites, _ = constrain(noncentred, z)
    ladj = torch.zeros(len(z), dtype=torch.float64)
    for effect in ("alpha", "beta") if "slopes" in name else ("alpha",):
        scale, raw = sites[f"sigma_{effect}"], sites.pop(f"{effect}_raw")
        sites[effect] = sites[f"mu_{effect}"][:, None] + scale[:, None] * raw
        ladj += raw.shape[-1] * scale.log()
    torch.testing.assert_close(
        centred.log_joint(centred.unconstrain(sites)) + ladj, noncentred.log_joint(z)
    )


@needs_data
def test_dimensions_of_radon() -> None:
    dims = {"radon_mn": 90, "radon_mn_slopes": 175, "radon_all": 391, "radon_all_slopes": 777}
    for name, dim in dims.items():
        assert port(f"{name}_centered").dim == port(f"{name}_noncentered").dim == dim
