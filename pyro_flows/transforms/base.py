# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The contract of a layer: two methods that return pairs; all else is derived here, once.

A layer is a Pyro transform (``TransformModule`` and ``ConditionalTransformModule``) in Pyro's
direction, from base to data. It keeps nothing between calls: no cache, so no stale result.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.distributions.torch_transform import TransformModule
from torch import Tensor
from torch.distributions import Transform

from pyro_flows.errors import ContextError, ShapeError
from pyro_flows.nn.sizes import check_sizes
from pyro_flows.ops.derivatives import gradient_at
from pyro_flows.transforms.agreement import check_batches, check_dtypes


def vector_of(constraint: Any) -> Any:
    """The constraint of a vector whose every coordinate obeys ``constraint``."""
    if constraint is constraints.real:
        return constraints.real_vector
    return constraints.independent(constraint, 1)


def is_real(constraint: Any) -> bool:
    """Whether a constraint, of numbers or of vectors, holds for all of them."""
    while hasattr(constraint, "base_constraint"):  # of vectors, and of mixtures
        constraint = constraint.base_constraint
    return constraint is constraints.real


def impossible_outside(transform: Transform, y: Tensor, ladj: Tensor) -> Tensor:
    """``ladj`` of the forward map, and inf where ``y`` isn't in the codomain.

    Pyro subtracts it from the base's log density, which knows nothing of where ``y`` was.
    """
    if transform.codomain is constraints.real_vector:
        return ladj
    return torch.where(transform.codomain.check(y), ladj, torch.full_like(ladj, torch.inf))


