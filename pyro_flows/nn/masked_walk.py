# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A masked perceptron, one generation of coordinates after another, each unit computed once."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from pyro_flows.nn.masked import MaskedLinear, MaskedMLP


class MaskedWalk:
    """What is known of a perceptron's units so far; made by ``MaskedMLP.walk`` for one call.

    Units and coordinates are sorted by generation, so what is known is the front part of every
    layer, and what is new comes behind it: slices, no indices.

    Cost of a whole walk: the operations of one pass, in as many steps as there are generations.
    """

    def __init__(self, net: MaskedMLP, context: Tensor | None, batch_shape: torch.Size) -> None:
        self.net, self.batch_shape, self.generation = net, batch_shape, 0
        self.coordinates: Tensor | None = None
        self.units: list[Tensor | None] = [None] * len(net.hidden)
        self.outer: Tensor | None = None  # onto parameters from the last units
        self.direct: Tensor | None = None  # onto parameters from coordinates
        if net.plain is not None:
            empty = net.sequence.new_zeros((0,), dtype=next(net.plain.parameters()).dtype)
            self.constant = self._sorted(net.plain(empty if context is None else context), -1)
            return
        hidden = cast("list[MaskedLinear]", list(net.hidden))
        weights = [linear.masked_weight() for linear in hidden]
        weights[:1] = [self._sorted(weight, 1) for weight in weights[:1]]
        self.inner = [(w, m.constant(context)) for w, m in zip(weights, hidden, strict=True)]
        last = self._sorted(net.last.masked_weight(), 0)
        constant = net.last.constant(context)
        if net.shortcut is None:
            self.direct = self._sorted(last, 1)
        else:
            self.outer = last
            self.direct = self._sorted(self._sorted(net.shortcut.masked_weight(), 0), 1)
            constant = constant + net.shortcut.constant(context)
        self.constant = self._sorted(constant, -1)
        self._grow(0)

    def _sorted(self, t: Tensor, axis: int) -> Tensor:
        """Sort an axis of several numbers for each coordinate by generation."""
        size = len(self.net.sequence), t.shape[axis] // len(self.net.sequence)
        first = axis % t.dim()
        return (
            t.unflatten(first, size)
            .index_select(first, self.net.sequence)
            .flatten(first, first + 1)
        )

    def params(self) -> Tensor:
        """Parameters of the next generation."""
        size = self.net.shape[1]
        begin, end = (size * at for at in self.net.starts[self.generation :][:2])
        out = self.constant[..., begin:end]
        for weight, known in (
            (self.outer, self.units[-1] if self.units else None),
            (self.direct, self.coordinates),
        ):
            if weight is not None and known is not None:
                out = _affine(known, weight[begin:end], out)
        return out.expand(*self.batch_shape, -1).unflatten(-1, (-1, size))

    def feed(self, features: Tensor) -> None:
        """Append the generation's coordinates, then the units that see nothing later."""
        self.coordinates = _append(self.coordinates, features.flatten(-2))
        self.generation += 1
        if self.net.plain is None and self.generation < len(self.net.starts) - 1:
            self._grow(self.generation)

    def _grow(self, generation: int) -> None:
        below = self.coordinates
        for k, (weight, constant) in enumerate(self.inner):
            units = self.units[k]
            begin = 0 if units is None else units.shape[-1]
            end = self.net.known[k][generation]
            if end > begin:
                new = constant[..., begin:end]
                if below is not None:
                    new = _affine(below, weight[begin:end], new)
                new = self.net.activation(new).expand(*self.batch_shape, -1)
                if self.net.residual and k and below is not None:
                    new = new + below[..., begin:end]
                self.units[k] = _append(units, new)
            below = self.units[k]


def _affine(known: Tensor, weight: Tensor, constant: Tensor) -> Tensor:
    """The part of a linear map that reads what is known."""
    weight = weight[:, : known.shape[-1]]
    if constant.dim() == 1:
        return F.linear(known, weight, constant)
    return F.linear(known, weight) + constant


def _append(known: Tensor | None, new: Tensor) -> Tensor:
    return new if known is None else torch.cat([known, new], -1)
