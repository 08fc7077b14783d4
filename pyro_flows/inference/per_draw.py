# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A model run once for each draw: new data, log likelihoods, priors; vectorised if it can be."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import infer_discrete
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import biject_to

from pyro_flows.errors import ChangedModelError
from pyro_flows.guides import structure
from pyro_flows.guides.blanks import Blanks
from pyro_flows.guides.enumeration import Substitute, max_plate_nesting
from pyro_flows.guides.log_einsum import products_in_pyro

Model = Callable[..., Any]
Values = dict[str, Tensor]

# Draws at once: as many as keep the largest site at so many elements.
ELEMENTS = 2**21
MOST_AT_ONCE = 1000
# Runs that tell whether a value is settled by the latents.
RUNS = 20
# What torch says under vmap of its samplers, whose results are right.
TORCH_ON_ITSELF = "There is a performance drop", "An output with one or more elements was resized"


def map_draws(function: Callable[[Values], Any], values: Values, *, at_once: int) -> Any:
    """Apply a function of one draw to all of them, by ``vmap`` where it can be.

    Args:
        function: of values ``(*shape)`` by name, to tensors by name, or by name and name. It may
            draw random numbers, which differ from draw to draw.
        values: ``(S, *shape)`` by name, not empty.
        at_once: draws that are vectorised together.

    Returns:
        What ``function`` returns, stacked along a first axis.
    """

    def one_of_many(row: Values) -> Any:
        with products_in_pyro(), Blanks(next(iter(row.values()))):
            return function(row)

    size = len(next(iter(values.values())))
    rows = torch.vmap(one_of_many, randomness="different")
    with pyro.validation_enabled(False), torch.no_grad(), warnings.catch_warnings():
        for words in TORCH_ON_ITSELF:
            warnings.filterwarnings("ignore", words, UserWarning)
        try:
            starts = range(0, size, at_once)
            parts = [rows({k: v[i : i + at_once] for k, v in values.items()}) for i in starts]
            return _joined(parts, torch.cat)
        except (RuntimeError, NotImplementedError, ValueError, TypeError):
            # Some distributions and some models can't be vectorised: one draw after the other.
            each = ({k: v[i] for k, v in values.items()} for i in range(size))
            return _joined([function(row) for row in each], torch.stack)


class Unobserve(Messenger):
    """Draw anew what is observed.

    As ``poutine.uncondition`` does, which also draws deterministic sites: inside a plate these
    come out in another shape.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and structure.holds_data(msg):
            as_many_as_scored(msg)
            msg["is_observed"], msg["value"], msg["done"] = False, None, False


def as_many_as_scored(msg: Any) -> None:
    """Make a site's distribution draw as many elements as its data have, each on its own."""
    if isinstance(msg["value"], Tensor):
        shape, fn = structure.scored_shape(msg), msg["fn"]
        batch = shape[: len(shape) - fn.event_dim]
        if batch != fn.batch_shape:
            msg["fn"] = fn.expand(batch)


class _Draw(Messenger):
    """Draw from a Dirichlet or beta distribution by what ``vmap`` takes.

    torch's own way, a ``Function`` with a gradient, is none.
    """

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or msg["value"] is not None:
            return
        fn = msg["fn"]
        while isinstance(fn, (dist.Independent, dist.MaskedDistribution)):
            fn = fn.base_dist
        if isinstance(fn, dist.Dirichlet):
            msg["value"] = _dirichlet(fn)
        elif isinstance(fn, dist.Beta):
            msg["value"] = _dirichlet(fn._dirichlet)[..., 0]
        elif isinstance(fn, dist.BetaBinomial):
            share = _dirichlet(fn._beta._dirichlet)[..., 0]
            msg["value"] = dist.Binomial(fn.total_count, share).sample()


def _dirichlet(fn: Any) -> Tensor:
    concentration = fn.concentration.expand(fn.batch_shape + fn.event_shape)
    return torch._sample_dirichlet(concentration)


def _joined(parts: list[Any], join: Callable[[list[Tensor]], Tensor]) -> Any:
    if isinstance(parts[0], dict):
        return {key: _joined([part[key] for part in parts], join) for key in parts[0]}
    return join(parts)


