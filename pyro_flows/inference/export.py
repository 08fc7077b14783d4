# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Draws of a model's latents as ArviZ groups: what it says about each, with plates as dims."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyro
import torch
from numpy.typing import NDArray
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_flows import diagnostics
from pyro_flows._version import __version__
from pyro_flows.diagnostics.anchors import more
from pyro_flows.errors import OptionError
from pyro_flows.guides import structure
from pyro_flows.inference import per_draw
from pyro_flows.inference.constants import constants, dims_of_constants
from pyro_flows.inference.per_draw import Model, PerDraw, Values

if TYPE_CHECKING:
    from pyro_flows.inference.posterior import Posterior

Group = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Wanted:
    """What goes into the result besides the draws; see :meth:`Posterior.to_arviz`."""

    predictive: bool = True
    prior: int = 500
    predictions: tuple[Any, ...] | Mapping[str, Any] | None = None
    coords: Mapping[str, Sequence[Any]] | None = None
    dims: Mapping[str, Sequence[str | None]] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.predictions, (type(None), tuple, list, Mapping)):
            raise OptionError(
                "Expected predictions= as a tuple of the model's arguments, or a dict by name, "
                f"but got {type(self.predictions).__name__}. Put a single one in a tuple: (x,)."
            )
        if not isinstance(self.prior, int) or self.prior < 0:
            raise OptionError(
                f"Expected prior= as a number of draws, but got {self.prior!r}. 0 is for none."
            )

    @property
    def new_arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments that predictions are made for."""
        if isinstance(self.predictions, Mapping):
            return (), dict(self.predictions)
        return tuple(self.predictions or ()), {}


def to_arviz(posterior: Posterior, draws: int, wanted: Wanted) -> Any:
    """See :meth:`Posterior.to_arviz`."""
    asked = "Posterior.to_arviz expected draws"
    pool, weights, index = posterior._delivered(draws, asked=asked)
    log_p = pool.log_p[index][None]
    stats = {
        "log_p": log_p,
        "log_q": pool.log_q[index][None],
        "log_weight": weights.log_weights[index][None],
        "lp": log_p,
    }
    extra = {
        "unconstrained_posterior": with_chains(posterior._unconstrained(pool.z[index]), 1),
        "training": {f"history_{key}": value for key, value in posterior.report.history.items()},
    }
    if posterior.corrected:
        raw = slice(0, draws)
        extra["guide_draws"] = {
            **with_chains(posterior._constrained(pool.z[raw]), 1),
            "log_weight": weights.log_weights[raw][None],
        }
    return export(
        posterior.log_joint.model,
        posterior.args,
        posterior.kwargs,
        posterior._constrained(pool.z[index]),
        wanted,
        stats=stats,
        extra=extra,
        attrs=_attributes(posterior),
        stochastic=posterior.log_joint.stochastic,
    )


def export(
    model: Model,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    values: Values,
    wanted: Wanted,
    *,
    chains: int = 1,
    stats: Group | None = None,
    extra: Mapping[str, Group] | None = None,
    attrs: Mapping[str, Any],
    stochastic: bool = False,
) -> Any:
    """Draws of a model's latents, and what the model says about them, for ArviZ.

    Args:
        model: the Pyro model.
        args: its arguments.
        kwargs: the same, by name.
        values: draws ``(chains * S, *shape)`` by site, a chain after the other.
        wanted: which groups.
        chains: number of chains.
        stats: for the group sample_stats, ``(chains, S)``; "lp" is added if it isn't there.
        extra: further groups.
        attrs: attributes of the whole.
        stochastic: whether the log joint draws random numbers of its own.

    Returns:
        ``arviz.InferenceData`` or ``xarray.DataTree``, whichever the installed ArviZ uses.
    """
    runs = PerDraw(model, args, kwargs, values)
    trace, attrs = runs.trace, dict(attrs)
    observed = structure.observed_sites(trace)
    why = per_draw.why_no_log_likelihood(trace, stochastic=stochastic)
    readers = [per_draw.deterministic, per_draw.log_prior]
    readers += [] if why else [per_draw.log_likelihood, per_draw.log_joint]
    derived, log_prior, *likelihood = runs.map(*readers)
    if why and observed:
        attrs["log_likelihood_left_out"] = f"{why} {more('log-likelihood-left-out')}"
    unsettled = runs.unsettled() if why else set()
    if unsettled:
        attrs["deterministic_left_out"] = ", ".join(sorted(unsettled))
        derived = {name: value for name, value in derived.items() if name not in unsettled}
    groups: dict[str, Group] = {
        "posterior": with_chains({**runs.latent, **derived}, chains),
        "sample_stats": dict(stats or {}),
        "log_likelihood": with_chains(likelihood[0], chains) if likelihood else {},
        "log_prior": {} if _any_enumerated(trace) else with_chains(log_prior, chains),
        "observed_data": {
            name: to_numpy(observed_data(site))
            for name, site in observed.items()
            if isinstance(site["value"], Tensor)
        },
        "constant_data": constants(model, args, kwargs, trace),
    }
    if likelihood and "lp" not in groups["sample_stats"]:
        groups["sample_stats"]["lp"] = with_chains(likelihood[1], chains)["lp"]
    dims: dict[str, Sequence[str | None]] = {
        **dims_of_constants(groups["constant_data"], trace),
        **dims_of(trace),
    }
    coords = _coords(trace)
    shared = runs.shared_discrete() if wanted.predictive or wanted.predictions is not None else {}
    if wanted.predictive and observed:
        new = PerDraw(model, args, kwargs, {**values, **shared}).new_data()
        groups["posterior_predictive"] = with_chains(
            {name: value for name, value in new.items() if name in observed}, chains
        )
    if wanted.prior:
        groups |= _prior(runs, wanted.prior, attrs)
    if wanted.predictions is not None:
        new_args, new_kwargs = wanted.new_arguments
        runs = PerDraw(model, new_args, new_kwargs, {**values, **shared})
        groups["predictions"] = with_chains({**shared, **runs.new_data()}, chains)
        new_constants = constants(model, new_args, new_kwargs, runs.trace)
        groups["predictions_constant_data"] = new_constants
        dims = {**dims_of_constants(new_constants, runs.trace), **dims_of(runs.trace), **dims}
    return diagnostics.to_container(
        {**groups, **(extra or {})},
        dims={**dims, **(wanted.dims or {})},
        coords={**coords, **(wanted.coords or {})},
        attrs={**attrs, **_versions()},
    )


def with_chains(values: Values, chains: int) -> Group:
    """Draws ``(chains * S, *shape)`` as arrays ``(chains, S, *shape)``."""
    arrays = {name: to_numpy(value) for name, value in values.items()}
    return {name: a.reshape(chains, len(a) // chains, *a.shape[1:]) for name, a in arrays.items()}


def to_numpy(value: Tensor) -> NDArray[Any]:
    """A tensor of any device and type as an array; numpy has no bfloat16."""
    value = value.detach().cpu()
    return value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()


def _prior(runs: PerDraw, n: int, attrs: dict[str, Any]) -> dict[str, Group]:
    """Groups prior and prior_predictive; or none, and an attribute that says why."""
    try:
        drawn = per_draw.prior_draws(runs.model, n, runs.args, runs.kwargs, at_once=runs.at_once)
    except NotImplementedError:
        attrs["prior_left_out"] = "The model has a flat prior, which can't be drawn from."
        return {}
    except Exception as error:  # noqa: BLE001 (any code, at values that it may not be made for)
        attrs["prior_left_out"] = f"The model can't be run at draws of its prior: {error}"
        return {}
    observed = structure.observed_sites(runs.trace)
    return {
        "prior": with_chains({k: v for k, v in drawn.items() if k not in observed}, 1),
        "prior_predictive": with_chains({k: v for k, v in drawn.items() if k in observed}, 1),
    }


def _any_enumerated(trace: Any) -> bool:
    """Whether a prior of the other sites depends on a value that a run draws at random."""
    sites = (site for site in trace.nodes.values() if site["type"] == "sample")
    return any(structure.is_enumerated(site) for site in sites)


def observed_data(site: Any) -> Tensor:
    """What was observed, in the shape that is scored, NaN where it is masked out."""
    value: Tensor = site["value"].detach().expand(structure.scored_shape(site))
    mask = structure.site_mask(site)
    if mask is None or bool(mask.all()):
        return value
    event = site["fn"].event_dim
    if event and mask.dim() < value.dim():  # over the batch only
        mask = mask.reshape(*mask.shape, *(1,) * event)
    value, mask = torch.broadcast_tensors(value, mask)
    if not value.is_floating_point():
        value = value.to(torch.get_default_dtype())
    return torch.where(mask, value, torch.full_like(value, torch.nan))


def dims_of(trace: Any) -> dict[str, list[str]]:
    """Names of the axes of every site: its plates', then ``site_dim_i`` for the event."""
    result = {}
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site_is_subsample(site):
            continue
        if not isinstance(site["value"], Tensor):
            continue
        shape, event = site["value"].shape, site["fn"].event_dim
        if not site["infer"].get("_deterministic"):
            shape = structure.scored_shape(site)
        elif event == len(shape):  # as Pyro has it, unless told otherwise
            event = 0
        total = len(shape)
        names = [f"{name}_dim_{i}" for i in range(total)]
        for frame in site["cond_indep_stack"]:
            position = total - event + frame.dim if frame.vectorized else -1
            if 0 <= position < total and shape[position] == frame.size:
                names[position] = frame.name
        given = site["infer"].get("event_dims")
        if given and len(given) == event:
            names[total - event :] = list(given)
        result[name] = names
    return result


