# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""How well a fitted model predicts data it hasn't seen, and which of several does best."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_flows import diagnostics
from pyro_flows.diagnostics import LOO
from pyro_flows.errors import OptionError
from pyro_flows.inference.per_draw import PerDraw, log_likelihood
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


def loo(
    posterior: Posterior, site: str | Sequence[str] | None = None, *, draws: int = 4000
) -> LOO:
    """Leave-one-out cross-validation of a fit, corrected for draws that are the guide's.

    A point is an element of the observed site's batch, event axes summed; what is masked out is
    left out. Raw draws of the guide are weighted by p / (q p(y_i | draw)), smoothed once for each
    point, so that the guide need not be right as long as each point's k-hat is low.

    Args:
        posterior: of ``FlowVI.run`` or ``assess``, with data.
        site: the observed site, needed where there are several; or a list of sites, whose points
            are then taken together.
        draws: number of draws of the guide, 25 or more.

    Returns:
        The estimate, by point and in all, with warnings; print it.

    Raises:
        ModelError: nothing is observed, or points have no likelihood of their own (enumerated
            discrete sites, a subsampled plate, a scaled likelihood).
        OptionError: there are several observed sites and none is named, or an unknown one is.
        GuideError: fewer draws, or none inside the support.

    Cost: one run of the model for each draw, and somewhat under a millisecond for each point.

    Example:
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> posterior = FlowVI(model, progress=False).run(torch.tensor([1.0, 2.0, 3.0, 2.5]))
        >>> found = loo(posterior)
        >>> found.elpd_i.shape, found.warnings
        ((4,), ())
    """
    with seeded(posterior.seed), posterior.under_model_state():
        raw = RawDraws.of(posterior, draws, caller="loo")
        check_log_likelihood(raw, posterior, caller="loo")
        points = Points.of(raw.runs.trace, site, caller="loo")
        for name in points.sites:
            check_unscaled(name, raw.runs.trace.nodes[name], caller="loo")
        log_ratio, values = _with_outside(raw, points)
    result = diagnostics.psis_loo(
        log_ratio, values, observed=points.observed, dims=points.dims, coords=points.coords
    )
    more = []
    if raw.n_invalid:
        more.append(f"{raw.n_invalid} draws of NaN or infinite density were left out.")
    if posterior.verdict.status == "not reliable":
        more.append("The verdict on this fit is 'not reliable': print(posterior) says why.")
    return dataclasses.replace(result, warnings=(*result.warnings, *more))


def compare(
    models: Mapping[str, Posterior | LOO],
    site: str | Sequence[str] | None = None,
    *,
    draws: int = 4000,
) -> Any:
    """Rank fits of several models to the same data by leave-one-out cross-validation.

    Args:
        models: name to a fit, or to what ``loo`` returned of it.
        site: as for ``loo``.
        draws: as for ``loo``.

    Returns:
        A pandas DataFrame, the best model first, with the columns "rank" (0 is the best), "elpd",
        "p_loo", "elpd_diff" (to the best one, never positive), "dse" (its standard error), "se",
        "weight" (of the mixture that predicts best) and "warning" (look at ``loo`` of that model).

    Raises:
        ValueError: fewer than two models, or models of other data.
        ModelError: as ``loo``.
        OptionError: as ``loo``; or the models have no names.

    Cost: that of ``loo`` for each fit.

    Example:
        >>> def model(y, sd):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, sd), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0, 2.5])
        >>> fits = {f"sd {sd}": FlowVI(model, progress=False).run(y, sd) for sd in (1.0, 9.0)}
        >>> list(compare(fits).index)
        ['sd 1.0', 'sd 9.0']
    """
    if not isinstance(models, Mapping):
        raise OptionError(
            f"compare expected a dict of names to fits, but got {type(models).__name__}. Say "
            "compare({'one': posterior, 'two': other})."
        )
    return diagnostics.compare_loo(
        {
            name: fit if isinstance(fit, LOO) else loo(fit, site, draws=draws)
            for name, fit in models.items()
        }
    )


def _with_outside(raw: RawDraws, points: Points) -> tuple[Array, Array]:
    """Log ratios (S,) and log likelihoods (S, *shape), draws outside the support included.

    Those have no weight; but which points exclude them tells which can't be left out.
    """
    (inside,) = raw.runs.map(log_likelihood)
    ratio, values = raw.log_ratio, points.take(inside).astype(np.float64)
    if raw.outside:
        runs = raw.runs
        try:
            other = PerDraw(runs.model, runs.args, runs.kwargs, raw.outside)
            (outside,) = other.map(log_likelihood)
        except (RuntimeError, ValueError, ArithmeticError):  # nothing there that can be run
            return ratio, values
        ratio = np.r_[ratio, np.full(other.size, -np.inf)]
        values = np.concatenate([values, points.take(outside).astype(np.float64)])
    return ratio, values
