# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A run of Pyro's MCMC for ArviZ, whose 1.x line has no converter of its own for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyro.infer import MCMC, config_enumerate

from pyro_flows import diagnostics
from pyro_flows.errors import DataError
from pyro_flows.guides import structure
from pyro_flows.inference.export import Wanted, export, to_numpy
from pyro_flows.inference.per_draw import Model
from pyro_flows.inference.randomness import seeded


def from_mcmc(
    mcmc: MCMC,
    *,
    predictive: bool = True,
    prior: int = 500,
    predictions: tuple[Any, ...] | Mapping[str, Any] | None = None,
    coords: Mapping[str, Sequence[Any]] | None = None,
    dims: Mapping[str, Sequence[str | None]] | None = None,
    seed: int = 0,
) -> Any:
    """Chains of Pyro's ``MCMC`` for ArviZ: InferenceData on ArviZ 0.x, DataTree on 1.x.

    The groups, names of axes and attributes are those of :meth:`Posterior.to_arviz`, without what
    only a guide has: ``sample_stats`` holds ``diverging`` and ``lp``, the log joint density of the
    unconstrained latents. (Where a support hangs on another latent, Pyro's own kernel keeps to
    that of the first run; ``lp`` is the model's.) Where discrete sites are summed out, points have
    no likelihood of their own, and ``log_likelihood``, ``log_prior`` and ``lp`` are left out.

    Args:
        mcmc: after ``mcmc.run(...)``.
        predictive: also draw new data for every observed site.
        prior: number of draws from the prior; 0 for none.
        predictions: arguments of the model to predict for: a tuple, or a dict by name.
        coords: labels by dimension; else 0, 1, ...
        dims: names of a site's axes, in place of those found.
        seed: of new data and prior; the global random state is left as it was.

    Returns:
        ``arviz.InferenceData`` or ``xarray.DataTree``. Where the kernel was made of a
        ``potential_fn``, without a model, posterior and divergences only.

    Raises:
        DataError: ``mcmc`` hasn't been run.

    Cost: one run of the model per draw for the log densities, one more for each set of new data.

    Example:
        >>> from pyro.infer import MCMC, NUTS
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> mcmc = MCMC(NUTS(model), num_samples=20, warmup_steps=20, disable_progbar=True)
        >>> mcmc.run(torch.tensor([1.0, 2.0, 3.0]))
        >>> from_mcmc(mcmc)["log_likelihood"]["y"].shape
        (1, 20, 3)
    """
    if getattr(mcmc, "_samples", None) is None:
        raise DataError(
            "from_mcmc expected an MCMC that has been run, but this one has no samples. Call "
            "mcmc.run(...) with the model's arguments first."
        )
    by_chain = mcmc.get_samples(group_by_chain=True)
    chains, draws = next(iter(by_chain.values())).shape[:2]
    kernel = mcmc.kernel
    attrs = {
        "inference_method": type(kernel).__name__,
        "chains": chains,
        "warmup_steps": mcmc.warmup_steps,
        "seed": seed,
        **_acceptance(mcmc, chains),
    }
    stats = {"diverging": _diverging(mcmc, chains, draws)}
    model = getattr(kernel, "model", None)
    if model is None:
        groups = {
            "posterior": {name: to_numpy(value) for name, value in by_chain.items()},
            "sample_stats": stats,
        }
        return diagnostics.to_container(groups, dims=dims or {}, coords=coords or {}, attrs=attrs)
    flat = {name: value.flatten(0, 1) for name, value in by_chain.items()}
    args, kwargs = mcmc._args or (), mcmc._kwargs or {}
    with seeded(seed):
        return export(
            _marked(model, by_chain, args, kwargs),
            args,
            kwargs,
            flat,
            Wanted(predictive, prior, predictions, coords, dims),
            chains=chains,
            stats=stats,
            attrs=attrs,
        )


def _marked(
    model: Model, drawn: Mapping[str, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Model:
    """The model with its discrete latents marked for enumeration, which HMC does by itself."""
    latent = structure.latent_sites(structure.trace_model(model, *args, **kwargs))
    return model if latent.keys() <= drawn.keys() else config_enumerate(model)


def _per_chain(mcmc: MCMC, key: str, chains: int) -> list[Any]:
    """What a kernel says of each chain, such as where it diverged; None where it says nothing."""
    by_chain: list[Any] = mcmc._diagnostics
    found = [said.get(key) for said in by_chain if said]
    return found if len(found) == chains else [None] * chains


def _diverging(mcmc: MCMC, chains: int, draws: int) -> NDArray[np.bool_]:
    marked = np.zeros((chains, draws), dtype=bool)
    for chain, steps in enumerate(_per_chain(mcmc, "divergences", chains)):
        marked[chain, [step for step in steps or [] if 0 <= step < draws]] = True
    return marked


def _acceptance(mcmc: MCMC, chains: int) -> dict[str, Any]:
    rates = _per_chain(mcmc, "acceptance rate", chains)
    return {} if None in rates else {"acceptance_rate": np.array(rates, dtype=float)}
