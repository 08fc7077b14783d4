# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""Models ranked by leave-one-out cross-validation.

Reference: Yao, Vehtari, Simpson and Gelman (2018), Using stacking to average Bayesian predictive
distributions, Bayesian Analysis 13, arXiv:1704.02030.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .arviz_seam import compare_elpd, elpd_data
from .loo import LOO

__all__ = ["compare_loo"]


def compare_loo(models: Mapping[str, LOO]) -> Any:
    """Rank models by their expected log predictive density, and weigh them by stacking.

    Args:
        models: name to result, of one and the same data.

    Returns:
        A pandas DataFrame, the best model first, on either line of ArviZ with the columns "rank"
        (0 is the best), "elpd", "p_loo", "elpd_diff" (to the best one, never positive), "dse"
        (standard error of that difference, from the points' spread), "se", "weight" (the mixture
        of the models that predicts best: Yao et al. 2018) and "warning" (whether the result has
        any).

    Raises:
        ValueError: fewer than two models, other numbers of points or other data, or an elpd that
            isn't finite.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> ll = rng.normal(scale=0.1, size=(1000, 30))
        >>> table = compare_loo({"a": psis_loo(np.zeros(1000), ll - 1),
        ...                      "b": psis_loo(np.zeros(1000), ll - 2)})
        >>> list(table.index), list(table.columns)[:4]
        (['a', 'b'], ['rank', 'elpd', 'p_loo', 'elpd_diff'])
    """
    if len(models) < 2:
        raise ValueError(f"Expected at least two models to compare, got {len(models)}: add one.")
    for name, model in models.items():
        if not math.isfinite(model.elpd):
            raise ValueError(
                f"Expected a finite elpd of every model, got {model.elpd} for {name!r}: it gives "
                "a point no probability. Leave that model out."
            )
    _check_same_data(models)
    # A constant common to all models changes neither differences nor weights, and keeps the
    # densities that stacking takes the exponential of from vanishing.
    best = np.max([model.elpd_i.ravel() for model in models.values()], axis=0)
    table = compare_elpd(
        {
            name: elpd_data(
                model.elpd_i.ravel() - best,
                model.khat_i.ravel(),
                elpd=model.elpd,
                se=model.se,
                p_loo=model.p_loo,
                n_draws=model.n_draws,
                threshold=model.threshold,
                dims=["point"],
                coords={},
            )
            for name, model in models.items()
        }
    )
    table["warning"] = [bool(models[name].warnings) for name in table.index]
    return table


def _check_same_data(models: Mapping[str, LOO]) -> None:
    (first, one), *others = models.items()
    for name, other in others:
        if one.elpd_i.size != other.elpd_i.size:
            raise ValueError(
                f"Expected models of the same data, got {one.elpd_i.size} points for {first!r} "
                f"and {other.elpd_i.size} for {name!r}: fit both to the same points."
            )
        if one.observed is None or other.observed is None:
            continue
        mine, theirs = (np.asarray(x.observed, dtype=float).ravel() for x in (one, other))
        if not (
            mine.shape == theirs.shape and np.allclose(mine, theirs, 1e-6, 0.0, equal_nan=True)
        ):
            raise ValueError(
                f"Expected models of the same data, got other observed values for {first!r} than "
                f"for {name!r}: densities of different or transformed data can't be compared."
            )
