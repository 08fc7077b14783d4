# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What holds for every port: draws, scores, vectorised particles, dtype, the package, log Z.

Run with the data: ``PYRO_FLOWS_DATA=../shared/data pytest tests/benchmarks/posteriordb``. That a
port scores what its Stan model scores is tested in its family's file.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from . import models, targets
from .checks import assert_packages, assert_vectorised, constrain, importance_log_z, reference
from .database import Database, Draws, MissingData
from .ported import NAMES, ROOT, WITH_DRAWS, WITHOUT_DRAWS, needs_data, points, port

# The posteriors whose log Z in the table is an estimate; of the others a test has the closed form.
BY_SAMPLING = (
    *("arK", "blr", "diamonds", "gp_regr", "gp_pois_regr", "hmm_drive_1", "low_dim_gauss_mix"),
    *("lotka_volterra", "one_comp_mm_elim_abs"),
)


# Without data


def test_unconstrain_undoes_constrain() -> None:
    target = models.targets()["eight_schools_centered"]
    z = points(target, 7)
    torch.testing.assert_close(target.unconstrain(constrain(target, z)[0]), z)


def test_reference_without_files_is_refused() -> None:
    with pytest.raises(MissingData, match="no reference draws"):
        models.targets()["eight_schools_centered"].reference()


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


def test_groups_need_no_files() -> None:
    made = targets()
    assert {"eight_schools_centered", "eight_schools_noncentered"} < set(made)
    assert all(name == target.name for name, target in made.items())
    assert {"posteriordb", "synthetic", "trap"} <= {target.group for target in made.values()}


# With data


@needs_data
def test_every_posterior_of_the_table_is_ported() -> None:
    with Path(ROOT, "posteriordb_logz.csv").open(newline="") as lines:
        table = {row["posterior"] for row in csv.DictReader(lines)}
    ported = {posterior for posterior, _ in models.ENTRIES.values()}
    assert table <= ported
    for name in WITH_DRAWS:
        assert port(name).log_z is not None
    for name in WITHOUT_DRAWS:
        assert port(name).log_z is None
        with pytest.raises(MissingData):
            port(name).reference()


@needs_data
@pytest.mark.parametrize("name", WITH_DRAWS)
def test_dimension_is_the_tables(name: str) -> None:
    with Path(ROOT, "posteriordb_logz.csv").open(newline="") as lines:
        dims = {row["posterior"]: int(row["d"]) for row in csv.DictReader(lines)}
    assert port(name).dim == dims[models.ENTRIES[name][0]]


@needs_data
@pytest.mark.parametrize("name", WITH_DRAWS)
def test_score_identities(name: str) -> None:
    """E[grad log p] = 0 and E[(z - m) grad log p] = -1 under the reference draws."""
    target = port(name)
    z = target.unconstrain(target.reference())
    with pyro.validation_enabled(False):
        score = vmap(grad(target._log_joint_at), chunk_size=1000)(z)
    assert torch.isfinite(score).all()
    second = (z - z.mean(0)) * score + 1
    for identity in (score, second):
        batches = identity.reshape(50, -1, target.dim).mean(1)
        z_score = batches.mean(0) / (batches.std(0) / math.sqrt(len(batches)))
        assert z_score.abs().max() < 4, f"{name}: z-scores {z_score.tolist()}"


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_vectorised_particles(name: str) -> None:
    assert_vectorised(port(name), points(port(name), 4))


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_the_package_scores_the_same(name: str) -> None:
    assert_packages(port(name), points(port(name), 4))


@needs_data
@pytest.mark.parametrize("name", NAMES)
def test_data_are_float64(name: str) -> None:
    target = port(name)
    tensors = [a for a in target.args if isinstance(a, Tensor) and a.is_floating_point()]
    assert tensors
    assert all(a.dtype == torch.float64 for a in tensors)
    assert target.log_joint(points(target, 2)).dtype == torch.float64


@needs_data
@pytest.mark.parametrize("name", BY_SAMPLING)
def test_log_z_by_importance_sampling(name: str) -> None:
    """Puts each constant in its place: a half-prior missed or counted twice is 0.693 off."""
    target = port(name)
    log_z, se = importance_log_z(target, reference(target, 5000))
    assert se < 0.1
    assert abs(log_z - target.log_z) < 0.005 + 4 * math.hypot(se, target.log_z_se)


@needs_data
def test_summaries_are_those_of_the_draws() -> None:
    """Read on a posterior that has both; accel_gp has them alone."""
    database = Database(ROOT)
    for name, values in database.draws("arK-arK").variables().items():
        mean, error = (part[name] for part in database.summary("arK-arK", "mean_value"))
        assert (np.abs(values.mean(0) - mean) < 1e-6 + 0.1 * error).all()
        assert (error > 0).all()


@needs_data
def test_moments_of_accel_gp() -> None:
    target = port("accel_gp")
    moments = target.moments()
    assert set(moments.mean) == set(target.latents)
    for name, (_, shape) in target.latents.items():
        assert moments.mean[name].shape == moments.sd[name].shape == shape
        assert (moments.mean_se[name] < 0.02 * moments.sd[name]).all()
        assert (moments.sd_se[name] < 0.03 * moments.sd[name]).all()
