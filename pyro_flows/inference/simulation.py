# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""True values from a model's prior and data from its likelihood, as a fit would see them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils import _pytree as pytree

from pyro_flows.errors import ModelError
from pyro_flows.guides import named_sites, structure
from pyro_flows.guides.enumeration import Substitute
from pyro_flows.guides.unpack import aligned
from pyro_flows.inference.flatness import flat_priors
from pyro_flows.inference.per_draw import as_many_as_scored

if TYPE_CHECKING:
    from pyro_flows.inference.posterior import Posterior

Values = dict[str, Tensor]

HELD = (
    "The data are used otherwise than by obs=, too (as lagged values, say). There they were held "
    "at what was observed."
)


class Simulator:
    """Runs a posterior's model forwards: latents from the prior, data from the likelihood.

    Args:
        posterior: gives model, arguments and guide. Values of latent elements that the model masks
            out are the guide's.

    Attributes:
        active: by latent site, which elements are inferred, ``(*shape)``.
        notes: what the simulated data don't follow, sentences.

    Raises:
        ModelError: the model can't be run forwards, or what it then draws isn't what it scores:
            nothing observed, ``pyro.factor``, a flat prior, a subsampled plate, a scale.
    """

    def __init__(self, posterior: Posterior) -> None:
        self.model = posterior.log_joint.model
        self.args, self.kwargs = posterior.args, posterior.kwargs
        with structure.random_state_kept():
            trace = posterior.log_joint.run_model()
        _check(posterior, trace)
        self.data = {n: site["value"] for n, site in structure.observed_sites(trace).items()}
        self.like = next(posterior.guide.parameters()).detach()
        self.sites = dict(named_sites(posterior.guide))
        self.active = {name: _active(site) for name, site in self.sites.items()}
        with structure.random_state_kept():
            try:
                self.draw()
            except NotImplementedError as error:
                raise ModelError(
                    f"calibrate expected a model that can be run forwards, but a distribution in "
                    f"it can't be sampled ({error}). Give it a sample method."
                ) from error
            except Exception:  # noqa: BLE001 (one draw may fail, as others may)
                pass
            self.notes = [HELD] if self._data_used_otherwise() else []

    @torch.no_grad()
    def draw(self) -> tuple[Values, Values]:
        """One set of true values of the guide's sites, and one of data."""
        with poutine.block(), _Forwards(self):
            trace = poutine.trace(self.model).get_trace(*self.args, **self.kwargs)
        values: Any = {
            name: site["value"] for name, site in trace.nodes.items() if "value" in site
        }
        return {n: values[n] for n in self.sites}, {n: values[n] for n in self.data}

    def _data_used_otherwise(self) -> bool:
        """Whether data that are an argument matter where their site's value is given anyway."""
        data = [value for value in self.data.values() if isinstance(value, Tensor)]
        others = pytree.tree_map(lambda x: _with_other_data(x, data), (self.args, self.kwargs))
        before = self._log_prob(self.args, self.kwargs)
        return before is not None and self._log_prob(*others) != before

    @torch.no_grad()
    def _log_prob(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> float | None:
        """Log density of the data at the guide's first values; None if it can't be computed."""
        model = poutine.condition(self.model, data=self.data)
        first = {name: site["value"] for name, site in self.sites.items()}
        with poutine.block(), Substitute(first), structure.random_state_kept():
            torch.manual_seed(0)
            try:
                trace = poutine.trace(model).get_trace(*args, **kwargs)
                return float(trace.log_prob_sum())
            except Exception:  # noqa: BLE001 (other values than the model was made for)
                return None


class _Forwards(Messenger):
    """Draw data anew, and latents in the guide's type; leave what is masked out or missing."""

    def __init__(self, simulator: Simulator) -> None:
        super().__init__()
        self.simulator = simulator

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.simulator.data:
            msg["value"] = self.simulator.data[msg["name"]]
            as_many_as_scored(msg)
            msg["value"], msg["is_observed"], msg["done"] = None, False, False

    def _pyro_post_sample(self, msg: Any) -> None:
        name, value, ours = msg["name"], msg["value"], self.simulator
        if name in ours.sites:
            value = value.to(ours.like)
            fixed = ours.sites[name]["value"].to(value)
            msg["value"] = torch.where(ours.active[name].to(value.device), value, fixed)
        elif name in ours.data and isinstance(ours.data[name], Tensor):
            data = ours.data[name]
            # What a distribution takes for missing (NaN) is missing here, too.
            msg["value"] = torch.where(torch.isnan(data), data, value.to(data))


def _with_other_data(argument: Any, data: list[Tensor]) -> Any:
    """An argument with other numbers where it holds data, themselves or as the whole of a view."""
    if not isinstance(argument, Tensor):
        return argument
    for value in data:
        here, there = argument.untyped_storage(), value.untyped_storage()
        if here.data_ptr() != there.data_ptr() or argument.dtype != value.dtype or not here.size():
            continue
        copied = argument.new_empty(0).set_(here.clone())
        place = copied.as_strided(value.shape, value.stride(), value.storage_offset())
        # Floats keep their sign, whole numbers their range.
        place.copy_(value * 1.125 if value.is_floating_point() else value.roll(1))
        argument = copied.as_strided(argument.shape, argument.stride(), argument.storage_offset())
    return argument


def _active(site: Any) -> Tensor:
    """Which elements of a site aren't masked out, in the shape of its value."""
    value, mask = site["value"], structure.site_mask(site)
    if mask is None:
        return torch.ones(value.shape, dtype=torch.bool, device="cpu")
    return aligned(mask.cpu(), site, value.shape).reshape(value.shape)


def _check(posterior: Posterior, trace: Any) -> None:
    """Raise ModelError where what is drawn forwards isn't what the log joint scores."""
    sites = {n: s for n, s in trace.nodes.items() if s["type"] == "sample"}
    observed, plates = structure.observed_sites(trace), structure.subsampled_plates(trace)
    factors = [
        f"'{name}'"
        for name, site in sites.items()
        if site["is_observed"]
        and name not in observed
        and not (site["infer"] or {}).get("_deterministic")
    ]
    flat = [f"'{name}'" for name in flat_priors(posterior.log_joint)]
    scaled = [f"'{name}'" for name, site in sites.items() if _is_scaled(site["scale"])]
    what = ""
    if flat:
        what = f"the flat prior of {', '.join(flat)} can't be drawn from. Give it a proper one"
    elif factors:
        what = (
            f"{', '.join(factors)} adds to the log density without saying how data come about "
            "(pyro.factor). Write it as pyro.sample(..., obs=data)"
        )
    elif posterior.log_joint.stochastic or plates:
        what = (
            "its log joint is random (a subsampled plate, or random numbers of its own). Fit it "
            "to all data"
        )
    elif scaled:
        what = f"{', '.join(scaled)} is scaled (poutine.scale). Leave the scale out"
    elif not observed:
        what = "nothing is observed, so there are no data to simulate. Give a site obs="
    if what:
        raise ModelError(f"calibrate expected a model that can be run forwards, but {what}.")


def _is_scaled(scale: Any) -> bool:
    return bool((torch.as_tensor(scale, device="cpu") != 1).any())
