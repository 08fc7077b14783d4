# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What a Pyro model is made of, as one run of it shows; and what a flow guide must refuse."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.inspect import get_dependencies
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_flows.errors import (
    DataError,
    DiscreteLatentError,
    NoLatentsError,
    SubsampledLatentError,
)

Site = Any  # a message of Pyro's, which it types as a dict with optional entries


@contextmanager
def random_state_kept() -> Iterator[None]:
    """Put torch's random state back at the end, also that of accelerators in use."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        yield


@torch.no_grad()
def trace_model(model: Callable[..., Any], *args: Any, **kwargs: Any) -> Trace:
    """Run the model once, unseen by handlers outside, and return its trace."""
    return poutine.block(poutine.trace(model).get_trace)(*args, **kwargs)


def is_enumerated(site: Site) -> bool:
    """Whether a discrete site is marked for enumeration, to be summed out exactly."""
    return site["infer"].get("enumerate") is not None and not site["is_observed"]


def is_latent(site: Site) -> bool:
    """Whether a guide must give this trace node a value."""
    return (
        site["type"] == "sample"
        and not site["is_observed"]
        and not site_is_subsample(site)
        and not is_enumerated(site)
    )


def latent_sites(trace: Trace) -> dict[str, Site]:
    """Latent sites in order of execution."""
    return {name: site for name, site in trace.nodes.items() if is_latent(site)}


def observed_sites(trace: Trace) -> dict[str, Site]:
    """Sites that hold data: observed, and neither a factor nor a deterministic value."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and site["is_observed"] and holds_data(site)
    }


def holds_data(site: Site) -> bool:
    """Whether an observed site is neither a factor nor a deterministic value."""
    return not (site["infer"] or {}).get("_deterministic") and (
        type(site["fn"]).__name__ not in ("Unit", "Delta", "MaskedDelta")
    )


def scored_shape(site: Site) -> torch.Size:
    """The shape of what a site's log density is a sum over, event axes included.

    Of data that are broadcast against their distribution or plate it is neither's own.
    """
    fn, shape = site["fn"], site["value"].shape
    batch = shape[: len(shape) - fn.event_dim]
    return torch.Size(torch.broadcast_shapes(fn.batch_shape, batch)) + shape[len(batch) :]


def subsampled_plates(trace: Trace) -> dict[str, tuple[int, int]]:
    """Plates that see a part of their data: name to (size in this run, full size)."""
    return {
        frame.name: (int(frame.size), int(frame.full_size))
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
        if frame.full_size is not None and frame.full_size != frame.size
    }


def site_levels(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], names: list[str]
) -> dict[str, int]:
    """Depth of each latent site in the model's hierarchy.

    A site whose prior depends on no other latent is at level 0, any other one below its deepest
    parent: in eight schools ``mu`` and ``tau`` are at level 0, ``theta`` at level 1.

    Returns:
        Site name to level; all 0 where Pyro can't trace the model's dependencies.
    """
    try:
        with random_state_kept(), torch.no_grad():
            every: Any = poutine.block(get_dependencies)(model, args, kwargs)
            found = every["prior_dependencies"]
    except Exception:  # noqa: BLE001 (provenance tracking fails on some operations; it's a hint)
        return dict.fromkeys(names, 0)
    levels: dict[str, int] = {}
    for name in names:  # in order of execution, so that parents come first
        parents = [levels[p] for p in found.get(name, {}) if p != name and p in levels]
        levels[name] = 1 + max(parents) if parents else 0
    return levels


def check_latents(sites: dict[str, Site]) -> None:
    """Raise on latents that one flat flow can't represent.

    Raises:
        NoLatentsError: there are none.
        DiscreteLatentError: one is discrete and not enumerated.
        SubsampledLatentError: one is local to a subsampled or sequential plate.
    """
    if not sites:
        raise NoLatentsError(
            "AutoFlow expected a model with at least one continuous latent variable, but found no "
            "latent variables. Check that some pyro.sample statement has no obs=."
        )
    for name, site in sites.items():
        support = getattr(site["fn"], "support", None)
        if getattr(support, "is_discrete", False):
            raise DiscreteLatentError(
                f"The latent site '{name}' is discrete ({type(site['fn']).__name__}), and a flow "
                "is continuous. Sum it out: mark it infer={'enumerate': 'parallel'} (or wrap the "
                "model in pyro.infer.config_enumerate) and use TraceEnum_ELBO or FlowVI; or hide "
                f"it: AutoFlow(poutine.block(model, hide=['{name}'])). "
                "See https://pyro.ai/examples/enumeration.html."
            )
        for frame in site["cond_indep_stack"]:
            if not frame.vectorized:
                raise SubsampledLatentError(
                    f"The latent site '{name}' is inside the sequential plate '{frame.name}', "
                    "which AutoFlow can't pack. Write it vectorised: `with pyro.plate(...)`."
                )
            if frame.full_size is not None and frame.full_size != frame.size:
                raise SubsampledLatentError(
                    f"The latent site '{name}' is local to the plate '{frame.name}', which is "
                    f"subsampled ({frame.size} of {frame.full_size}): a flat flow would tie its "
                    "values to slots of the minibatch, not to the data. Run the plate at full "
                    f"size, or guide '{name}' apart: AutoGuideList with AutoFlow on "
                    f"poutine.block(model, hide=['{name}']) and AutoNormal(..., create_plates=...)"
                    f" on poutine.block(model, expose=['{name}'])."
                )