def _coords(trace: Any) -> dict[str, list[int]]:
    """A plate's elements, numbered."""
    return {
        frame.name: list(range(int(frame.size)))
        for site in trace.nodes.values()
        if site["type"] == "sample" and not site_is_subsample(site)
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    }


def _versions() -> dict[str, Any]:
    return {
        "inference_library": "pyro_flows",
        "inference_library_version": __version__,
        "pyro_version": pyro.__version__,
        "torch_version": str(torch.__version__),
    }


def _attributes(posterior: Posterior) -> dict[str, Any]:
    weights = posterior.weights
    return {
        "verdict": posterior.verdict.status,
        "reasons": json.dumps(posterior.verdict.reasons),
        "elbo": weights.elbo,
        "elbo_se": weights.elbo_se,
        "log_evidence": weights.log_evidence,
        "log_evidence_se": weights.log_evidence_se,
        "khat": weights.khat,
        "khat_draws": weights.n,
        "kish_ess": weights.kish_ess,
        "draws_corrected": int(posterior.corrected),
        "stop_reason": posterior.report.stop_reason,
        "steps": posterior.report.steps,
        "gradients": int(posterior.cost["gradients"]),
        "seconds": float(posterior.cost["seconds"]),
        "seed": posterior.seed,
        "log_joint": posterior.log_joint.mode,
        "guide": type(posterior.guide).__name__,
    }
