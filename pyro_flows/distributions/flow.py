# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A flow as a Pyro distribution: a base pushed through layers."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn
from torch.distributions import Transform
from torch.distributions.transforms import ReshapeTransform

from pyro_flows.distributions.base import Base, StandardNormal
from pyro_flows.distributions.event import event_size, flattened, shaped, unflattened
from pyro_flows.distributions.space import ends, holds, spread
from pyro_flows.errors import ContextError, DtypeError, NoRsampleError, ShapeError
from pyro_flows.transforms import Compose, Layer
from pyro_flows.transforms.base import is_real


class Flow(nn.Module):
    """Base distribution and layers; calling it gives a Pyro distribution.

    Args:
        layers: layers from base to data, all of one ``dim``.
        base: a module that makes the base distribution; the standard normal by default. One whose
            draws carry no gradient, such as a mixture, makes a flow that has ``sample`` only.
        event_shape: shape of one value, ``(dim,)`` by default. Layers map flat vectors; with
            ``(channels, height, width)`` the distribution has images, in and out, all the same.
        recompute: save memory in deep stacks, see :class:`pyro_flows.transforms.Compose`.

    Shapes: the distribution has that event shape and the batch shape of the context.

    Cost: ``rsample`` is one forward pass of the layers, which scores the draw on the way;
    ``log_prob`` of other values is one inverse pass. ``torch.compile(fullgraph=True)`` takes both;
    in what is compiled a draw's score is an inverse pass too, unless it is drawn by
    ``rsample_and_log_prob``.

    A distribution shares the flow's parameters: make a new one (``flow()``) after they change.

    Example:
        >>> flow = distributions.Flow([transforms.AffineCoupling(3), transforms.CholeskyAffine(3)])
        >>> flow().rsample((7,)).shape, flow.log_prob(torch.zeros(5, 3)).shape
        (torch.Size([7, 3]), torch.Size([5]))
        >>> flow = distributions.Flow([transforms.AffineCoupling(6)], event_shape=(1, 2, 3))
        >>> flow().rsample((7,)).shape
        torch.Size([7, 1, 2, 3])
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        base: nn.Module | None = None,
        event_shape: Sequence[int] | None = None,
        *,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(layers, Layer):
            raise ShapeError(
                f"Flow expected a list of layers, but got one {type(layers).__name__}. Pass "
                "[layer]."
            )
        self.transform = Compose(layers, recompute=recompute)
        self.event_shape = event_size(event_shape, self.transform.dim)
        self.base = base if base is not None else StandardNormal(self.transform.dim)
        self._check_base()

    def _check_base(self) -> None:
        """Raise unless base and layers have the same sizes, as far as the base says its own."""
        dim = getattr(self.base, "dim", self.dim)
        contexts = {self._base_context_dim, self.transform.context_dim} - {0}
        if dim != self.dim or len(contexts) > 1:
            raise ShapeError(
                f"Flow expected a base of dim={self.dim} and, if it takes a context, the "
                f"context_dim of the layers, but got {self.base} for layers of "
                f"context_dim={self.transform.context_dim}. Build both with the same sizes."
            )
        if isinstance(self.base, Base) and not self.base.context_dim:
            self._check_space(self.base(None), read=True)

    def _check_space(self, base: dist.TorchDistribution, *, read: bool = False) -> None:
        """Raise if the base's draws may fall where the layers have no density: log q is inf there.

        A base that takes a context is known only when there is one.
        """
        domain = self.transform.domain
        if is_real(domain):
            return
        wanted, found = ends(domain), spread(base, read=read)
        if wanted is None or found is None or holds(wanted, found):
            return
        where = "all real vectors"
        if found != (-math.inf, math.inf):
            where = f"vectors of numbers from {found[0]:g} to {found[1]:g}"
        raise ShapeError(
            f"Flow expected a base on {domain}, which its first layer takes, but got "
            f"{type(self.base).__name__}, which is spread over {where}. Give "
            "base=UniformBox(dim, low, high), or put a layer onto that space first."
        )

    @property
    def _base_context_dim(self) -> int:
        return int(getattr(self.base, "context_dim", 0))

    @property
    def dim(self) -> int:
        """Number of elements of the event."""
        return self.transform.dim

    @property
    def context_dim(self) -> int:
        """Size of the context's last axis, 0 for a plain flow."""
        return self.transform.context_dim or self._base_context_dim

    def forward(self, context: Tensor | None = None) -> FlowDistribution:
        """Make the distribution, given a context of shape ``(*, context_dim)`` if it takes one."""
        if self.context_dim and context is None:
            raise ContextError(
                f"This flow expected a context of shape (..., {self.context_dim}), but got none. "
                "Call flow(context)."
            )
        if context is not None and isinstance(self.base, Base) and not self.context_dim:
            raise ContextError(
                f"This flow takes no context, but got one of shape {tuple(context.shape)}. Build "
                f"it with context_dim={context.shape[-1]}, or leave the context out."
            )
        base = self.base(context)
        self._check_space(base)
        inner = self._layers_context(context)
        return FlowDistribution(base, self.transform, inner, event_shape=self.event_shape)

    def _layers_context(self, context: Tensor | None) -> Tensor | None:
        """The context, unless only the base takes it."""
        if self._base_context_dim and not self.transform.context_dim:
            return None
        return context

    def initialize(self, value: Tensor, context: Tensor | None = None) -> None:
        """Set what is set from data, given values ``(n, *event_shape)``; once, before training.

        Layers first (ActNorm), then the base (a mixture), from what the layers leave of the data.

        Cost: one pass from data to base without gradients, two if the base is set too.
        """
        inner = self._layers_context(context)
        value = flattened(value, self.event_shape)
        self.transform.initialize(value, inner)
        if isinstance(self.base, Base) and type(self.base).initialize is not Base.initialize:
            with torch.no_grad():
                x = self.transform.inverse_and_ladj(value, inner)[0]
            self.base.initialize(x, context)

    def log_prob(self, value: Tensor, context: Tensor | None = None) -> Tensor:
        """Log density of values ``(*, *event_shape)``: short for ``flow(context).log_prob``."""
        return self(context).log_prob(value)


