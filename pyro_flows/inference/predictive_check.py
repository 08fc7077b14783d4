# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Posterior predictive checks of a fit: would this model have made these data?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pyro_flows import diagnostics
from pyro_flows.diagnostics import PredictiveCheck
from pyro_flows.diagnostics.anchors import more
from pyro_flows.diagnostics.predictive_check import STATISTICS, Statistic
from pyro_flows.errors import ModelError
from pyro_flows.inference.per_draw import log_likelihood
from pyro_flows.inference.randomness import seeded
from pyro_flows.inference.raw_draws import (
    Array,
    Points,
    RawDraws,
    check_log_likelihood,
    check_unscaled,
)

if TYPE_CHECKING:
    from pyro_flows.inference.posterior import Posterior


def predictive_check(
    posterior: Posterior,
    site: str | None = None,
    *,
    statistics: Sequence[Statistic] = STATISTICS,
    interval: float = 0.9,
    draws: int = 2000,
) -> PredictiveCheck:
    """Set the data beside what the fitted model would say next.

    New data are drawn at the posterior's draws, statistics compared, and each point placed among
    predictions made without it (LOO-PIT, from raw draws of the guide, corrected as in ``loo``).
    Elements that are masked out are left out of data and new data.

    Args:
        posterior: of ``FlowVI.run`` or ``assess``, with data.
        site: the observed site, needed where there are several.
        statistics: "mean", "sd", "min", "max", "median", or functions of one set of data to a
            number. They get an array in the shape of the data; where elements are masked out, the
            others in a row.
        interval: probability of the central predictive interval in the table.
        draws: number of sets of new data, and of raw draws for LOO-PIT, 25 or more.

    Returns:
        The check; print it, plot it: ``table``, ``pit``, ``plot()``. Where points have no
        likelihood of their own, ``pit`` is None, and a note says why.

    Raises:
        ModelError: nothing is observed.
        OptionError: there are several observed sites and none is named, or an unknown one is.
        GuideError: fewer draws, or none inside the support.
        ValueError: an unknown statistic, or one that isn't a number.

    Cost: three runs of the model for each draw, and somewhat under a millisecond for each point.

    Example:
        >>> def model(y):
        ...     rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Poisson(rate), obs=y)
        >>> y = torch.tensor([0.0, 0.0, 9.0, 0.0, 12.0, 0.0, 1.0, 8.0])
        >>> check = predictive_check(FlowVI(model, progress=False).run(y))
        >>> bool(check.table.loc["sd", "p_value"] < 0.05), check.pit.shape
        (True, (8,))
    """
    with seeded(posterior.seed), posterior.under_model_state():
        raw = RawDraws.of(posterior, draws, caller="predictive_check")
        points = Points.of(raw.runs.trace, site, caller="predictive_check")
        new = points.take(posterior.predict(draws=draws))
        pit, notes = _pit(posterior, raw, points)
    observed = points.observed
    # An event may be known in part; a point that isn't known at all is no point.
    known = ~np.isnan(observed) if observed.dtype.kind == "f" else np.array(True)
    if not known.all():
        observed, new = observed[known], new[:, known]
    if posterior.verdict.status == "not reliable":
        notes.append("The verdict on this fit is 'not reliable': print(posterior) says why.")
    return PredictiveCheck(
        table=diagnostics.predictive_pvalues(
            observed, new, statistics=statistics, interval=interval
        ),
        observed=observed,
        replicated=new,
        statistics=tuple(statistics),
        pit=pit,
        discrete=points.discrete,
        notes=tuple(notes),
    )


def _pit(posterior: Posterior, raw: RawDraws, points: Points) -> tuple[Array | None, list[str]]:
    """LOO-PIT values, or None; and what is to be said about them."""
    try:
        check_log_likelihood(raw, posterior, caller="LOO-PIT")
        for name in points.sites:
            check_unscaled(name, raw.runs.trace.nodes[name], caller="LOO-PIT")
    except ModelError as error:
        return None, [str(error)]
    (values,) = raw.runs.map(log_likelihood)
    new: NDArray[np.generic] = points.take(raw.runs.new_data())
    rng = np.random.default_rng(posterior.seed)
    pit, khats = diagnostics.loo_pit(
        raw.log_ratio, points.take(values), points.observed, new, rng=rng
    )
    # Of an event one element that is known: a band is for values that don't hang together.
    each = pit.reshape(*points.shape, -1)
    chance = np.where(np.isnan(each), -1.0, rng.uniform(size=each.shape))
    pit = np.asarray(np.take_along_axis(each, chance.argmax(-1)[..., None], -1)[..., 0])
    threshold = diagnostics.khat_threshold(max(len(raw.log_ratio), 2))
    high = int((~(khats < threshold)).sum())
    notes = []
    if high:
        notes.append(
            f"k-hat is {threshold:.2f} or more at {high:,} of {math.prod(points.shape):,} points: "
            f"their LOO-PIT values can't be trusted. {more('leave-one-out')}"
        )
    return pit, notes
