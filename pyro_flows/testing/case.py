# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""One setting in which laws are tried: a layer's constructor, sizes, dtype and seed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from pyro_flows.transforms import Layer
from pyro_flows.transforms.base import is_real

Make = Callable[[int, int], Layer]
Pair = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Case:
    """A layer's constructor and the setting it is tried in; makes layers and inputs from a seed.

    Args:
        make: ``(dim, context_dim) -> Layer``.
        dim: size of the event.
        context_dim: size of the context, 0 for a plain layer.
        batch_shape: batch shape of the context, and the last batch axes of the values.
        dtype: of parameters and inputs.
        seed: of parameters, inputs and contexts; the global random state is left alone.
        perturb: how far from their start parameters are moved.

    Example:
        >>> case = testing.Case(lambda dim, context_dim: transforms.CholeskyAffine(dim), dim=3)
        >>> case.layer()(case.values(7)).shape
        torch.Size([7, 3])
    """

    make: Make
    dim: int
    context_dim: int = 0
    batch_shape: tuple[int, ...] = ()
    dtype: torch.dtype = torch.float64
    seed: int = 0
    perturb: float = 0.5

    @property
    def eps(self) -> float:
        """Machine epsilon of the dtype."""
        return float(torch.finfo(self.dtype).eps)

    def fresh(self) -> Layer:
        """The layer as its constructor leaves it."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.make(self.dim, self.context_dim).to(self.dtype)

    def layer(self, seed: int = 0) -> Layer:
        """The layer at perturbed parameters.

        A vector moves by ``perturb`` times standard normal noise; the noise of a matrix is divided
        by the root of its number of columns, so that what it makes moves as far at any width.
        """
        layer = self.fresh()
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1000 + 77 * self.seed + seed)
            for p in layer.parameters():
                width = p.shape[-1] if p.dim() > 1 else 1
                noise = torch.randn(p.shape, dtype=torch.float64) / width**0.5
                p.add_(self.perturb * noise.to(p.dtype))
        return layer

    def values(
        self, *sample_shape: int, scale: float = 1.5, seed: int = 0, into: str = "forward"
    ) -> Tensor:
        """Values of shape ``(*sample_shape, *batch_shape, dim)`` that a direction takes.

        Normal ones on the real line; where the layer's domain (``into="forward"``) or codomain
        (``into="inverse"``) is another space, those moved into it.
        """
        shape = (*sample_shape, *self.batch_shape, self.dim)
        return self.moved_into(into, scale * self._normal(shape, 2000 + seed))

    def space(self, direction: str) -> Any:
        """The constraint on what a direction takes: the layer's domain, or its codomain."""
        return self._spaces[0 if direction == "forward" else 1]

    @cached_property
    def _spaces(self) -> tuple[Any, Any]:
        layer = self.fresh()
        return layer.domain, layer.codomain

    def moved_into(self, direction: str, x: Tensor) -> Tensor:
        """Real numbers moved into the space of what a direction takes."""
        space = self.space(direction)
        return x if is_real(space) else biject_to(space)(x)

    def is_real(self) -> bool:
        """Whether the layer maps real vectors to real vectors."""
        return is_real(self.space("forward")) and is_real(self.space("inverse"))

    def noise(self, *sample_shape: int) -> Tensor:
        """Normal noise of the shape of values, for weights of a loss."""
        return self._normal((*sample_shape, *self.batch_shape, self.dim), 2500)

    def context(self, *sample_shape: int) -> Tensor | None:
        """A context of shape ``(*sample_shape, *batch_shape, context_dim)``, or None."""
        if self.context_dim == 0:
            return None
        return self._normal((*sample_shape, *self.batch_shape, self.context_dim), 3000)

    def one_context(self) -> Tensor | None:
        """The first context of the batch, shape ``(context_dim,)``, or None."""
        context = self.context()
        return None if context is None else context.reshape(-1, self.context_dim)[0]

    def _normal(self, shape: tuple[int, ...], seed: int) -> Tensor:
        generator = torch.Generator(device="cpu").manual_seed(seed + 77 * self.seed)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
        return noise.to(self.dtype)

    def distribution(self, layer: Layer, context: Tensor | None) -> dist.TransformedDistribution:
        """A standard normal, moved into the domain, pushed through the layer by Pyro's classes."""
        base = self.base(self.dtype)
        if self.context_dim == 0:
            return dist.TransformedDistribution(base, [layer])
        return dist.ConditionalTransformedDistribution(base, [layer]).condition(context)

    def same_space(self) -> bool:
        """Whether the layer's domain is its codomain."""
        domain, codomain = (_of_one_number(space) for space in self._spaces)
        return domain is codomain

    def base(self, dtype: torch.dtype) -> dist.TorchDistribution:
        """The distribution the laws push through the layer: standard normal, in its domain."""
        normal = dist.Normal(torch.zeros(self.dim, dtype=dtype), 1.0).to_event(1)
        space = self.space("forward")
        if is_real(space):
            return normal
        return dist.TransformedDistribution(normal, [biject_to(space)])

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"dim={self.dim}, context_dim={self.context_dim}, batch_shape={self.batch_shape}, "
            f"{dtype}, seed={self.seed}, perturb={self.perturb}"
        )

    def require(self, ok: object, sentence: str) -> None:
        """Raise AssertionError with the sentence and the setting unless ``ok``."""
        if not bool(ok):
            raise AssertionError(f"{sentence} Setting: {self}.")

    def require_close(
        self, got: Tensor, expected: Tensor, tolerance: float, what: str, than: str
    ) -> None:
        """Raise unless two tensors have one shape and agree to ``tolerance * max(1, |expected|)``.

        Args:
            got: any shape.
            expected: the same shape.
            tolerance: how far apart they may be.
            what: names ``got`` in the failure's sentence.
            than: names ``expected``.
        """
        self.require(
            got.shape == expected.shape,
            f"{what} has shape {tuple(got.shape)}, but {than} has {tuple(expected.shape)}.",
        )
        if not got.numel():
            return
        got, expected = got.detach().double(), expected.detach().double()
        error = (got - expected).abs() / expected.abs().clamp_min(1)
        worst = int(error.nan_to_num(torch.inf).argmax())
        self.require(
            (error <= tolerance).all(),
            f"{what} is {got.flatten()[worst]:.10g}, but {than} is "
            f"{expected.flatten()[worst]:.10g}: the error {error.flatten()[worst]:.1e} "
            f"is above {tolerance:.1e}.",
        )


def _of_one_number(space: Any) -> Any:
    while isinstance(space, constraints.independent):
        space = space.base_constraint
    return space


def directions(layer: Layer, context: Tensor | None) -> dict[str, Pair]:
    """Both directions as functions of the value alone, by name."""
    return {
        "forward": lambda x: layer.forward_and_ladj(x, context),
        "inverse": lambda y: layer.inverse_and_ladj(y, context),
    }


def jacobian(pair: Pair, x: Tensor) -> Tensor:
    """Jacobians ``(*, dim, dim)`` of a direction's value at ``x`` of shape ``(*, dim)``.

    One backward pass per coordinate: elements of the batch must not depend on each other.
    """
    x = x.detach().requires_grad_()
    y = pair(x)[0]
    rows = [
        torch.autograd.grad(y[..., i].sum(), x, retain_graph=i + 1 < y.shape[-1])[0]
        for i in range(y.shape[-1])
    ]
    return torch.stack(rows, -2)


def in_double(layer: Layer) -> Layer:
    """A float64 copy of the layer."""
    return copy.deepcopy(layer).double()


def double(x: Tensor | None) -> Tensor | None:
    """The tensor in float64, or None."""
    return None if x is None else x.double()