class FlowDistribution(dist.TorchDistribution):
    """What ``flow(context)`` returns: a Pyro distribution with one-pass sampling and scoring.

    Pyro calls ``rsample`` and then ``log_prob`` of that very value. This object keeps the last
    (value, log q) pair, so that the second call costs nothing; the pair is used only for the same
    tensor, under the same gradient mode, while it, the context and the layers' parameters are
    unchanged in place (changes by ``.data`` aren't seen), and is lost on copying and pickling.
    Under ``torch.inference_mode()``, where changes aren't counted, and in what is compiled,
    nothing is kept.

    Example:
        >>> q = flows.nsf(dim=2)()
        >>> x = q.rsample((3,))
        >>> q.batch_shape, q.event_shape, q.log_prob(x).shape
        (torch.Size([]), torch.Size([2]), torch.Size([3]))
    """

    arg_constraints: dict[str, Any] = {}

    def __init__(
        self,
        base: dist.TorchDistribution,
        transform: Compose,
        context: Tensor | None = None,
        batch_shape: torch.Size | None = None,
        event_shape: torch.Size | None = None,
    ) -> None:
        if batch_shape is None:
            context_batch = () if context is None else context.shape[:-1]
            batch_shape = torch.broadcast_shapes(base.batch_shape, context_batch)
        self.base, self.transform, self.context = base.expand(batch_shape), transform, context
        # An attribute, as Pyro's `has_rsample_(False)` sets it.
        self.has_rsample = bool(base.has_rsample)
        self._memo: tuple[list[Tensor], int | None, bool, Tensor] | None = None
        event_shape = event_size(event_shape, transform.dim)
        super().__init__(batch_shape, event_shape, validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:
        """The codomain of the last layer."""
        return shaped(self.transform.codomain, self.event_shape)

    @property
    def transforms(self) -> list[Transform]:
        """The layers as one transform in a list, as Pyro's ``TransformedDistribution`` has it.

        A second one shapes the event, if it has several axes.
        """
        layers = [self.transform.condition(self.context)]
        if len(self.event_shape) > 1:
            layers.append(ReshapeTransform(torch.Size((self.transform.dim,)), self.event_shape))
        return layers

    def rsample_and_log_prob(
        self, sample_shape: torch.Size | Sequence[int] = torch.Size()
    ) -> tuple[Tensor, Tensor]:
        """Draw and score in one forward pass.

        Returns:
            ``(value, log_prob)`` of shapes ``(*sample_shape, *batch_shape, *event_shape)`` and
            without the event's axes; both carry gradients.

        Raises:
            NoRsampleError: draws of the base carry none.
        """
        if not self.base.has_rsample:
            raise NoRsampleError(
                f"rsample expected a base whose draws carry gradients, but got {self.base}. Use "
                "sample() and log_prob(), or a base that has rsample, such as StandardNormal."
            )
        return self._push(self.base.rsample(torch.Size(sample_shape)))

    def _push(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value, ladj = self.transform.forward_and_ladj(x, self.context)
        return unflattened(value, self.event_shape), self._score_base(x) - ladj

    def _score_base(self, x: Tensor) -> Tensor:
        if x.numel() == 0:  # Pyro can't sum over the event of nothing
            return x.sum(-1).expand(torch.broadcast_shapes(x.shape[:-1], self.base.batch_shape))
        log_prob: Tensor = self.base.log_prob(x)
        return log_prob

    def _keep(self, value: Tensor, log_prob: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            return value
        watched = [value, *_parameters(self.transform)]
        if self.context is not None:
            watched.append(self.context)
        changes = _changes(watched)
        keep = changes is not None
        self._memo = (watched, changes, torch.is_grad_enabled(), log_prob) if keep else None
        return value

    def rsample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:
        """Draw with gradients, shape ``(*sample_shape, *batch_shape, *event_shape)``.

        Raises:
            NoRsampleError: draws of the base carry none.
        """
        return self._keep(*self.rsample_and_log_prob(sample_shape))

    @torch.no_grad()
    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:
        """Draw without gradients, shape ``(*sample_shape, *batch_shape, *event_shape)``."""
        shape = torch.Size(sample_shape)
        if 0 in shape:  # a mixture can't choose among nothing
            one = self.base.sample()
            return self._keep(*self._push(one.expand(*shape, *one.shape)))
        return self._keep(*self._push(self.base.sample(shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density; one inverse pass, or none for the value that was just drawn here."""
        if self._memo is not None and not torch.compiler.is_compiling():
            watched, changes, grad, log_prob = self._memo
            same = value is watched[0] and grad == torch.is_grad_enabled()
            if same and _changes(watched) == changes:
                return log_prob
        self._check_dtype(value)
        vector = flattened(value, self.event_shape)
        x, ladj = self.transform.inverse_and_ladj(vector, self.context)
        return self._score_base(x) + ladj

    def _check_dtype(self, value: Tensor) -> None:
        """Raise where a matrix product of the layers would, but say what to do."""
        parameter = next(_parameters(self.transform), None)
        if parameter is not None and value.dtype != parameter.dtype:
            name = str(parameter.dtype).removeprefix("torch.")
            raise DtypeError(
                f"log_prob expected values of dtype {name}, as the flow's parameters have, but "
                f"got {str(value.dtype).removeprefix('torch.')}. Convert one of them: "
                f"value.to({parameter.dtype}), or flow.double() for float64."
            )

    def expand(
        self, batch_shape: torch.Size | Sequence[int], _instance: Any = None
    ) -> FlowDistribution:
        """The same flow with a larger batch shape."""
        return FlowDistribution(
            self.base, self.transform, self.context, torch.Size(batch_shape), self.event_shape
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memo": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> FlowDistribution:
        new = copy.copy(self)  # goes through __getstate__, which drops the pair
        new.__dict__ = {key: copy.deepcopy(value, memo) for key, value in new.__dict__.items()}
        return new

    def __repr__(self) -> str:
        shapes = f"batch_shape: {tuple(self.batch_shape)}, event_shape: {tuple(self.event_shape)}"
        return f"FlowDistribution({shapes})"


def _parameters(module: nn.Module) -> Iterator[Tensor]:
    """As ``parameters()``, which is slow for one small step and can't be compiled."""
    ahead = [module]
    while ahead:
        module = ahead.pop()
        yield from (p for p in module._parameters.values() if p is not None)
        ahead += [m for m in module._modules.values() if m is not None]


def _changes(tensors: list[Tensor]) -> int | None:
    """How often they were changed in place, together; None if one of them doesn't count."""
    try:
        return sum([tensor._version for tensor in tensors])
    except RuntimeError:  # one was made in inference mode
        return None
