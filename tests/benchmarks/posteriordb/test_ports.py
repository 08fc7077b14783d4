# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Each port scores exactly what its Stan model scores, and agrees with the reference draws.

Run with the data: ``PYRO_FLOWS_DATA=../shared/data pytest tests/benchmarks/posteriordb``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from scipy import integrate, special, stats
from torch import Tensor
from torch.distributions import biject_to
from torch.func import grad, vmap

from . import models
from .database import Database, Draws, MissingData
from .models import targets
from .target import Target

ROOT = os.environ.get("PYRO_FLOWS_DATA")
needs_data = pytest.mark.skipif(
    ROOT is None,
    reason="Set PYRO_FLOWS_DATA to a folder that holds posteriordb, for example ../shared/data.",
)
NAMES = tuple(models._ENTRIES)
WITH_DRAWS = tuple(name for name in NAMES if not name.startswith("radon"))
FLAT = (*(name for name in NAMES if name.startswith("nes")), "mesquite", "earn_height")


@pytest.fixture(scope="module")
def database() -> Database:
    return Database(ROOT)


@pytest.fixture(scope="module")
def ports() -> dict[str, Target]:
    return targets(ROOT)


# Stan's log densities, written a second time with scipy, from the raw data.


def _normal(x: Any, loc: Any, scale: Any) -> float:
    return float(np.sum(stats.norm.logpdf(x, loc, scale)))


def _eight_schools(data: dict[str, Any], v: dict[str, Any]) -> float:
    theta = v["theta"] if "theta" in v else v["mu"] + v["tau"] * v["theta_trans"]
    prior = _normal(theta, v["mu"], v["tau"]) if "theta" in v else _normal(v["theta_trans"], 0, 1)
    hyper = _normal(v["mu"], 0, 5) + stats.halfcauchy.logpdf(v["tau"], scale=5)
    return _normal(data["y"], theta, data["sigma"]) + prior + hyper + math.log(v["tau"])


def _nes(data: dict[str, Any], v: dict[str, Any]) -> float:
    total = 0.0
    for n in range(data["N"]):
        age = data["age_discrete"][n]
        row = [1, data["real_ideo"][n], data["race_adj"][n], age == 2, age == 3, age == 4]
        row += [data["educ1"][n], data["gender"][n], data["income"][n]]
        total += _normal(data["partyid7"][n], np.dot(v["beta"], row), v["sigma"])
    return total + math.log(v["sigma"])


def _mesquite(data: dict[str, Any], v: dict[str, Any]) -> float:
    b = v["beta"]
    mean = b[0] + b[1] * np.array(data["diam1"]) + b[2] * np.array(data["diam2"])
    mean += b[3] * np.array(data["canopy_height"]) + b[4] * np.array(data["total_height"])
    mean += b[5] * np.array(data["density"]) + b[6] * np.array(data["group"])
    return _normal(data["weight"], mean, v["sigma"]) + math.log(v["sigma"])


def _kidscore_momiq(data: dict[str, Any], v: dict[str, Any]) -> float:
    mean = v["beta"][0] + v["beta"][1] * np.array(data["mom_iq"])
    prior = stats.halfcauchy.logpdf(v["sigma"], scale=2.5)
    return _normal(data["kid_score"], mean, v["sigma"]) + prior + math.log(v["sigma"])


def _earn_height(data: dict[str, Any], v: dict[str, Any]) -> float:
    mean = v["beta"][0] + v["beta"][1] * np.array(data["height"])
    return _normal(data["earn"], mean, v["sigma"]) + math.log(v["sigma"])


def _ar_k(data: dict[str, Any], v: dict[str, Any]) -> float:
    y, order = data["y"], data["K"]
    total = _normal(v["alpha"], 0, 10) + _normal(v["beta"], 0, 10)
    total += stats.halfcauchy.logpdf(v["sigma"], scale=2.5) + math.log(v["sigma"])
    for t in range(order, data["T"]):
        mean = v["alpha"] + sum(v["beta"][k] * y[t - k - 1] for k in range(order))
        total += _normal(y[t], mean, v["sigma"])
    return total