class Layer(TransformModule, ConditionalTransformModule):
    """Base class of all layers; a subclass implements the two pair methods.

    Args:
        dim: size of the last axis of values.
        context_dim: size of the last axis of contexts; 0 for a plain layer.

    A plain layer (``context_dim=0``) goes wherever Pyro takes a transform. A conditional one is
    given its context by ``layer.condition(context)``; a context with batch axes gives a transform
    (and a distribution) with that batch shape.

    Cost inside Pyro's ``TransformedDistribution``: ``rsample`` is one forward pass, ``log_prob``
    one inverse and one forward pass, since Pyro asks for the log-determinant apart.
    :class:`pyro_flows.distributions.Flow` asks for pairs and halves that.

    Example:
        >>> class Scale(transforms.Layer):
        ...     def __init__(self, dim):
        ...         super().__init__(dim)
        ...         self.log_scale = torch.nn.Parameter(torch.zeros(dim))
        ...
        ...     def forward_and_ladj(self, x, context=None):
        ...         self.check(x, context)
        ...         return x * self.log_scale.exp(), self.log_scale.sum().expand(x.shape[:-1])
        ...
        ...     def inverse_and_ladj(self, y, context=None):
        ...         self.check(y, context)
        ...         return y * (-self.log_scale).exp(), -self.log_scale.sum().expand(y.shape[:-1])
        >>> Scale(3)(torch.ones(5, 3)).shape
        torch.Size([5, 3])
        >>> testing.check_layer(lambda dim, context_dim: Scale(dim), dim=3, laws=["round_trip"])
        {}
    """

    bijective = True
    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, dim: int, context_dim: int = 0) -> None:
        super().__init__()
        check_sizes(type(self).__name__, dim, context_dim)
        self.dim = dim
        self.context_dim = context_dim

    @abstractmethod
    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map base to data.

        Args:
            x: shape ``(*, dim)``.
            context: shape ``(*, context_dim)``, broadcast against ``x`` over the leading axes.

        Returns:
            ``(y, ladj)`` of shapes ``(*, dim)`` and ``(*)``; ``ladj`` is log|det dy/dx|.
        """

    @abstractmethod
    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Map data to base; ``ladj`` is log|det dx/dy|. Shapes as in the forward direction."""

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Map base to data, with the gradient of the log density of where it lands.

        What path gradients need. The density is taken as given: neither ``ladj`` nor the score
        carries a gradient, only ``y`` does.

        Args:
            x: shape ``(*, dim)``, of some density p.
            score: the gradient of log p at ``x``, shape ``(*, dim)``.
            context: shape ``(*, context_dim)``.

        Returns:
            ``(y, ladj, score)``: shapes ``(*, dim)``, ``(*)`` and ``(*, dim)``; the score is the
            gradient at ``y`` of the log density that p becomes.

        Cost: a forward pass, and an inverse one with its gradient; a layer that knows a shorter
        way overrides this.
        """
        y, ladj = self.forward_and_ladj(x, context)
        given = score.detach()

        def weighted(point: Tensor) -> Tensor:
            back, back_ladj = self.inverse_and_ladj(point, context)
            return (back * given).sum() + back_ladj.sum()

        return y, ladj.detach(), gradient_at(weighted, y.detach())

    def condition(self, context: Tensor | None) -> Transform:
        """Fix the context: a light transform sharing this layer's parameters."""
        return self if self.context_dim == 0 else Conditioned(self, context)

    def initialize(self, y: Tensor, context: Tensor | None = None) -> None:
        """Set what is set from data, if anything, given values ``(n, dim)`` on the data side.

        Most layers have nothing to set. It is never done behind a call's back: a layer that
        changed with its first batch would give two answers to one question.
        """

    # What torch and Pyro call.

    @property
    def sign(self) -> int:
        """Not defined: a layer isn't one monotone function of one number."""
        # AttributeError, where torch raises NotImplementedError, which breaks hasattr and with it
        # torch.jit.trace_module.
        raise AttributeError(f"{type(self).__name__} has no sign: it maps vectors.")

    def _call(self, x: Tensor) -> Tensor:
        return self.forward_and_ladj(x)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.inverse_and_ladj(y)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log|det dy/dx| at ``x``, shape ``(*)``; one forward pass."""
        return impossible_outside(self, y, self.forward_and_ladj(x)[1])

    @property
    def inv(self) -> Layer:
        """The inverse as a module, so that its parameters are found; ``t.inv.inv is t``."""
        return Inverse(self)

    def with_cache(self, cache_size: int = 1) -> Layer:
        """Return the layer itself: layers keep nothing, whatever the cache size asked for."""
        return self

    def __repr__(self) -> str:
        return torch.nn.Module.__repr__(self)

    def extra_repr(self) -> str:
        """Sizes in words, for ``print``."""
        context = f", context_dim={self.context_dim}" if self.context_dim else ""
        return f"dim={self.dim}{context}"

    # What subclasses use.

    def register_index(self, name: str, index: Tensor) -> None:
        """Keep an index as a buffer, on the device where new parameters are made."""
        self.register_buffer(name, index.to(torch.empty(0).device))

    def check(self, x: Tensor, context: Tensor | None) -> None:
        """Raise unless ``x`` and ``context`` have widths and dtypes that this layer takes."""
        if x.dim() == 0 or x.shape[-1] != self.dim:
            raise ShapeError(
                f"{self._title()} expected values of shape (..., {self.dim}), but got "
                f"{tuple(x.shape)}. Build the layer with dim equal to the size of the last axis."
            )
        if self.context_dim == 0:
            if context is not None:
                raise ContextError(
                    f"{self._title()} was built with context_dim=0, but got a context of "
                    f"shape {tuple(context.shape)}. Build it with context_dim={context.shape[-1]}."
                )
        elif context is None:
            raise ContextError(
                f"{self._title()} expected a context of shape (..., {self.context_dim}), "
                "but got none. Call layer.condition(context) first, or flow(context) for a whole "
                "flow."
            )
        elif context.dim() == 0 or context.shape[-1] != self.context_dim:
            raise ContextError(
                f"{self._title()} expected a context of shape (..., {self.context_dim}), "
                f"but got {tuple(context.shape)}. The last axis must have size {self.context_dim}."
            )
        if torch.compiler.is_compiling() or torch._C._get_tracing_state():
            return  # sizes are symbols there
        if context is not None:
            check_batches(self, x, context)
        self._check_dtypes(x, context)

    def _check_dtypes(self, x: Tensor, context: Tensor | None) -> None:
        check_dtypes(self, x, context)

    def _title(self) -> str:
        """What errors call it."""
        return type(self).__name__


class Inverse(Layer):
    """A layer run backwards, ``y = layer^-1(x)``; itself a layer, with the same parameters.

    Made by ``layer.inv``. Cost: the layer's, the directions exchanged: choose it where the layer's
    slow direction should be the seldom one, as MAF is to IAF.

    Example:
        >>> layer = transforms.AffineCoupling(4)
        >>> x = torch.randn(3, 4)
        >>> torch.allclose(layer.inv(layer(x)), x), layer.inv.inv is layer
        (True, True)
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__(layer.dim, layer.context_dim)
        self.layer = layer

    @property
    def domain(self) -> Any:  # type: ignore[override]
        """The codomain of the layer that is run backwards."""
        return self.layer.codomain

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        """The domain of the layer that is run backwards."""
        return self.layer.domain

    @property
    def inv(self) -> Layer:
        """The layer itself."""
        return self.layer

    def initialize(self, y: Tensor, context: Tensor | None = None) -> None:
        """Set nothing: the layer's data side is this one's base side."""

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the layer's inverse."""
        return self.layer.inverse_and_ladj(x, context)

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run the layer forwards."""
        return self.layer.forward_and_ladj(y, context)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Inverse) and other.layer is self.layer

    def __hash__(self) -> int:
        return hash((Inverse, id(self.layer)))


class Conditioned(Transform):
    """A layer with its context fixed, made by :meth:`Layer.condition` for one use.

    Example:
        >>> layer = transforms.SplineCoupling(2, context_dim=1).condition(torch.zeros(1))
        >>> layer(torch.zeros(4, 2)).shape
        torch.Size([4, 2])
    """

    bijective = True

    def __init__(self, layer: Layer, context: Tensor | None) -> None:
        super().__init__(cache_size=0)
        if context is None:
            raise ContextError(
                f"{type(layer).__name__}.condition expected a context of shape "
                f"(..., {layer.context_dim}), but got None. Pass the context tensor."
            )
        self.layer, self.context = layer, context

    @property
    def domain(self) -> Any:  # type: ignore[override]
        """Where inputs live: the layer's domain."""
        return self.layer.domain

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        """Where outputs live: the layer's codomain."""
        return self.layer.codomain

    def _call(self, x: Tensor) -> Tensor:
        return self.layer.forward_and_ladj(x, self.context)[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self.layer.inverse_and_ladj(y, self.context)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log|det dy/dx| at ``x``, shape ``(*)``; one forward pass."""
        return impossible_outside(self, y, self.layer.forward_and_ladj(x, self.context)[1])

    def with_cache(self, cache_size: int = 1) -> Conditioned:
        """Return the transform itself; it keeps nothing."""
        return self

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Broadcast the batch axes against the context's: a batch of contexts is a batch."""
        batch = torch.broadcast_shapes(shape[:-1], self.context.shape[:-1])
        return torch.Size((*batch, shape[-1]))

    inverse_shape = forward_shape