def check_data(trace: Trace) -> None:
    """Raise if an observed site holds NaN.

    Raises:
        DataError: naming the site and how many values are NaN.
    """
    for name, site in observed_sites(trace).items():
        value = site["value"]
        if not (isinstance(value, Tensor) and value.is_floating_point()) or _takes_gaps(site):
            continue
        # Also where a mask is False: the masked-out term's gradient is 0 * NaN, which is NaN.
        count = int(torch.isnan(value).sum())
        if count:
            raise DataError(
                f"The observed site '{name}' expected numbers, but {count} of {value.numel()} "
                "values are NaN. Drop those rows, or put any number there and give pyro.sample an "
                "obs_mask that is False there; or use dist.NanMaskedNormal, which leaves NaN out."
            )


def _takes_gaps(site: Site) -> bool:
    """Whether a site's distribution leaves out what is NaN."""
    fn = site["fn"]
    while isinstance(fn, (dist.Independent, dist.MaskedDistribution, dist.ExpandedDistribution)):
        fn = fn.base_dist
    return isinstance(fn, (dist.NanMaskedNormal, dist.NanMaskedMultivariateNormal))


def site_mask(site: Site) -> Tensor | None:
    """The mask over a site's batch (from ``poutine.mask``, ``obs_mask`` or ``.mask``), or None."""
    masks = [site.get("mask")]
    fn = site["fn"]
    while fn is not None:
        masks.append(getattr(fn, "_mask", None))
        fn = getattr(fn, "base_dist", None)
    masks = [m for m in masks if m is not None and m is not True]
    if not masks:
        return None
    value = site["value"]
    found = [torch.as_tensor(m, dtype=torch.bool, device=value.device) for m in masks]
    result = found[0]
    for mask in found[1:]:
        result = result & mask
    return result


def widest_dtype(trace: Trace) -> torch.dtype:
    """The widest floating type among latents, observations and factors."""
    result: torch.dtype | None = None
    values = [site["value"] for site in latent_sites(trace).values()]
    values += [site["value"] for site in observed_sites(trace).values()]
    # A flat prior has no type of its own: in a model of one factor it is the factor that has one.
    functions: list[Any] = [site.get("fn") for site in trace.nodes.values()]
    values += [fn.log_factor for fn in functions if type(fn).__name__ == "Unit"]
    for value in values:
        if isinstance(value, Tensor) and value.is_floating_point():
            result = value.dtype if result is None else torch.promote_types(result, value.dtype)
    return result or torch.get_default_dtype()


def main_device(trace: Trace) -> torch.device:
    """The observations' device, else the latents'."""
    sites = [*observed_sites(trace).values(), *latent_sites(trace).values()]
    values = [s["value"] for s in sites if isinstance(s["value"], Tensor)]
    # A number wrapped by a default is on the CPU; data on an accelerator decide.
    for value in values:
        if value.device.type != "cpu":
            return value.device
    return values[0].device if values else torch.device("cpu")


def signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What of the arguments can change a model's shapes."""

    def describe(value: Any) -> Any:
        if isinstance(value, Tensor):
            return ("tensor", tuple(value.shape))
        if isinstance(value, (int, float, str, bool, type(None))):
            return value
        if isinstance(value, dict):
            return tuple((k, describe(v)) for k, v in value.items())
        if isinstance(value, (list, tuple)):
            return tuple(describe(v) for v in value)
        return (type(value).__name__, getattr(value, "shape", None))

    return tuple(describe(a) for a in args), describe(kwargs)
