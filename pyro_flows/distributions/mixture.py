# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Mixtures of flows with trained weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_flows.distributions.event import flattened
from pyro_flows.distributions.flow import Flow, FlowDistribution
from pyro_flows.distributions.stacked import Stacked
from pyro_flows.errors import ContextError, ShapeError
from pyro_flows.nn import Parameters
from pyro_flows.ops import kmeans
from pyro_flows.transforms.base import is_real


class FlowMixture(nn.Module):
    """Several flows with weights that sum to 1; calling it gives a Pyro distribution.

    ``p(x) = sum_k w_k p_k(x)``. Each flow can take a part of the density that lies apart, and no
    bridges remain between the parts.

    Flows that start alike move alike for a while; :meth:`initialize` gives each its own part of
    the data, if the flows have layers that are set from data.

    Args:
        flows: of one ``dim``; all ``context_dim`` are equal or 0.
        weights: positive numbers, the weights at the start; equal ones by default.
        conditional_weights: whether the weights, too, come from a network of the context.
        hidden_dims: widths of that network.

    Draws carry no gradient (``has_rsample`` is False), since which flow was drawn is a jump. Its
    distribution's ``rsample_components`` draws from every flow with gradients, for an ELBO that
    sums over the components instead of drawing one.
    Cost: the sum of the flows' costs, in both directions.

    Reference: Pires and Figueiredo, Variational mixture of normalizing flows, 2020,
    arXiv:2009.00585; Cornish et al., Relaxing bijectivity constraints, 2020, arXiv:1909.13833,
    on the bridges.

    Example:
        >>> mixture = distributions.FlowMixture([flows.realnvp(2), flows.nsf(2)])
        >>> x = mixture().sample((5,))
        >>> mixture.log_prob(x).shape, mixture().responsibilities(x).shape
        (torch.Size([5]), torch.Size([5, 2]))
    """

    def __init__(
        self,
        flows: Sequence[Flow],
        weights: Sequence[float] | Tensor | None = None,
        *,
        conditional_weights: bool = False,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__()
        self.flows = nn.ModuleList(flows)
        shapes = {tuple(flow.event_shape) for flow in self._parts()}
        contexts = {flow.context_dim for flow in self._parts()} - {0}
        if len(shapes) != 1 or len(contexts) > 1:
            raise ShapeError(
                "FlowMixture expected at least one flow, one common event_shape and one common "
                f"context_dim, but got event_shapes {sorted(shapes)} and context_dims "
                f"{sorted(contexts)}. Build all flows with the same sizes."
            )
        if len({is_real(flow.transform.codomain) for flow in self._parts()}) > 1:
            spaces = [str(flow.transform.codomain) for flow in self._parts()]
            raise ShapeError(
                f"FlowMixture expected flows of values of one space, but got {spaces}. Put a "
                "layer onto the bounded space last in the others too."
            )
        self.event_shape = torch.Size(shapes.pop())
        self.dim = self.event_shape.numel()
        self.context_dim = contexts.pop() if contexts else 0
        if conditional_weights and not self.context_dim:
            raise ContextError(
                "FlowMixture expected flows that take a context, since conditional_weights=True, "
                "but got plain ones. Build them with context_dim, or leave it out."
            )
        width = self.context_dim if conditional_weights else 0
        self.tensors = Parameters({"logit": self._logits(weights)}, width, hidden_dims)
        self._alike = Stacked.alike(self._parts())

    def _logits(self, weights: Sequence[float] | Tensor | None) -> Tensor:
        count = len(self.flows)
        like = torch.empty(0)  # where and how new parameters are made
        start = torch.as_tensor([1.0] * count if weights is None else weights).to(like)
        if start.shape != (count,) or not bool((start > 0).all()):
            raise ShapeError(
                f"FlowMixture expected {count} positive weights, one for each flow, but got "
                f"{start.tolist()}. They needn't sum to 1."
            )
        return (start / start.sum()).log()

    def _parts(self) -> list[Flow]:
        return cast("list[Flow]", list(self.flows))

    @property
    def weights(self) -> Tensor:
        """Weights without a context, shape ``(count,)``."""
        return self.tensors()["logit"].softmax(-1)

    def forward(self, context: Tensor | None = None) -> FlowMixtureDistribution:
        """Make the distribution, given a context of shape ``(*, context_dim)`` if it takes one."""
        if self.context_dim and context is None:
            raise ContextError(
                f"This mixture expected a context of shape (..., {self.context_dim}), but got "
                "none. Call mixture(context)."
            )
        if context is not None and not self.context_dim:
            raise ContextError(
                f"This mixture takes no context, but got one of shape {tuple(context.shape)}. "
                f"Build its flows with context_dim={context.shape[-1]}, or leave it out."
            )
        parts = [flow(context if flow.context_dim else None) for flow in self._parts()]
        log_weights = self.tensors(context)["logit"].log_softmax(-1)
        stacked = Stacked(self._parts()) if self._alike else None
        return FlowMixtureDistribution(parts, log_weights, stacked=stacked)

    def log_prob(self, value: Tensor, context: Tensor | None = None) -> Tensor:
        """Log density of values ``(*, *event_shape)``, given a context if it takes one."""
        return self(context).log_prob(value)

    @torch.no_grad()
    def initialize(self, value: Tensor, context: Tensor | None = None, *, seed: int = 0) -> None:
        """Give each flow a group of the values ``(n, *event_shape)``, its share as weight.

        Groups by k-means. Flows without anything that is set from data keep their start.
        """
        _, labels = kmeans(flattened(value, self.event_shape), len(self.flows), seed=seed)
        shares = []
        for k, flow in enumerate(self._parts()):
            group = labels == k
            shares.append(group.double().mean() + 1 / len(value))
            # A single point has no scale to be set from.
            rows = group if int(group.sum()) > 1 else torch.ones_like(group)
            part = context[rows] if context is not None and flow.context_dim else None
            flow.initialize(value[rows], part)
        start = self.tensors.start["logit"]
        start.copy_(torch.stack(shares).to(start).log())


class FlowMixtureDistribution(dist.TorchDistribution):
    """What ``mixture(context)`` returns: a Pyro distribution with ``sample`` and ``log_prob``.

    Example:
        >>> d = distributions.FlowMixture([flows.realnvp(2), flows.nsf(2)])()
        >>> values, log_weights = d.rsample_components((5,))
        >>> values.shape, (log_weights.exp() * d.log_prob(values)).sum(0).shape
        (torch.Size([2, 5, 2]), torch.Size([5]))
    """

    arg_constraints: dict[str, Any] = {}
    has_rsample = False

    def __init__(
        self,
        components: Sequence[FlowDistribution],
        log_weights: Tensor,
        batch_shape: torch.Size | None = None,
        stacked: Stacked | None = None,
    ) -> None:
        if batch_shape is None:
            batch_shape = torch.broadcast_shapes(
                log_weights.shape[:-1], *(c.batch_shape for c in components)
            )
        self.components = [c.expand(batch_shape) for c in components]
        self.log_weights = log_weights.expand(*batch_shape, -1)
        self._stacked = stacked if not batch_shape else None
        event_shape = self.components[0].event_shape
        super().__init__(batch_shape, event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:
        """That of the first flow; flows of one mixture live on one space."""
        return self.components[0].support

    def _joint(self, value: Tensor) -> Tensor:
        """``log(w_k p_k(value))``, components last."""
        if self._stacked is not None:
            scores = self._stacked.log_prob(value).movedim(0, -1)
        else:
            scores = torch.stack([c.log_prob(value) for c in self.components], -1)
        return scores + self.log_weights

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, shape of ``value`` without the event's axes."""
        return self._joint(value).logsumexp(-1)

    def responsibilities(self, value: Tensor) -> Tensor:
        """Probability that each flow made the value, components last; they sum to 1."""
        return self._joint(value).softmax(-1)

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:
        """Draw without gradients: one draw from every flow, of which one is taken."""
        shape = torch.Size(sample_shape)
        if 0 in shape:  # torch can't choose among nothing
            return self.components[0].sample(shape)
        choice = dist.Categorical(logits=self.log_weights, validate_args=False).sample(shape)
        draws = torch.stack([c.sample(shape) for c in self.components], -1)
        axes = (1,) * (len(self.event_shape) + 1)
        index = choice.reshape(*choice.shape, *axes).expand(*draws.shape[:-1], 1)
        return draws.gather(-1, index).squeeze(-1)

    def rsample_components(
        self, sample_shape: torch.Size | Sequence[int] = torch.Size()
    ) -> tuple[Tensor, Tensor]:
        """Draw from every flow, with gradients.

        Returns:
            ``(values, log_weights)``: values ``(count, *sample_shape, *batch_shape,
            *event_shape)`` and log-weights ``(count, 1, ..., *batch_shape)`` that broadcast
            against all but the event's axes. ``(log_weights.exp() * f(values)).sum(0)`` has the
            expectation of ``f``, and its gradient is that expectation's.

        Raises:
            NoRsampleError: a flow's base has no ``rsample``.
        """
        shape = torch.Size(sample_shape)
        if self._stacked is not None and all(c.has_rsample for c in self.components):
            noise = torch.stack([c.base.rsample(shape) for c in self.components])
            values = self._stacked.forward(noise)
        else:
            values = torch.stack([c.rsample(shape) for c in self.components])
        ones = (1,) * len(shape)
        log_weights = self.log_weights.movedim(-1, 0)
        return values, log_weights.reshape(len(self.components), *ones, *self.batch_shape)

    def rpush(self, noise: Tensor) -> Tensor:
        """Draws of every flow from its own draws of its base, with gradients.

        Args:
            noise: ``(count, n, dim)``.

        Returns:
            The same shape. For mixtures without a batch shape, of vectors.
        """
        if self._stacked is not None:
            return self._stacked.forward(noise)
        pairs = zip(self.components, noise, strict=True)
        return torch.stack([c.transform.forward_and_ladj(x, c.context)[0] for c, x in pairs])

    def push(self, noise: Tensor, uniform: Tensor) -> Tensor:
        """Draws from given random numbers, so that two states can be compared on the same ones.

        Args:
            noise: draws of the flows' base, ``(n, dim)``.
            uniform: numbers between 0 and 1, ``(n,)``, each of which picks a flow.

        Returns:
            Shape ``(n, dim)``, without a gradient in the weights. For mixtures without a batch
            shape, of vectors.
        """
        edges = self.log_weights.exp().cumsum(-1)[:-1]
        chosen = torch.searchsorted(edges.contiguous(), uniform)
        draws = noise.new_empty(noise.shape)
        for k, component in enumerate(self.components):
            rows = (chosen == k).nonzero().squeeze(-1)
            value, _ = component.transform.forward_and_ladj(noise[rows], component.context)
            draws = draws.index_copy(0, rows, value)
        return draws

    def expand(
        self, batch_shape: torch.Size | Sequence[int], _instance: Any = None
    ) -> FlowMixtureDistribution:
        """The same mixture with a larger batch shape."""
        return FlowMixtureDistribution(self.components, self.log_weights, torch.Size(batch_shape))

    def __repr__(self) -> str:
        return (
            f"FlowMixtureDistribution({len(self.components)} flows, batch_shape: "
            f"{tuple(self.batch_shape)}, event_shape: {tuple(self.event_shape)})"
        )