def _radon(data: dict[str, Any], v: dict[str, Any]) -> float:
    alpha = v["alpha"] if "alpha" in v else v["mu_alpha"] + v["sigma_alpha"] * v["alpha_raw"]
    total = _normal(v["mu_alpha"], 0, 10) + _normal(v["beta"], 0, 10)
    for name in ("sigma_alpha", "sigma_y"):
        total += stats.halfnorm.logpdf(v[name]) + math.log(v[name])
    if "alpha" in v:
        total += _normal(alpha, v["mu_alpha"], v["sigma_alpha"])
    else:
        total += _normal(v["alpha_raw"], 0, 1)
    mean = alpha[np.array(data["county_idx"]) - 1] + v["beta"][0] * np.array(data["log_uppm"])
    mean += v["beta"][1] * np.array(data["floor_measure"])
    return total + _normal(data["log_radon"], mean, v["sigma_y"])


FORMULAS: dict[str, Callable[[dict[str, Any], dict[str, Any]], float]] = {
    "eight_schools": _eight_schools,
    "nes": _nes,
    "mesquite": _mesquite,
    "kidscore_momiq": _kidscore_momiq,
    "earn_height": _earn_height,
    "arK": _ar_k,
    "radon": _radon,
}


def _formula(name: str) -> Callable[[dict[str, Any], dict[str, Any]], float]:
    return next(f for prefix, f in FORMULAS.items() if name.startswith(prefix))


