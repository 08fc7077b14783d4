# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Pyro ports of posteriordb models, as their Stan authors wrote them, by family.

A *model* is a plain Pyro function. A *builder* turns a posterior's data (under Stan's names) into
a :class:`Port`: the model, its arguments, and what is known of it. To add a target: write its
model and builder, and add one line to its family's ``ENTRIES``. Flat priors stay flat
(``ImproperUniform``); every constant takes the data's dtype, so that the log joint is float64
throughout.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np

from ..database import Database
from ..recorded import recorded
from ..target import Moments, Target
from . import dynamics, hierarchical, mixtures, processes, regressions, series
from .common import Entries, Port

ENTRIES: Entries = {
    **hierarchical.ENTRIES,
    **regressions.ENTRIES,
    **series.ENTRIES,
    **mixtures.ENTRIES,
    **processes.ENTRIES,
    **dynamics.ENTRIES,
}


def targets(root: str | Path | None = None) -> dict[str, Target]:
    """Gives posteriordb's targets by name.

    Args:
        root: Where posteriordb is (see :class:`Database`). Without it only the two forms of eight
            schools are given, which need no file, and they come without reference draws.

    Raises:
        MissingData: If ``root`` is given and no checkout of posteriordb is there.
    """
    if root is None:
        names = ("eight_schools_centered", "eight_schools_noncentered")
        return {name: _without_files(name) for name in names}
    database = Database(root)
    return {name: _target(database, name) for name in ENTRIES}


def _without_files(name: str) -> Target:
    port = ENTRIES[name][1](hierarchical.EIGHT_SCHOOLS)
    return Target(name, port.model, port.args, log_z=hierarchical.EIGHT_SCHOOLS_LOG_Z)


def _target(database: Database, name: str) -> Target:
    posterior, build = ENTRIES[name]
    port = build(database.data(posterior))
    row = database.log_z(posterior)
    log_z, se = port.log_z, 0.0
    if row is not None:
        log_z = row.value + row.n_half_priors * math.log(2.0) + port.log_z_shift
        se = row.se
    return Target(
        name,
        port.model,
        port.args,
        log_z=log_z,
        log_z_se=se,
        moments=partial(_moments, database, posterior) if port.moments else recorded(name),
        modes=port.modes,
        canonical=port.canonical,
        group=port.group,
        _read_reference=partial(_reference, database, posterior, port),
    )


def _reference(database: Database, posterior: str, port: Port) -> dict[str, np.ndarray]:
    return port.to_sites(database.draws(posterior).variables())


def _moments(database: Database, posterior: str) -> Moments:
    """Means and sds from posteriordb's means and mean squares."""
    mean, mean_se = database.summary(posterior, "mean_value")
    square, square_se = database.summary(posterior, "mean_squared_value")
    sd = {name: np.sqrt(square[name] - mean[name] ** 2) for name in mean}
    # The errors of the two go together in a way that isn't known. What they can add up to at most
    # is too much where the mean is large beside the sd; there the sd's error is that of draws with
    # a kurtosis of 9, sd sqrt((9 - 1) / 4n).
    sd_se = {}
    for name in mean:
        most = (square_se[name] + 2 * np.abs(mean[name]) * mean_se[name]) / (2 * sd[name])
        sd_se[name] = np.minimum(most, math.sqrt(2.0) * mean_se[name])
    return Moments(mean, sd, mean_se, sd_se)
