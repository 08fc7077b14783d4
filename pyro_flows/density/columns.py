# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Columns of data on the scale a flow likes: unbounded, mean 0, standard deviation 1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from numbers import Real
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions import constraints
from torch import Tensor

from pyro_flows.errors import DensityError
from pyro_flows.transforms import Layer

Bounds = tuple[float, float]
REAL: Bounds = (-math.inf, math.inf)
NAMED: dict[str, Bounds] = {
    "real": REAL,
    "positive": (0.0, math.inf),
    "negative": (-math.inf, 0.0),
    "unit": (0.0, 1.0),
}


class Columns(Layer):
    """From standardised numbers to columns in their own units, bounded where they are.

    ``u = loc + scale z``, then per column ``u``; ``low + exp(u)`` or ``high - exp(u)`` with one
    bound; ``low + (high - low) sigmoid(u)`` with two.

    Args:
        low: lower bounds, shape ``(dim,)``; -inf for none.
        high: upper bounds; inf for none.
        loc: means of ``u``.
        scale: standard deviations of ``u``.

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

    def __init__(self, low: Tensor, high: Tensor, loc: Tensor, scale: Tensor) -> None:
        super().__init__(len(low))
        for name, value in {"low": low, "high": high, "loc": loc, "scale": scale}.items():
            self.register_buffer(name, value.detach().clone())

    @classmethod
    def of(cls, x: Tensor, low: Tensor, high: Tensor) -> Columns:
        """Bounds as given, location and scale from data ``(n, dim)`` inside of them."""
        raw = cls(low.to(x), high.to(x), torch.zeros_like(x[0]), torch.ones_like(x[0]))
        u = raw.inverse_and_ladj(x)[0]
        return cls(raw.low, raw.high, u.mean(0), u.std(0, correction=0))

    def without_scale(self) -> Columns:
        """The same bounds, with mean 0 and standard deviation 1 left out."""
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
        u = self.loc + self.scale * x
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
        return self.pull_inside(y), ladj.sum(-1)

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
        ladj = torch.where(inside, ladj, torch.full_like(ladj, -math.inf))
        return (u - self.loc) / self.scale, ladj.sum(-1)

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


def read_support(support: Any, dim: int, names: list[str] | None = None) -> list[Bounds]:
    """Bounds per column from what the user gave.

    Args:
        support: None; one specification for all columns; a sequence of ``dim`` of them; or a
            mapping from column (index or name) to one. A specification is None, "real",
            "positive", "negative", "unit", a pair ``(low, high)`` with None for no bound, or a
            one-dimensional constraint of torch.
        dim: number of columns.
        names: their names, if they have any.

    Raises:
        DensityError: it can't be read; the text says what can.
    """
    support = _as_list(support)
    if isinstance(support, Mapping):
        bounds = [REAL] * dim
        for key, spec in support.items():
            bounds[_column(key, dim, names)] = _bounds(spec)
        return bounds
    if isinstance(support, Sequence) and not isinstance(support, str) and not _is_pair(support):
        if len(support) != dim:
            raise DensityError(
                f"Expected support= to have one entry for each of {dim} columns, but got "
                f"{len(support)}. Use None for a column without bounds, or a dict for a few."
            )
        return [_bounds(spec) for spec in support]
    return [_bounds(support)] * dim


def _is_pair(spec: Any) -> bool:
    return (
        isinstance(spec, Sequence)
        and len(spec) == 2
        and all(end is None or isinstance(end, Real) for end in spec)
        and any(end is not None for end in spec)
    )


def _as_list(value: Any) -> Any:
    """Arrays and tensors as lists, all else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value


def _bounds(spec: Any) -> Bounds:
    spec = _as_list(spec)
    if spec is None:
        return REAL
    if isinstance(spec, str) and spec in NAMED:
        return NAMED[spec]
    if _is_pair(spec):
        low = -math.inf if spec[0] is None else float(spec[0])
        high = math.inf if spec[1] is None else float(spec[1])
        if low < high:
            return low, high
    if isinstance(spec, constraints.Constraint) and spec.event_dim == 0 and not spec.is_discrete:
        return _bounds_of(spec)
    raise DensityError(
        f"Expected support= to hold None, {', '.join(map(repr, NAMED))}, a pair (low, high) with "
        f"low < high and None for no bound, or a constraint of torch on one number, but got "
        f"{spec!r}."
    )


def _bounds_of(constraint: Any) -> Bounds:
    if constraint is constraints.real:
        return REAL
    low = getattr(constraint, "lower_bound", None)
    high = getattr(constraint, "upper_bound", None)
    if low is None and high is None:
        raise DensityError(
            f"Expected an interval or a half line in support=, but got {constraint!r}. Give the "
            "bounds as a pair (low, high)."
        )
    return (-math.inf if low is None else float(low)), (math.inf if high is None else float(high))


def _column(key: Any, dim: int, names: list[str] | None) -> int:
    if names and str(key) in names:
        return names.index(str(key))
    if isinstance(key, int) and -dim <= key < dim:
        return key % dim
    have = f"named {names}" if names else f"0 to {dim - 1}"
    raise DensityError(
        f"support= speaks of column {key!r}, but x has the columns {have}. Use one of those."
    )
