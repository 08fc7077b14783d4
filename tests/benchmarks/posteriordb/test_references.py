# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The recorded moments are those of their targets, and were made by runs that meet the rules.

Two methods that share nothing with NUTS repeat them: quadrature for radon, and Gibbs sampling for
the horseshoe.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from scipy import stats
from torch.distributions import biject_to

from . import models, quadrature, synthetic
from .errors import errors
from .ported import needs_data, port
from .recorded import FOLDER, recorded
from .target import Target

FILES = sorted(FOLDER.glob("*.json"))
RADON = [name for name in models.ENTRIES if name.startswith("radon")]
HORSESHOES = ["horseshoe", "horseshoe_noncentered"]
# The ends of the logs of the scales and the numbers of points: 7 sds and more to either side,
# and down to e^-16 where a scale may be 0.
AXES: dict[str, dict[str, quadrature.Axis]] = {
    "radon_mn": {"sigma_alpha": (-16, 0, 80), "sigma_y": (-0.5, -0.1, 16)},
    "radon_mn_slopes": {
        "sigma_alpha": (-2.2, -0.3, 16),
        "sigma_beta": (-16, 0.5, 66),
        "sigma_y": (-0.5, -0.15, 12),
    },
    "radon_all": {"sigma_alpha": (-0.95, -0.25, 16), "sigma_y": (-0.13, -0.03, 16)},
    "radon_all_slopes": {
        "sigma_alpha": (-1.0, -0.3, 14),
        "sigma_beta": (-1.5, -0.45, 14),
        "sigma_y": (-0.153, -0.053, 14),
    },
}


def _how(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())["how"]


# The files


