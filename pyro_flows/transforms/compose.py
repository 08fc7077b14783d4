# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Layers one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributions import Transform
from torch.utils.checkpoint import checkpoint

from pyro_flows.errors import ShapeError
from pyro_flows.ops.tracing import is_recording
from pyro_flows.transforms.base import Layer, is_real
from pyro_flows.transforms.coupling import Coupling, is_plain
from pyro_flows.transforms.scored import affine_couplings_and_score

Way = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


class Compose(Layer):
    """Apply layers in order, first to last; log-determinants add up.

    ``y = layers[-1](... layers[0](x))``. Plain and conditional layers mix: the context goes to
    those that take one. :class:`pyro_flows.distributions.Flow` makes one of its layers; choose it
    by yourself to use a stack as one layer.

    Args:
        layers: layers of one ``dim``; all ``context_dim`` are equal or 0.
        recompute: keep no layer's intermediate values for the gradient of either direction, but
            make them anew, layer by layer, when it is taken: memory of one layer in place of all,
            for a third more time. An attribute, too, that can be set later. Path gradients
            (:meth:`forward_and_score`) keep theirs, and ``BatchNorm`` would count batches twice.

    Raises:
        ShapeError: no layers, different sizes, or one that takes part of the real line after one
            that gives all of it.

    Cost: the sum of the layers', in both directions.

    Example:
        >>> flow = transforms.Compose([transforms.AffineCoupling(3), transforms.Permute(3)])
        >>> flow(torch.zeros(5, 3)).shape
        torch.Size([5, 3])
    """

    recompute = False  # of stacks that were pickled before there was one

    def __init__(self, layers: Sequence[Layer], *, recompute: bool = False) -> None:
        layers = list(layers)
        for layer in layers:
            if not isinstance(layer, Layer):
                raise ShapeError(
                    f"A flow expected pyro_flows layers, but got {type(layer).__name__}. "
                    "Wrap Pyro's own transforms with dist.TransformedDistribution instead."
                )
        if not layers:
            raise ShapeError("A flow expected at least one layer, but got none. Pass one or more.")
        dim = layers[0].dim
        context_dim = next((layer.context_dim for layer in layers if layer.context_dim), 0)
        for index, layer in enumerate(layers):
            if layer.dim != dim or layer.context_dim not in (0, context_dim):
                raise ShapeError(
                    "A flow expected layers of one dim and one context_dim, here "
                    f"dim={dim} and context_dim={context_dim} (or 0), but layer {index}, "
                    f"{type(layer).__name__}, has dim={layer.dim} and "
                    f"context_dim={layer.context_dim}. Build all layers with the same sizes."
                )
        for first, second in pairwise(layers):
            if is_real(first.codomain) and not is_real(second.domain):
                raise ShapeError(
                    "A flow expected each layer to take what the one before it gives, but "
                    f"{type(first).__name__} gives all real vectors and {type(second).__name__} "
                    f"takes {second.domain}. Put a layer onto that space between, such as "
                    "Elementwise(dim, Sigmoid()), or leave one out."
                )
        super().__init__(dim, context_dim)
        self.layers = nn.ModuleList(layers)
        self.recompute = recompute

    @property
    def domain(self) -> Any:  # type: ignore[override]
        """The first layer's domain."""
        return self.layers[0].domain

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        """The last layer's codomain."""
        return self.layers[-1].codomain

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run all layers, first to last."""
        self.check(x, context)
        total: Tensor | None = None
        for layer in self._parts():
            part = context if layer.context_dim else None
            x, ladj = self._run(layer.forward_and_ladj, x, part)
            total = ladj if total is None else total + ladj
        return x, _as_batch(total, x)

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Run all inverses, last to first."""
        self.check(y, context)
        total: Tensor | None = None
        for layer in reversed(self._parts()):
            part = context if layer.context_dim else None
            y, ladj = self._run(layer.inverse_and_ladj, y, part)
            total = ladj if total is None else total + ladj
        return y, _as_batch(total, y)

    def _run(self, way: Way, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        # Where operations are recorded, what is kept isn't ours to decide.
        if not self.recompute or not torch.is_grad_enabled() or is_recording():
            return way(x, context)
        pair: tuple[Tensor, Tensor] = checkpoint(way, x, context, use_reentrant=False)
        return pair

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run all layers, first to last, with the score of where each one lands."""
        self.check(x, context)
        total: Tensor | None = None
        for plain, run in groupby(self._parts(), is_plain):
            if plain and x.dim() == 2:
                couplings = cast("list[Coupling]", list(run))
                x, ladj, score = affine_couplings_and_score(couplings, x, score)
                total = ladj if total is None else total + ladj
                continue
            for layer in run:
                part = context if layer.context_dim else None
                x, ladj, score = layer.forward_and_score(x, score, part)
                total = ladj if total is None else total + ladj
        return x, _as_batch(total, x), score

    def initialize(self, y: Tensor, context: Tensor | None = None) -> None:
        """Set the layers from data, last to first, each from what the later ones leave of it."""
        self.check(y, context)
        for layer in reversed(self._parts()):
            part = context if layer.context_dim else None
            layer.initialize(y, part)
            with torch.no_grad():
                y = layer.inverse_and_ladj(y, part)[0]

    def _check_dtypes(self, x: Tensor, context: Tensor | None) -> None:
        """Nothing: each layer asks for itself."""

    def _title(self) -> str:
        # Layers made of others have names of their own.
        named = type(self) is not Compose
        return super()._title() if named else f"This flow of {len(self.layers)} layers"

    def _parts(self) -> list[Layer]:
        return cast("list[Layer]", list(self.layers))

    def condition(self, context: Tensor | None) -> Transform:
        """Condition all parts on ``context`` at once."""
        return super().condition(context)


def _as_batch(ladj: Tensor | None, y: Tensor) -> Tensor:
    if ladj is None:
        return torch.zeros(y.shape[:-1], dtype=y.dtype, device=y.device)
    return ladj.expand(y.shape[:-1])