def _points(port: Target, count: int) -> Tensor:
    """Reference draws where there are some, standard normal points otherwise."""
    try:
        draws = port.unconstrain(port.reference())
    except MissingData:
        rng = torch.Generator().manual_seed(0)
        return torch.randn(count, port.dim, generator=rng, dtype=torch.float64)
    return draws[:: len(draws) // count][:count]


def _constrain(port: Target, z: Tensor) -> dict[str, Tensor]:
    sites, start = {}, 0
    for name, (support, shape) in port.latents.items():
        size = math.prod(shape)
        sites[name] = biject_to(support)(z[:, start : start + size].reshape(-1, *shape))
        start += size
    return sites


def _assert_same_as_formula(port: Target, data: dict[str, Any]) -> None:
    z = _points(port, 5)
    sites = {name: value.numpy() for name, value in _constrain(port, z).items()}
    expected = [
        _formula(port.name)(data, {name: v[i] for name, v in sites.items()}) for i in range(len(z))
    ]
    np.testing.assert_allclose(port.log_joint(z).numpy(), expected, rtol=1e-12, atol=1e-9)


# Without data


@pytest.mark.parametrize("name", ["eight_schools_centered", "eight_schools_noncentered"])
def test_eight_schools_needs_no_files(name: str) -> None:
    port = targets()[name]
    _assert_same_as_formula(port, models._EIGHT_SCHOOLS)
    with pytest.raises(MissingData, match="no reference draws"):
        port.reference()


def test_log_z_of_eight_schools() -> None:
    y, s = (np.array(models._EIGHT_SCHOOLS[name]) for name in ("y", "sigma"))

    def integrand(u: float) -> float:  # tau = 5 tan(u) makes the half-Cauchy flat on (0, pi/2)
        variance = s**2 + (5 * math.tan(u)) ** 2
        cov = np.diag(variance) + 25.0
        return stats.multivariate_normal.pdf(y, np.zeros(8), cov) * 2 / math.pi

    value, _ = integrate.quad(integrand, 0, math.pi / 2, epsabs=0, epsrel=1e-12, limit=500)
    for port in targets().values():
        assert port.log_z == pytest.approx(math.log(value), abs=1e-9)


def test_unconstrain_undoes_constrain() -> None:
    port = targets()["eight_schools_centered"]
    z = _points(port, 7)
    torch.testing.assert_close(port.unconstrain(_constrain(port, z)), z)


def test_draws_are_joined_in_order() -> None:
    names = ("a[1,1]", "a[2,1]", "a[1,2]", "a[2,2]", "b")
    array = np.arange(2 * 3 * 5, dtype=float).reshape(2, 3, 5)
    variables = Draws(names, array).variables()
    assert variables["a"].shape == (6, 2, 2)
    assert variables["a"][0].tolist() == [[0.0, 2.0], [1.0, 3.0]]
    assert variables["b"].tolist() == [4.0, 9.0, 14.0, 19.0, 24.0, 29.0]


def test_missing_data_says_how_to_get_it(tmp_path: Any) -> None:
    with pytest.raises(MissingData, match="git clone https://github.com/stan-dev/posteriordb"):
        targets(tmp_path)


# With data


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_log_joint_is_stans(name: str, ports: dict[str, Target], database: Database) -> None:
    _assert_same_as_formula(ports[name], database.data(models._ENTRIES[name][0]))


@needs_data
@pytest.mark.parametrize("name", WITH_DRAWS)
def test_score_identities(name: str, ports: dict[str, Target]) -> None:
    """E[grad log p] = 0 and E[(z - m) grad log p] = -1 under the reference draws."""
    port = ports[name]
    z = port.unconstrain(port.reference())
    with pyro.validation_enabled(False):
        score = vmap(grad(port._log_joint_at), chunk_size=1000)(z)
    assert torch.isfinite(score).all()
    second = (z - z.mean(0)) * score + 1
    for identity in (score, second):
        batches = identity.reshape(50, -1, port.dim).mean(1)
        z_score = batches.mean(0) / (batches.std(0) / math.sqrt(len(batches)))
        assert z_score.abs().max() < 4, f"{name}: z-scores {z_score.tolist()}"


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_vectorised_particles(name: str, ports: dict[str, Target]) -> None:
    port = ports[name]
    z = _points(port, 4)
    log_p = torch.zeros(len(z), dtype=torch.float64)
    values = {}
    for site, value in _constrain(port, z).items():
        support, shape = port.latents[site]
        free = biject_to(support).inv(value)
        log_p += biject_to(support).log_abs_det_jacobian(free, value).reshape(len(z), -1).sum(-1)
        in_plate = shape and site in ("theta", "theta_trans", "alpha", "alpha_raw")
        values[site] = value if in_plate else value.unsqueeze(1)
    with pyro.plate("particles", len(z), dim=-2):
        trace = poutine.trace(poutine.condition(port.model, data=values)).get_trace(
            *port.args, **port.kwargs
        )
    trace.compute_log_prob()
    for site in trace.nodes.values():
        if site["type"] == "sample" and not poutine.util.site_is_subsample(site):
            log_p += site["log_prob"].sum(-1)
    torch.testing.assert_close(log_p, port.log_joint(z))


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_data_are_float64(name: str, ports: dict[str, Target]) -> None:
    tensors = [a for a in ports[name].args if isinstance(a, Tensor) and a.is_floating_point()]
    assert tensors
    assert all(a.dtype == torch.float64 for a in tensors)
    assert ports[name].log_joint(_points(ports[name], 2)).dtype == torch.float64


@needs_data
@pytest.mark.parametrize("name", [*FLAT, "kidscore_momiq"])
def test_log_z_of_regressions(name: str, ports: dict[str, Target]) -> None:
    """The table's log Z is the closed form (flat sigma) or a quadrature over sigma."""
    port = ports[name]
    x, y = port.args[0].numpy(), port.args[1].numpy()
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
            return math.exp(power + u) * stats.halfcauchy.pdf(math.exp(u), scale=port.args[2])

        log_z = c + at_peak + math.log(integrate.quad(integrand, peak - 1, peak + 1)[0])
    assert port.log_z == pytest.approx(log_z, abs=2e-4)
    assert port.log_z_se == 0


@needs_data
@pytest.mark.parametrize("data", ["radon_mn", "radon_all"])
def test_radon_forms_agree(data: str, ports: dict[str, Target]) -> None:
    """The two forms differ by the Jacobian of alpha = mu_alpha + sigma_alpha * alpha_raw."""
    centred, noncentred = ports[f"{data}_centered"], ports[f"{data}_noncentered"]
    z = _points(noncentred, 4)
    sites = _constrain(noncentred, z)
    scale = sites["sigma_alpha"][:, None]
    raw = sites.pop("alpha_raw")
    sites["alpha"] = sites["mu_alpha"][:, None] + scale * raw
    ladj = raw.shape[-1] * scale[:, 0].log()
    torch.testing.assert_close(
        centred.log_joint(centred.unconstrain(sites)) + ladj, noncentred.log_joint(z)
    )
