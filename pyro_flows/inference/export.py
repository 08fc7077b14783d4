# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A posterior as ArviZ groups: what the model says about each draw, with plates as dims."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyro
import torch
from numpy.typing import NDArray
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_flows import diagnostics
from pyro_flows._version import __version__
from pyro_flows.guides import structure
from pyro_flows.guides.enumeration import Substitute

if TYPE_CHECKING:
    from pyro_flows.inference.posterior import Posterior

Values = dict[str, Tensor]
CHUNK = 500


def to_arviz(posterior: Posterior, draws: int, *, predictive: bool) -> Any:
    """See :meth:`Posterior.to_arviz`."""
    pool, weights, index = posterior._delivered(draws)
    values = posterior._constrained(pool.z[index])
    trace = structure.trace_model(posterior.guide.model, *posterior.args, **posterior.kwargs)
    observed = structure.observed_sites(trace)
    left_out = _why_no_log_likelihood(posterior, trace) if observed else ""
    log_likelihood = {} if left_out else run_per_draw(posterior, values, _log_likelihood)
    groups: dict[str, dict[str, NDArray[Any]]] = {
        "posterior": _with_chain({**values, **run_per_draw(posterior, values, _deterministic)}),
        "sample_stats": {
            "log_p": pool.log_p[index][None],
            "log_q": pool.log_q[index][None],
            "log_weight": weights.log_weights[index][None],
            "lp": pool.log_p[index][None],
        },
        "log_likelihood": _with_chain(log_likelihood),
        "observed_data": {
            name: _data(site).cpu().numpy()
            for name, site in observed.items()
            if isinstance(site["value"], Tensor)
        },
        "training": {f"history_{key}": value for key, value in posterior.report.history.items()},
    }
    if posterior.corrected:
        raw = slice(0, draws)
        groups["guide_draws"] = {
            **_with_chain(posterior._constrained(pool.z[raw])),
            "log_weight": weights.log_weights[raw][None],
        }
    if predictive and observed:
        groups["posterior_predictive"] = _with_chain(run_per_draw(posterior, values, _predictive))
    return diagnostics.to_container(
        groups,
        dims=_dims(trace),
        coords=_coords(trace),
        attrs={
            **_attributes(posterior),
            **({"log_likelihood_left_out": left_out} if left_out else {}),
        },
    )


def run_per_draw(posterior: Posterior, values: Values, read: Any) -> Values:
    """Run the model once per draw, vectorised where it can be, and read its trace.

    Args:
        posterior: gives the model and its arguments.
        values: latent values ``(S, *shape)``.
        read: a function of a model and values of one draw that returns tensors by name.

    Returns:
        What ``read`` returned, stacked along the first axis.
    """
    joint = posterior.log_joint

    def one(row: Values) -> Values:
        return dict(read(joint, row))

    size = len(next(iter(values.values())))
    parts: list[Values] = []
    with pyro.validation_enabled(False), torch.no_grad():
        try:
            for start in range(0, size, CHUNK):
                chunk = {k: v[start : start + CHUNK] for k, v in values.items()}
                parts.append(torch.vmap(one, randomness="different")(chunk))
            return {k: torch.cat([part[k] for part in parts]) for k in parts[0]} if parts else {}
        except (RuntimeError, NotImplementedError, ValueError, TypeError):
            # Some distributions and some models can't be vectorised: one draw after the other.
            rows = [one({k: v[i] for k, v in values.items()}) for i in range(size)]
            return {k: torch.stack([row[k] for row in rows]) for k in rows[0]}


def _trace(joint: Any, row: Values, model: Any = None) -> Any:
    with poutine.block(), Substitute(row):
        return poutine.trace(model or joint.model).get_trace(*joint.args, **joint.kwargs)


def _log_likelihood(joint: Any, row: Values) -> Values:
    trace = _trace(joint, row)
    result = {}
    for name, site in structure.observed_sites(trace).items():
        # A mask of the distribution's own is in its log_prob already.
        result[name] = scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
    return result


def _why_no_log_likelihood(posterior: Posterior, trace: Any) -> str:
    """A sentence if one run of the model doesn't give the likelihood of each point, else ""."""
    sites = (site for site in trace.nodes.values() if site["type"] == "sample")
    if any(structure.is_enumerated(site) for site in sites):
        return (
            "The model has enumerated discrete sites, which are summed out of the posterior: "
            "a run of the model draws them from their prior and doesn't sum over them."
        )
    if posterior.log_joint.stochastic or structure.subsampled_plates(trace):
        return (
            "The log joint is random (a subsampled plate, or random numbers of the model's own), "
            "so each draw would be scored on other data or noise."
        )
    return ""


def _data(site: Any) -> Tensor:
    """What was observed, NaN where it is masked out."""
    value: Tensor = site["value"].detach()
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


def _deterministic(joint: Any, row: Values) -> Values:
    return {
        name: site["value"] * 1
        for name, site in _trace(joint, row).nodes.items()
        if site["type"] == "sample" and site["infer"].get("_deterministic")
    }


def _predictive(joint: Any, row: Values) -> Values:
    observed = structure.observed_sites(_trace(joint, row))
    trace = _trace(joint, row, poutine.uncondition(joint.model))
    return {name: trace.nodes[name]["value"] * 1 for name in observed if name in trace.nodes}


def _with_chain(values: Values) -> dict[str, NDArray[Any]]:
    return {name: value.detach().cpu().numpy()[None] for name, value in values.items()}


def _dims(trace: Any) -> dict[str, list[str]]:
    """Names of the axes of every site: its plates', then ``site_dim_i`` for the event."""
    result = {}
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site_is_subsample(site):
            continue
        if not isinstance(site["value"], Tensor):
            continue
        total, event = site["value"].dim(), site["fn"].event_dim
        if site["infer"].get("_deterministic"):
            event = 0
        names = [f"{name}_dim_{i}" for i in range(total)]
        for frame in site["cond_indep_stack"]:
            position = total - event + frame.dim if frame.vectorized else -1
            if 0 <= position < total and site["value"].shape[position] == frame.size:
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


def _attributes(posterior: Posterior) -> dict[str, Any]:
    weights = posterior.weights
    return {
        "inference_library": "pyro_flows",
        "inference_library_version": __version__,
        "pyro_version": pyro.__version__,
        "torch_version": str(torch.__version__),
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