class PerDraw:
    """A model at given arguments, to be run at draws of its latents.

    Args:
        model: a Pyro model.
        args: its arguments.
        kwargs: the same, by name.
        values: draws ``(S, *shape)`` of its latents by name. Deterministic sites among them are
            computed again.

    Attributes:
        trace: of one run, at the first draw.
        latent: the draws that the model asks for.

    Raises:
        ChangedModelError: draws of another shape than the model's site.
    """

    def __init__(
        self, model: Model, args: tuple[Any, ...], kwargs: dict[str, Any], values: Values
    ) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.size = len(next(iter(values.values())))
        first = {name: value[0] for name, value in values.items()}
        with torch.no_grad(), structure.random_state_kept():
            try:
                self.trace = self.run(first)
            except (ValueError, RuntimeError):
                self._check_shapes(self.run({}), values)
                raise
        self._check_shapes(self.trace, values)
        asked = {n: site for n, site in _sampled(self.trace).items() if not site["is_observed"]}
        self.latent = {name: value for name, value in values.items() if name in asked}
        largest = max((v.numel() for v in _tensors(self.trace)), default=1)
        self.at_once = max(1, min(MOST_AT_ONCE, ELEMENTS // max(largest, 1)))

    def _check_shapes(self, trace: Any, values: Values) -> None:
        for name, site in _sampled(trace).items():
            expected, value = tuple(site["fn"].shape()), values.get(name)
            if value is None or site["is_observed"] or tuple(value.shape[1:]) == expected:
                continue
            raise ChangedModelError(
                f"With these arguments the site '{name}' has shape {expected}, but its draws have "
                f"{tuple(value.shape[1:])}: a latent that grows with the data isn't known for "
                "other data. Pass arguments that leave its plate as it was; or leave the site out "
                "of the draws, predictive(model, draws, ...), and it is drawn from its prior."
            )

    def run(self, row: Values, model: Model | None = None) -> Any:
        """The trace of one run with latents at one draw."""
        with poutine.block(), _Draw(), Substitute(row):
            return poutine.trace(model or self.model).get_trace(*self.args, **self.kwargs)

    def map(self, *read: Callable[[Any], Values]) -> list[Values]:
        """What functions of a trace return, at every draw: one run of the model for all.

        Args:
            read: functions of a trace that return tensors by name.

        Returns:
            For each function tensors ``(S, *shape)`` by name.
        """

        def one(row: Values) -> dict[str, Values]:
            trace = self.run(row)
            return {str(i): function(trace) for i, function in enumerate(read)}

        found = map_draws(one, self._rows(self.latent), at_once=self.at_once)
        return [found.get(str(i), {}) for i in range(len(read))]

    def unsettled(self) -> set[str]:
        """Deterministic sites that differ from run to run at one draw.

        They follow from a discrete site that was summed out, or from random numbers of the model's
        own, so that draws of the latents don't say what they are.
        """
        first = {name: value[0] for name, value in self.latent.items()}
        with torch.no_grad():
            runs = [deterministic(self.run(first)) for _ in range(RUNS)]
        return {
            name
            for name, value in runs[0].items()
            if any(not torch.equal(value, other[name]) for other in runs[1:])
        }

    def new_data(self) -> Values:
        """Every site that isn't given, observed ones included, drawn anew; and what follows."""
        wanted = [name for name in _valued(self.trace) if name not in self.latent]

        def one(row: Values) -> Values:
            trace = self.run(row, Unobserve()(self.model))
            return {name: trace.nodes[name]["value"] * 1 for name in wanted if name in trace.nodes}

        return dict(map_draws(one, self._rows(self.latent), at_once=self.at_once))

    def _rows(self, values: Values) -> Values:
        """Values, or for a model that needs none something to count draws by."""
        return values or {"": torch.zeros(self.size, device="cpu")}

    def shared_discrete(self) -> Values:
        """Enumerated sites that all data share, drawn from their posterior given the latents.

        Not those that share a plate with data, such as the component of each point of a mixture:
        new data have new ones, drawn from their prior.
        """
        nodes = self.trace.nodes.values()
        plates = {
            frame.name
            for site in structure.observed_sites(self.trace).values()
            for frame in site["cond_indep_stack"]
        }
        names = [
            site["name"]
            for site in nodes
            if site["type"] == "sample"
            and structure.is_enumerated(site)
            and not plates & {frame.name for frame in site["cond_indep_stack"]}
        ]
        if not names or not structure.observed_sites(self.trace):
            return {}
        dim = -1 - max_plate_nesting(self.trace)

        def one(row: Values) -> Values:
            inner = Substitute(row)(self.model)
            sampled = infer_discrete(inner, first_available_dim=dim, temperature=1)
            with poutine.block():
                trace = poutine.trace(sampled).get_trace(*self.args, **self.kwargs)
            return {name: trace.nodes[name]["value"] for name in names}

        return dict(map_draws(one, self._rows(self.latent), at_once=self.at_once))


def log_likelihood(trace: Any) -> Values:
    """Log density of each observed element, event axes summed; 0 where it is masked out."""
    return _log_probs(structure.observed_sites(trace))


def log_prior(trace: Any) -> Values:
    """Log prior density of each latent element, event axes summed; 0 where it is masked out."""
    return _log_probs(structure.latent_sites(trace))


def log_joint(trace: Any) -> Values:
    """Log density of unconstrained latents and data together, a scalar "lp".

    As NUTS and a guide see it: with the Jacobians of the transforms to the model's own scale.
    """
    total = trace.log_prob_sum()
    for site in structure.latent_sites(trace).values():
        if not site["fn"].support.is_discrete:
            transform, value = biject_to(site["fn"].support), site["value"]
            total = total + transform.log_abs_det_jacobian(transform.inv(value), value).sum()
    return {"lp": total}


def deterministic(trace: Any) -> Values:
    """Values of ``pyro.deterministic`` sites."""
    sites = {n: site for n, site in _valued(trace).items() if _is_deterministic(site)}
    return {name: site["value"] * 1 for name, site in sites.items()}


def why_no_log_likelihood(trace: Any, *, stochastic: bool) -> str:
    """A sentence if one run of the model doesn't give the likelihood of each point, else ""."""
    sites = (site for site in trace.nodes.values() if site["type"] == "sample")
    if any(structure.is_enumerated(site) for site in sites):
        return (
            "The model has enumerated discrete sites, which are summed out of the posterior: "
            "a run of the model draws them from their prior and doesn't sum over them."
        )
    if stochastic or structure.subsampled_plates(trace):
        return (
            "The log joint is random (a subsampled plate, or random numbers of the model's own), "
            "so each draw would be scored on other data or noise."
        )
    return ""


def prior_draws(
    model: Model, n: int, args: tuple[Any, ...], kwargs: dict[str, Any], *, at_once: int
) -> Values:
    """Draws from the prior of all sites, observed ones included, ``(n, *shape)`` by name.

    Raises:
        NotImplementedError: a prior can't be drawn from (a flat one).
    """

    def one(_: Values) -> Values:
        with poutine.block(), _Draw():
            trace = poutine.trace(Unobserve()(model)).get_trace(*args, **kwargs)
        return {name: site["value"] * 1 for name, site in _valued(trace).items()}

    return dict(map_draws(one, {"": torch.zeros(n, device="cpu")}, at_once=at_once))


def _log_probs(sites: dict[str, Any]) -> Values:
    # A mask of the distribution's own is in its log_prob already.
    return {
        name: scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
        for name, site in sites.items()
    }


def _valued(trace: Any) -> dict[str, Any]:
    """Sites whose values say something: sampled, observed or deterministic."""
    sampled = _sampled(trace)
    return {
        name: site
        for name, site in trace.nodes.items()
        if name in sampled or (_is_deterministic(site) and isinstance(site["value"], Tensor))
    }


def _sampled(trace: Any) -> dict[str, Any]:
    """Sites that have a distribution to draw from: not factors, plates or deterministic ones."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not _is_deterministic(site)
        and type(site["fn"]).__name__ != "Unit"
        and isinstance(site["value"], Tensor)
    }


def _is_deterministic(site: Any) -> bool:
    return site["type"] == "sample" and bool((site["infer"] or {}).get("_deterministic"))


def _tensors(trace: Any) -> Iterable[Tensor]:
    for site in trace.nodes.values():
        if site["type"] == "sample" and isinstance(site["value"], Tensor):
            yield site["value"]
