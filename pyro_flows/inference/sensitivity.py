# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Whether a posterior hangs on its prior: power-scaling of prior and likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_flows import diagnostics
from pyro_flows.errors import ModelError, OptionError
from pyro_flows.guides import structure
from pyro_flows.inference.export import to_numpy
from pyro_flows.inference.per_draw import Values, log_likelihood, log_prior
from pyro_flows.inference.randomness import seeded
from pyro_flows.inference.raw_draws import Array, RawDraws, check_log_likelihood, check_unscaled

if TYPE_CHECKING:
    from pyro_flows.inference.posterior import Posterior


def sensitivity(
    posterior: Posterior,
    *,
    prior: str | Sequence[str] | None = None,
    likelihood: str | Sequence[str] | None = None,
    draws: int = 4000,
    threshold: float = 0.05,
) -> Any:
    """How far each latent moves when the prior, or the likelihood, counts a little more or less.

    Raw draws of the guide are weighted by p / q times a power of the component near 1; nothing is
    fitted again. Factors (``pyro.factor``) stay as they are.

    Args:
        posterior: of ``FlowVI.run`` or ``assess``, with data.
        prior: latent sites whose priors are scaled together. By default those that depend on no
            other latent: in a hierarchy the priors of the top, since what is below is part of the
            model (Kallioinen et al. 2024); all, where Pyro can't tell what depends on what.
        likelihood: observed sites whose densities are scaled together; by default all.
        draws: number of draws of the guide, 25 or more. More make less noise: see the column.
        threshold: the sensitivity from which a diagnosis is given.

    Returns:
        A pandas DataFrame: a row for each latent element, columns "prior" and "likelihood" (the
        sensitivities), "noise" (what chance makes of them), "khat" (of the scaled weights) and
        "diagnosis"; see ``diagnostics.power_scale_sensitivity``.

    Raises:
        ModelError: nothing is observed, or prior and likelihood can't be told apart (enumerated
            discrete sites, a subsampled plate, a scaled site).
        OptionError: a site that isn't there.

    Cost: one run of the model for each draw, and two milliseconds for each element.

    Example:
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> posterior = FlowVI(model, progress=False).run(torch.tensor([6.0, 7.0]))
        >>> sensitivity(posterior).loc["mean", "diagnosis"]
        'potential prior-data conflict'
    """
    with seeded(posterior.seed), posterior.under_model_state():
        raw = RawDraws.of(posterior, draws, caller="sensitivity")
        check_log_likelihood(raw, posterior, caller="sensitivity")
        trace = raw.runs.trace
        latent = structure.latent_sites(trace)
        observed = structure.observed_sites(trace)
        if not observed:
            raise ModelError(
                "sensitivity expected a model with data, but no site is observed. Pass the data "
                "that obs= takes to FlowVI.run."
            )
        if prior is None:
            levels = structure.site_levels(
                posterior.log_joint.model, posterior.args, posterior.kwargs, list(latent)
            )
            prior = [name for name, level in levels.items() if level == 0]
        priors = _named(prior, list(latent), "latent")
        likelihoods = _named(
            list(observed) if likelihood is None else likelihood, list(observed), "observed"
        )
        for name, site in (latent | observed).items():
            if name in priors or name in likelihoods:
                check_unscaled(name, site, caller="sensitivity")
        log_priors, log_likelihoods = raw.runs.map(log_prior, log_likelihood)
    return diagnostics.power_scale_sensitivity(
        {name: to_numpy(value) for name, value in raw.runs.latent.items()},
        _total(log_priors, priors),
        _total(log_likelihoods, likelihoods),
        log_ratio=raw.log_ratio,
        threshold=threshold,
    )


def _named(given: str | Sequence[str], there: list[str], kind: str) -> list[str]:
    names = [given] if isinstance(given, str) else list(given)
    unknown = [name for name in names if name not in there]
    if unknown or not names:
        raise OptionError(
            f"sensitivity expected {kind} sites among {there}, but got {unknown or names}. Name "
            "one or more of these."
        )
    return names


def _total(values: Values, names: list[str]) -> Array:
    """The sum over sites and elements, per draw."""
    parts = (to_numpy(values[name]).astype(np.float64) for name in names)
    return np.sum([part.reshape(len(part), -1).sum(1) for part in parts], axis=0)
