# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Columns of data on the scale a flow likes: unbounded, mean 0, standard deviation 1."""

from __future__ import annotations

import math
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from torch import Tensor

from pyro_flows.density.tails import Tails
from pyro_flows.transforms import Layer


class Columns(Layer):
    """From standardised numbers to columns in their own units, bounded where they are.

    ``u = loc + scale z``, heavy tails where a column has them; then per column ``u``;
    ``low + exp(u)`` or ``high - exp(u)`` with one bound; ``low + (high - low) sigmoid(u)`` with
    two.

    Args:
        low: lower bounds, shape ``(dim,)``; -inf for none.
        high: upper bounds; inf for none.
        loc: means of ``u``, before tails.
        scale: standard deviations of ``u``, before tails.
        tails: for columns whose values run so far out that a mean and a deviation say nothing.

    Outside the bounds, and on them, the log-determinant of the inverse is -inf. Nothing is
    trained. Cost: a few elementwise operations in both directions.

    Example:
        >>> layer = Columns.of(torch.rand(100, 2), low=torch.zeros(2), high=torch.ones(2))
        >>> y, ladj = layer.forward_and_ladj(torch.randn(5, 2))
        >>> bool(((y > 0) & (y < 1)).all()), ladj.shape
        (True, torch.Size([5]))
    """

    low: Tensor
    high: Tensor
    loc: Tensor
    scale: Tensor

    def __init__(
        self, low: Tensor, high: Tensor, loc: Tensor, scale: Tensor, tails: Tails | None = None
    ) -> None:
        super().__init__(len(low))
        self.tails = tails
        for name, value in {"low": low, "high": high, "loc": loc, "scale": scale}.items():
            self.register_buffer(name, value.detach().clone())

    @classmethod
    def of(cls, x: Tensor, low: Tensor, high: Tensor) -> Columns:
        """Bounds as given, location, scale and tails from data ``(n, dim)`` inside of them."""
        raw = cls(low.to(x), high.to(x), torch.zeros_like(x[0]), torch.ones_like(x[0]))
        u = raw.inverse_and_ladj(x)[0]
        tails = Tails.of(u)
        u = u if tails is None else tails.inverse_and_ladj(u)[0]
        return cls(raw.low, raw.high, u.mean(0), u.std(0, correction=0), tails)

    def without_scale(self) -> Columns:
        """The same bounds, with tails, mean 0 and standard deviation 1 left out."""
        return Columns(
            self.low, self.high, torch.zeros_like(self.loc), torch.ones_like(self.scale)
        )

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        """The box of the bounds, in words that torch knows a bijection for.

        It has none for an interval without an end: inference over such a column would see NaN.
        """
        lower, upper, both = self._kinds()
        kinds = torch.stack([lower, upper, both]).long().T.tolist()
        runs = [(kind, len(list(run))) for kind, run in groupby(kinds)]
        lengths = [length for _, length in runs]
        ends = zip(self.low.split(lengths), self.high.split(lengths), strict=True)
        parts = [_one_constraint(kind, *end) for (kind, _), end in zip(runs, ends, strict=True)]
        if len(parts) > 1:
            return constraints.independent(constraints.cat(parts, -1, lengths), 1)
        return constraints.independent(parts[0], 1) if any(kinds[0]) else constraints.real_vector

    def _kinds(self) -> tuple[Tensor, Tensor, Tensor]:
        """Which columns have a lower, an upper, and both bounds."""
        lower, upper = self.low.isfinite(), self.high.isfinite()
        return lower & ~upper, upper & ~lower, lower & upper

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """To the units of the data."""
        self.check(x, context)
        lower, upper, both = self._kinds()
        u, tails = self._with_tails(self.loc + self.scale * x)
        # Where a branch isn't taken its argument is harmless, so that no inf gets into gradients.
        one = torch.where(lower | upper, u, torch.zeros_like(u))
        one = one.clamp(max=math.log(torch.finfo(u.dtype).max) - 1)
        two = torch.where(both, u, torch.zeros_like(u))
        low, width = self._finite(self.low), self._finite(self.high - self.low)
        y = torch.where(lower, low + one.exp(), u)
        y = torch.where(upper, self._finite(self.high) - one.exp(), y)
        y = torch.where(both, low + width * two.sigmoid(), y)
        slope = F.logsigmoid(two) + F.logsigmoid(-two) + torch.where(both, width, 1.0).log()
        ladj = one + torch.where(both, slope, torch.zeros_like(slope)) + self.scale.log()
        return self.pull_inside(y), ladj.sum(-1) + tails

    def _with_tails(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return (u, u.new_zeros(())) if self.tails is None else self.tails.forward_and_ladj(u)

    def pull_inside(self, y: Tensor) -> Tensor:
        """Values that rounding brought to a bound, one number inside; the others as they are."""
        low, high = self.low.to(y), self.high.to(y)
        inf = torch.full_like(low, math.inf)
        y = torch.where(low.isfinite(), torch.maximum(y, low.nextafter(inf)), y)
        return torch.where(high.isfinite(), torch.minimum(y, high.nextafter(-inf)), y)

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """To standardised numbers."""
        self.check(y, context)
        lower, upper, both = self._kinds()
        inside = self.inside(y)
        low, high = self._finite(self.low), self._finite(self.high)
        harmless = torch.where(both, (low + high) / 2, low + high + lower.to(y) - upper.to(y))
        safe = torch.where(inside, y, harmless)
        above = torch.where(lower | both, safe - low, torch.ones_like(y)).log()
        below = torch.where(upper | both, high - safe, torch.ones_like(y)).log()
        u = torch.where(lower | upper, above + below, torch.where(both, above - below, safe))
        width = torch.where(both, high - low, torch.ones_like(low))
        ladj = width.log() - above - below - self.scale.log()
        ladj = torch.where(inside, ladj, torch.full_like(ladj, -math.inf)).sum(-1)
        if self.tails is not None:
            u, straightened = self.tails.inverse_and_ladj(u)
            ladj = ladj + straightened
        return (u - self.loc) / self.scale, ladj

    def inside(self, y: Tensor) -> Tensor:
        """Which values lie between the bounds; NaN does, to stay NaN."""
        return ~((y <= self.low) | (y >= self.high))

    @staticmethod
    def _finite(bound: Tensor) -> Tensor:
        return torch.where(bound.isfinite(), bound, torch.zeros_like(bound))


def _one_constraint(kind: list[int], low: Tensor, high: Tensor) -> Any:
    """Of columns alike: with a lower, an upper, or both bounds, or none."""
    if kind[0]:
        return constraints.greater_than(low)
    if kind[1]:
        return constraints.less_than(high)
    return constraints.interval(low, high) if kind[2] else constraints.real
