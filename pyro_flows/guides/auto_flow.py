# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""AutoFlow: a normalizing flow in place of a Pyro model's guide."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide.guides import AutoContinuous, AutoGuide
from pyro.infer.autoguide.utils import helpful_support_errors
from pyro.nn.module import PyroModule
from torch import Tensor
from torch.distributions import biject_to

from pyro_flows import flows
from pyro_flows.distributions import Flow, FlowDistribution, FlowMixture
from pyro_flows.errors import ChangedModelError, GuideError, NoLatentsError, ShapeError
from pyro_flows.guides import structure
from pyro_flows.guides.initialization import Start, init_to_median_or_feasible
from pyro_flows.guides.param_store import register
from pyro_flows.guides.prior_scale import noncentring
from pyro_flows.guides.unpack import (
    aligned,
    constrain,
    coordinate_sites,
    filling,
    unconstrain,
)
from pyro_flows.transforms import CholeskyAffine, Compose, Layer, NonCentring
from pyro_flows.transforms.base import is_real

QUANTILE_DRAWS = 10_000

FlowSpec = str | Flow | Callable[[int], "Flow | Iterable[Layer]"]


class AutoFlow(AutoContinuous):
    """An autoguide whose posterior is a normalizing flow; takes the place of ``AutoNormal``.

    All continuous latents are packed into one unconstrained vector that passes through
    ``base -> flow (the identity at the start) -> trainable affine -> supports``. At the start it
    is the normal with mean ``init_loc`` and standard deviation ``init_scale`` per coordinate.

    Works with every Pyro ELBO, vectorised particles, ``AutoGuideList``, ``NeuTraReparam``, and
    with enumerated discrete latents under ``TraceEnum_ELBO``. An SVI step makes no inverse call.

    Args:
        model: a Pyro model.
        flow: name of a registered flow (see :func:`pyro_flows.flows.available`), a ``Flow``, or a
            function of the number of latents that returns layers or a ``Flow``.
        init_loc_fn: start per site, as in Pyro's autoguides; by default the prior median, and
            unconstrained zero where a prior can't be sampled.
        init_scale: standard deviation at the start, on the unconstrained scale.
        dtype: floating type of the guide; by default the widest among latents and observations.
        device: device of the guide; by default the observations', else the latents'.

    Raises:
        NoLatentsError, DiscreteLatentError, SubsampledLatentError, DataError: at the first call
            or :meth:`setup`, with what to do.

    Cost: one forward pass of the flow per SVI step; O(D^2) for the affine, and O(D^3) up to
        D = 400 for the default flow's rotation.

    Example:
        >>> def model():
        ...     scale = pyro.sample("scale", dist.HalfNormal(1.0))
        ...     pyro.sample("x", dist.Normal(0.0, scale).expand([3]).to_event(1))
        >>> guide = AutoFlow(model).setup()
        >>> svi = SVI(model, guide, pyro.optim.Adam({"lr": 1e-3}), Trace_ELBO())
        >>> loss = svi.step()
        >>> {name: tuple(value.shape) for name, value in guide.sample_posterior(10).items()}
        {'scale': (10,), 'x': (10, 3)}
    """

    flow: Flow
    prototype_trace: Any  # a trace once set up

    def __init__(
        self,
        model: Callable[..., Any],
        flow: FlowSpec = "default",
        init_loc_fn: Callable[[dict[str, Any]], Tensor] = init_to_median_or_feasible,
        init_scale: float = 0.1,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if not callable(model):
            raise GuideError(
                f"AutoFlow expected a Pyro model, that is a callable, but got "
                f"{type(model).__name__}. Pass the function itself, not its result."
            )
        if not (isinstance(init_scale, (int, float)) and init_scale > 0):
            raise GuideError(
                f"AutoFlow expected init_scale > 0, but got {init_scale!r}. 0.1 is the default."
            )
        if isinstance(flow, str):
            flows.check_name(flow)
        start = Start(init_loc_fn)
        start.dtype = dtype
        super().__init__(model, start)
        self._start = start
        # As given, without the start; in a tuple, so that a module is not registered.
        self._as_given: tuple[Callable[..., Any], ...] | None = (model,)
        self._flow_spec = flow
        self._init_scale = float(init_scale)
        self._dtype, self._device = dtype, device
        self._signature: Any = None
        self._active: dict[str, Tensor] = {}
        self._filling: dict[str, tuple[int, Tensor, Tensor]] = {}
        self._flow_levels: list[int] | None = None

    @property
    def bare_model(self) -> Callable[..., Any]:
        """The model as the user gave it; ``model`` starts its latents by ``init_loc_fn``."""
        if self._as_given is None:
            raise GuideError(
                "This AutoFlow was unpickled, so it has no model: models aren't saved with a "
                "guide. Make AutoFlow(model), call setup(...) and load_state_dict(...)."
            )
        return self._as_given[0]

    # Setting up.

    def setup(self, *args: Any, **kwargs: Any) -> AutoFlow:
        """Look at the model now, so that the parameters exist before an optimiser asks for them.

        Args:
            *args: the model's.
            **kwargs: the model's.

        Returns:
            The guide itself.
        """
        if self.prototype_trace is None:
            self._setup_prototype(*args, **kwargs)
            if self.master is None:
                with poutine.block():  # NeuTraReparam reads self.plates
                    self._create_plates(*args, **kwargs)
        return self

    @torch.no_grad()
    def _setup_prototype(self, *args: Any, **kwargs: Any) -> None:
        full = self._first_run(*args, **kwargs)
        latents = structure.latent_sites(full)
        structure.check_latents(latents)
        structure.check_data(full)
        AutoGuide._setup_prototype(self, *args, **kwargs)
        dtype = self._dtype or structure.widest_dtype(full)
        device = self._device or structure.main_device(full)

        self._unconstrained_shapes = {}
        self._cond_indep_stacks = {}
        self._active, self._filling = {}, {}
        loc = []
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            with helpful_support_errors(site):
                u = biject_to(site["fn"].support).inv(site["value"])
            self._unconstrained_shapes[name] = u.shape
            self._cond_indep_stacks[name] = site["cond_indep_stack"]
            flat = u.reshape(-1)
            mask = structure.site_mask(site)
            if mask is not None and not bool(mask.all()):
                active = aligned(mask, site, u.shape)
                self._active[name] = active.to(device)
                self._filling[name] = filling(active, flat, device, dtype)
                flat = flat[active]
            loc.append(flat.to(device=device, dtype=dtype))
        start = torch.cat(loc)
        self.latent_dim = start.numel()
        if self.latent_dim == 0:
            raise NoLatentsError(
                "AutoFlow found no latent element that isn't masked out. Check the masks."
            )
        levels = self._levels(args, kwargs)
        prior = noncentring(self, self.bare_model, args, kwargs, levels, start)
        # What the hierarchy's own location and scale can't undo, couplings along it can.
        self._flow_levels = levels if prior is None else None
        scale = self._init_scale * torch.eye(len(start), device="cpu").to(start)
        self._set_flow([self._around(start, scale)], prior)
        self._signature = structure.signature(args, kwargs)

    def _around(self, loc: Tensor, scale_tril: Tensor) -> Flow:
        """A fresh flow around a Gaussian, whose layers are the identity."""
        spec = self._flow_spec
        # A flow given as an object is the one that is trained; a mixture needs copies.
        spec = copy.deepcopy(spec) if isinstance(spec, Flow) and "flow" in self._modules else spec
        with torch.device(loc.device):  # whatever the default one is
            flow = _build(spec, self.latent_dim, self._flow_levels)
            affine = CholeskyAffine(self.latent_dim)
        flow = Flow([*flow.transform.layers, affine], flow.base).to(loc)
        affine.set(loc=loc, scale_tril=scale_tril)
        return flow

    def _set_flow(
        self, flows: list[Flow], prior: NonCentring | None, weights: Tensor | None = None
    ) -> None:
        """One flow, or a mixture of several, below the layer of the hierarchy."""
        last = [] if prior is None else [prior]
        if len(flows) == 1:
            flow = Flow([*flows[0].transform.layers, *last], flows[0].base)
        else:
            # Several flows are the base of one: so the posterior is a base and a transform still.
            with torch.device(next(flows[0].parameters()).device):
                unit = CholeskyAffine(self.latent_dim).requires_grad_(False)
                flow = Flow([unit, *last], FlowMixture(flows, weights))
        self._modules["flow"] = flow.to(next(flows[0].parameters()))

    @torch.no_grad()
    def split(self, locs: Tensor, scale_trils: Tensor, weights: Tensor) -> None:
        """Make the posterior a mixture of flows, one around each of several Gaussians.

        :class:`pyro_flows.inference.FlowVI` calls this where it finds several modes. Draws of a
        mixture carry no gradient, so that Pyro's ELBOs train it by score functions only.

        Args:
            locs: shape ``(K, latent_dim)``, unconstrained, below :attr:`noncentring`.
            scale_trils: their Cholesky factors, ``(K, latent_dim, latent_dim)``.
            weights: ``(K,)``, positive. ``K=1`` goes back to a single flow.
        """
        prior = self.noncentring
        flows = [self._around(*gaussian) for gaussian in zip(locs, scale_trils, strict=True)]
        self._set_flow(flows, prior, weights)

    def state(self) -> tuple[Flow, dict[str, Tensor]]:
        """The flow and a copy of its parameters, to go back to by :meth:`set_state`."""
        return self._flow, copy.deepcopy(self._flow.state_dict())

    def set_state(self, state: tuple[Flow, dict[str, Tensor]]) -> None:
        """Go back to what :meth:`state` gave."""
        flow, values = state
        flow.load_state_dict(values)
        self._modules["flow"] = flow

    @property
    def modes(self) -> int:
        """Number of flows in the posterior: more than 1 after :meth:`split`."""
        base = self._flow.base
        return len(base.flows) if isinstance(base, FlowMixture) else 1

    def _levels(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[int]:
        """Level in the model's hierarchy of every packed coordinate."""
        names = list(self._unconstrained_shapes)
        levels = structure.site_levels(self.model, args, kwargs, names)
        return [levels[name] for name in coordinate_sites(self)]

    def _first_run(self, *args: Any, **kwargs: Any) -> poutine.Trace:
        """Trace the model; at float64 latents if it refuses to mix those it starts with."""
        try:
            return structure.trace_model(self.model, *args, **kwargs)
        except RuntimeError as error:
            message = str(error)
            devices = [a.device for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
            elsewhere = [device for device in devices if device.type != "cpu"]
            if "device" in message and self._start.device is None and elsewhere:
                self._start.device = elsewhere[0]
            elif "dtype" in message and self._start.dtype is None:
                self._start.dtype = torch.float64
            else:
                raise
        return self._first_run(*args, **kwargs)

    @staticmethod
    def _prototype_hide_fn(msg: dict[str, Any]) -> bool:
        return not structure.is_latent(msg)

    @property
    def affine(self) -> CholeskyAffine:
        """The trainable affine behind the flow's layers."""
        affine: Any = self._flow.transform.layers[-1 if self.noncentring is None else -2]
        return affine

    @property
    def flow_name(self) -> str | None:
        """The registered name the flow was made from, None for a flow given as an object."""
        return self._flow_spec if isinstance(self._flow_spec, str) else None

    @property
    def noncentring(self) -> NonCentring | None:
        """The layer that undoes a hierarchical prior's scale, None if the model has no such site.

        Centred (the identity) until a warm start finds that another degree fits better.
        """
        last = self._flow.transform.layers[-1]
        return last if isinstance(last, NonCentring) else None

    @property
    def _flow(self) -> Flow:
        # Past PyroModule's __getattr__, which would register the module under a name that a
        # second guide shares, and warn about frozen parameters.
        flow = self._modules.get("flow")
        if flow is None:
            raise GuideError(
                "This AutoFlow hasn't seen its model's arguments yet, so it has no parameters. "
                "Call guide.setup(*args, **kwargs) first, with the model's arguments."
            )
        return flow  # type: ignore[return-value]

    # What Pyro's inference calls.

    def get_base_dist(self) -> dist.TorchDistribution:
        """The base distribution, event shape ``(latent_dim,)``."""
        return self._flow.base()

    def get_transform(self, *args: Any, **kwargs: Any) -> Compose:
        """The map from base to the unconstrained vector; the arguments don't matter."""
        return self._flow.transform

    def get_posterior(self, *args: Any, **kwargs: Any) -> FlowDistribution:
        """The distribution of the packed unconstrained vector."""
        return self._flow()

    def sample_latent(self, *args: Any, **kwargs: Any) -> Tensor:
        """Draw the packed unconstrained vector at an auxiliary Pyro site."""
        self._pyro_name = register(self._pyro_name, self._flow)
        return pyro.sample(
            f"_{self._pyro_name}_latent", self.get_posterior(), infer={"is_auxiliary": True}
        )

    def forward(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Sample all latents as Pyro sites; takes the model's arguments.

        Returns:
            Site name to value.
        """
        self.setup(*args, **kwargs)
        self._check_unchanged(args, kwargs)
        latent = self.sample_latent(*args, **kwargs)
        plates = self._create_plates(*args, **kwargs)
        # Under Predictive nothing is scored.
        scored = poutine.get_mask() is not False
        result = {}
        for name, site, value, ladj in constrain(self, latent):
            fn = _Image(value, -ladj if scored else 0.0, event_dim=site["fn"].event_dim)
            with ExitStack() as stack:
                for frame in self._cond_indep_stacks[name]:
                    stack.enter_context(plates[frame.name])
                result[name] = pyro.sample(name, fn)
        return result

    def _unpack_latent(self, latent: Tensor) -> Iterator[tuple[dict[str, Any], Tensor]]:
        if not self._active:
            yield from super()._unpack_latent(latent)
            return
        batch, pos = latent.shape[:-1], 0
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            shape = self._unconstrained_shapes[name]
            size, index, start = self._filling.get(name, (shape.numel(), None, None))
            flat = latent[..., pos : pos + size]
            pos += size
            if index is not None and start is not None:
                both = torch.cat([flat, start.to(latent).expand((*batch, -1))], -1)
                flat = both.index_select(-1, index)
            event_dim = site["fn"].event_dim + len(shape) - site["value"].dim()
            full = torch.broadcast_shapes(shape, batch + (1,) * event_dim)
            yield site, flat.reshape(full)

    def _check_unchanged(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at the model again if an argument has another shape or value than at setup."""
        if not args and not kwargs:  # as Pyro's guides allow, once they are set up
            return
        signature = structure.signature(args, kwargs)
        if signature == self._signature or torch._C._get_tracing_state():
            return
        if self._model is None:  # a guide that was loaded from a file has no model to look at
            return
        with structure.random_state_kept():
            trace = structure.trace_model(self.model, *args, **kwargs)
        now = structure.latent_sites(trace)
        for name, site in self.prototype_trace.iter_stochastic_nodes():
            expected = tuple(site["value"].shape)
            got = tuple(now[name]["value"].shape) if name in now else None
            if got != expected:
                state = "is not a latent" if got is None else f"has shape {got}"
                raise ChangedModelError(
                    f"The guide was set up with a site '{name}' of shape {expected}, but with "
                    f"these arguments '{name}' {state}. A guide belongs to one data size: make a "
                    "new AutoFlow(model) for the new data."
                )
        self._signature = signature

    # The posterior, as users ask for it.

    @torch.no_grad()
    def sample_posterior(self, n: int, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Draw ``n`` values of every latent.

        Returns:
            Site name to values of shape ``(n, *site_shape)``; no singleton axes are added.
        """
        self.setup(*args, **kwargs)
        return self.unpack(self._flow().sample((n,)))

    def unpack(self, latent: Tensor) -> dict[str, Tensor]:
        """Constrained values from packed unconstrained ones.

        Args:
            latent: shape ``(n, latent_dim)``.

        Returns:
            Site name to values of shape ``(n, *site_shape)``.
        """
        values = torch.vmap(lambda z: {name: v for name, _, v, _ in constrain(self, z)})(latent)
        return dict(values)

    def log_prob(self, values: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Log density of given (constrained) values under the guide.

        Args:
            values: every latent site's name to values of shape ``(*batch, *site_shape)``.
            *args: the model's, if the guide isn't set up yet.
            **kwargs: the model's.

        Returns:
            Shape ``(*batch)``. One inverse pass.
        """
        self.setup(*args, **kwargs)
        names = [name for name, _ in self.prototype_trace.iter_stochastic_nodes()]
        if set(values) != set(names):
            raise GuideError(
                f"AutoFlow.log_prob expected values for the sites {names}, but got "
                f"{sorted(values)}. Give every latent site once."
            )
        latent, ladj = unconstrain(self, values)
        return self._flow.log_prob(latent) - ladj

    @torch.no_grad()
    def _marginals(self) -> Tensor:
        """Sorted draws of each coordinate, for quantiles: the same at every call.

        The base draws are symmetrised (z, -z and 0), so that medians of an affine guide, and of
        any guide at its start, are exact.
        """
        base = self.get_base_dist()
        with structure.random_state_kept():
            torch.manual_seed(20_111)
            if self.modes > 1:
                return self._flow().sample((QUANTILE_DRAWS + 1,)).sort(0)[0]
            z = base.sample((QUANTILE_DRAWS // 2,))
        centre = base.mean
        z = torch.cat([z, 2 * centre - z, centre.unsqueeze(0)])
        return self._flow.transform(z).sort(0)[0]

    @torch.no_grad()
    def median(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """Median of every latent element (on the unconstrained scale, then mapped).

        Returns:
            Site name to median of the site's shape; from 10,001 fixed symmetrised draws.
        """
        return {name: value[0] for name, value in self.quantiles([0.5], *args, **kwargs).items()}

    @torch.no_grad()
    def quantiles(
        self, quantiles: Iterable[float] | Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Quantiles of every latent element (on the unconstrained scale, then mapped).

        Args:
            quantiles: numbers in [0, 1].
            *args: the model's, if the guide isn't set up yet.
            **kwargs: the model's.

        Returns:
            Site name to a tensor of shape ``(len(quantiles), *site_shape)``.
        """
        self.setup(*args, **kwargs)
        draws = self._marginals()
        rows = []
        for q in quantiles:
            position = float(q) * (len(draws) - 1)
            low = int(position)
            high = min(low + 1, len(draws) - 1)
            rows.append(draws[low].lerp(draws[high], position - low))
        return self.unpack(torch.stack(rows))

    @torch.no_grad()
    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Median and standard deviation of the packed vector."""
        self.setup(*args, **kwargs)
        draws = self._marginals()
        return draws[len(draws) // 2], draws.std(0)

    # Saving and copying.

    def load_state_dict(self, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
        """Load parameters into a guide that has been set up; see :meth:`setup`."""
        _ = self._flow
        return super().load_state_dict(state_dict, *args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        # Pyro's AutoGuide empties the live guide's model here; the copy is what must not have it.
        state = dict(PyroModule.__getstate__(self))
        state["_model"] = state["_as_given"] = None
        state["master"] = None
        return state

    def __deepcopy__(self, memo: dict[int, Any]) -> AutoFlow:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        state = dict(PyroModule.__getstate__(self))
        for key, value in state.items():
            # The model is shared: it is the user's, not part of the guide.
            keep = key in ("_model", "_as_given", "_pyro_context")
            new.__dict__[key] = value if keep else copy.deepcopy(value, memo)
        new.__dict__["_pyro_context"] = type(self._pyro_context)()
        new.__dict__["master"] = None
        return new


class _Image(dist.Delta):
    """A site's value, the image of the packed vector, with the Jacobian as its log density.

    At a detached value the Jacobian is a constant: ``ReweightedWakeSleep`` detaches what the guide
    drew, and its gradient would else hold the Jacobian's derivative in the guide's parameters.
    """

    def log_prob(self, x: Tensor) -> Tensor:
        log_prob = super().log_prob(x)
        return log_prob if x.requires_grad else log_prob.detach()


def _build(spec: FlowSpec, dim: int, levels: list[int] | None) -> Flow:
    """A flow over ``dim`` coordinates from what the user gave."""
    made: Any = flows.make(spec, dim, levels=levels) if isinstance(spec, str) else spec
    if not isinstance(made, Flow) and callable(made):
        made = made(dim)
    flow = made if isinstance(made, Flow) else Flow(list(made))
    if flow.dim != dim or flow.context_dim:
        raise ShapeError(
            f"The model has {dim} latent coordinates, so AutoFlow expected a plain flow of "
            f"dim={dim}, but got dim={flow.dim}, context_dim={flow.context_dim}. Pass a name or a "
            "function of dim: AutoFlow(model, flow=lambda dim: [...])."
        )
    spaces = flow.transform.domain, flow.transform.codomain
    if not all(is_real(space) for space in spaces):
        raise GuideError(
            f"AutoFlow expected a flow of real vectors, but got one between {spaces}. Latents of "
            "other supports are moved there apart; choose a flow such as 'nsf'."
        )
    return flow