def test_every_target_has_its_file() -> None:
    assert {file.stem for file in FILES} == {*RADON, *HORSESHOES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_runs_meet_the_rules(file: Path) -> None:
    how = _how(file.stem)
    assert how["chains"] >= 4
    assert how["moments_from"] != how["compared_with"]
    for form in (how["moments_from"], how["compared_with"]):
        run = how["runs"][form]
        assert run["largest_rhat"] < 1.01
        assert min(run["least_bulk_ess"], run["least_tail_ess"]) > 4000
        assert run["divergences"] == 0
        assert run["target_accept"] >= 0.95
    assert how["share_within_4"] >= 0.99
    assert how["rms_z"] < 2
    assert how["largest_difference"] < 0.05


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_errors_are_small(file: Path) -> None:
    known = recorded(file.stem)()
    assert not known.constrained
    for name, sd in known.sd.items():
        assert np.isfinite(known.mean[name]).all()
        assert (sd > 0).all()
        # What an ESS of 4,000 gives: 0.016 sds, and 0.02 for the sd at a kurtosis of 7.
        assert (known.mean_se[name] < 0.016 * sd).all()
        assert (known.sd_se[name] < 0.025 * sd).all()
        assert (np.diff(known.quantiles[name], axis=0) > 0).all()


def test_no_record_no_moments() -> None:
    assert recorded("eight_schools_centered") is None


def _assert_fits(target: Target) -> None:
    known = target.moments()
    assert list(known.mean) == list(target.latents)
    for name, (support, shape) in target.latents.items():
        free = tuple(biject_to(support).inverse_shape(shape))
        for part in (known.mean, known.sd, known.mean_se, known.sd_se):
            assert part[name].shape == free
        assert known.quantiles[name].shape == (5, *shape)
        # The mean of a posterior with one peak lies well inside, on the other scale, too.
        ends = biject_to(support).inv(torch.from_numpy(known.quantiles[name])).numpy()
        assert ((ends[0] < known.mean[name]) & (known.mean[name] < ends[-1])).all()


@pytest.mark.parametrize("name", HORSESHOES)
def test_moments_of_horseshoe_fit_it(name: str) -> None:
    _assert_fits(synthetic.targets()[name])


@needs_data
@pytest.mark.parametrize("name", RADON)
def test_moments_of_radon_fit_it(name: str) -> None:
    _assert_fits(port(name))


# Radon by quadrature


_SCALES = {"sigma_alpha": 0.2, "sigma_beta": 0.3, "sigma_y": 0.8}


@needs_data
@pytest.mark.parametrize("posterior", ["radon_mn", "radon_mn_slopes"])
def test_given_the_scales_radon_is_gaussian(posterior: str) -> None:
    """At the mean given the scales the gradient is 0, and the log joint says what p(y) is."""
    target = port(f"{posterior}_noncentered")
    axes = {name: (0.0, 0.0, 1) for name in _SCALES if name in target.latents}
    scales = np.array([_SCALES[name] for name in axes])
    cross, count, effects = quadrature._cross(target)
    log_density, mean, _ = quadrature._given(cross, count, scales[:-1], scales[-1])
    where = quadrature._names(axes, cross, effects)
    found = np.append(np.log(scales), mean)
    z = torch.from_numpy(np.hstack([found[where[name]] for name in target.latents]))
    free = ~torch.isin(z, torch.from_numpy(np.log(scales)))
    with pyro.validation_enabled(False):
        score = torch.func.grad(target._log_joint_at)(z)[free]
        hessian = torch.func.hessian(target._log_joint_at)(z)[free][:, free]
    assert score.abs().max() < 1e-8
    expected = target.log_joint(z[None]).item() - torch.linalg.slogdet(-hessian)[1].item() / 2
    expected += int(free.sum()) / 2 * math.log(2 * math.pi)
    expected -= stats.halfnorm.logpdf(scales).sum() + np.log(scales).sum()
    assert log_density == pytest.approx(expected, abs=1e-7)


@needs_data
@pytest.mark.parametrize("posterior", AXES)
def test_moments_of_radon_by_quadrature(posterior: str) -> None:
    exact, log_z = quadrature.radon(port(f"{posterior}_centered"), AXES[posterior])
    for form in ("centered", "noncentered"):
        assert port(f"{posterior}_{form}").log_z == pytest.approx(log_z, abs=1e-4)
        known = port(f"{posterior}_{form}").moments()
        z = [
            (np.ravel(known.mean[name]) - exact[name][0]) / np.ravel(known.mean_se[name])
            for name in known.mean
        ]
        z += [
            (np.ravel(known.sd[name]) - exact[name][1]) / np.ravel(known.sd_se[name])
            for name in known.sd
        ]
        _assert_standard(np.concatenate(z))


def _assert_standard(z: np.ndarray) -> None:
    """The coordinates depend on one another, so that the mean square need not be close to 1."""
    assert (np.abs(z) < 4).mean() >= 0.99, np.sort(np.abs(z))[-5:]
    assert math.sqrt((z**2).mean()) < 2


# The horseshoe by Gibbs sampling


def _gibbs(design: np.ndarray, y: np.ndarray, chains: int, steps: int) -> dict[str, np.ndarray]:
    """Draws by Makalic and Schmidt's sampler: site -> ``(steps, chains, ...)``.

    A half-Cauchy's square is an inverse gamma whose rate is one over an inverse gamma. The noise
    has a half-normal prior, so its step is a proposal without the prior, taken or left.
    """
    rng = np.random.default_rng(0)
    rows, size = design.shape
    gram, moment = design.T @ design, design.T @ y

    def inverse_gamma(shape: float, rate: np.ndarray) -> np.ndarray:
        return rate / rng.gamma(shape, size=rate.shape)

    local, overall = np.ones((chains, size)), np.full((chains, 1), 0.05)
    noise, overall_rate = np.ones((chains, 1)), np.ones((chains, 1))
    out: dict[str, list[np.ndarray]] = {"overall": [], "noise": [], "local": [], "beta": []}
    for _ in range(steps):
        precision = gram / noise[..., None] + np.eye(size) / (overall * local)[:, None]
        tril = np.linalg.cholesky(precision)
        white = np.linalg.solve(tril, moment[:, None] / noise[..., None])
        white = white + rng.standard_normal(white.shape)
        beta = np.linalg.solve(tril.swapaxes(1, 2), white)[..., 0]
        local_rate = inverse_gamma(1.0, 1 + 1 / local)
        local = inverse_gamma(1.0, 1 / local_rate + beta**2 / (2 * overall))
        overall_rate = inverse_gamma(1.0, 1 + 1 / overall)
        rate = 1 / overall_rate + (beta**2 / (2 * local)).sum(1, keepdims=True)
        overall = inverse_gamma((size + 1) / 2, rate)
        squares = ((y - beta @ design.T) ** 2).sum(1, keepdims=True)
        proposed = inverse_gamma((rows - 1) / 2, squares / 2)
        taken = rng.random((chains, 1)) < np.exp((noise - proposed) / 2)
        noise = np.where(taken, proposed, noise)
        # Sampled are squares.
        state = {"overall": overall**0.5, "noise": noise**0.5, "local": local**0.5, "beta": beta}
        for name, value in state.items():
            out[name].append(value)
    return {name: np.array(values) for name, values in out.items()}


@pytest.mark.slow
def test_moments_of_horseshoe_by_gibbs_sampling() -> None:
    made = synthetic.targets()
    design, y = (arg.numpy() for arg in made["horseshoe"].args)
    draws = {name: v[500:] for name, v in _gibbs(design, y, chains=100, steps=3000).items()}
    draws = {name: v[..., 0] if name in ("overall", "noise") else v for name, v in draws.items()}
    draws["beta_raw"] = draws["beta"] / (draws["overall"][..., None] * draws["local"])
    for name in HORSESHOES:
        known = made[name].moments()
        z = []
        for site, mean in known.mean.items():
            value = draws[site] if site.startswith("beta") else np.log(draws[site])
            z.append(_z_scores(value.mean(0), mean, known.mean_se[site]))
            sd = known.sd[site]
            # d sd = d variance / (2 sd)
            spread = ((value - value.mean((0, 1))) ** 2).mean(0) / (2 * sd)
            z.append(_z_scores(spread, sd / 2, known.sd_se[site]))
        _assert_standard(np.concatenate(z))
        thinned = {site: np.concatenate(value[::10]) for site, value in draws.items()}
        found = errors(made[name], thinned)
        assert found["met"]
        assert found["quantile"] < 0.02


def _z_scores(each: np.ndarray, expected: np.ndarray, se: np.ndarray) -> np.ndarray:
    """Of the mean over chains, which are independent: their spread gives its error."""
    error = np.hypot(each.std(0, ddof=1) / math.sqrt(len(each)), se)
    return np.ravel((each.mean(0) - expected) / error)
