# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Columns whose values run far out: power-law tails, brought to normal ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_flows.transforms import Layer, TailTransform

# Tails up to those of a squared Cauchy.
TAIL = TailTransform(heaviest=2.0)
# Values a column must have beyond so many deviations of its middle half to be looked at closer:
# a normal has none, and below that splines do well.
FAR = 20.0
# By how many nats a row power-law tails must beat a normal density.
GAIN = 0.5
# Rows that the four numbers of a column are fitted to.
MOST_ROWS = 20_000
# Shares of the rows, centred, whose width says how wide a column is; the first that isn't 0.
SHARES = (0.5, 0.8, 0.9, 0.98)


class Tails(Layer):
    """Power-law tails for some columns, none for the others; nothing is trained.

    ``y = centre + spread T(x)``, with :class:`~pyro_flows.transforms.TailTransform` as ``T``, in
    heavy-tailed columns; ``y = x`` in the rest.

    Args:
        heavy: which columns, shape ``(dim,)``.
        centre: shape ``(dim,)``.
        spread: shape ``(dim,)``.
        indices: parameters of the tail transform, shape ``(dim, 2)``.

    Cost: a few special functions a number in both directions.

    Example:
        >>> layer = Tails.of(torch.distributions.Cauchy(0.0, 1.0).sample((500, 1)))
        >>> bool(layer.heavy), layer(torch.tensor([3.0])).shape
        (True, torch.Size([1]))
    """

    heavy: Tensor
    centre: Tensor
    spread: Tensor
    indices: Tensor

    def __init__(self, heavy: Tensor, centre: Tensor, spread: Tensor, indices: Tensor) -> None:
        super().__init__(len(heavy))
        self.register_buffer("heavy", heavy.detach().clone())
        for name, value in {"centre": centre, "spread": spread, "indices": indices}.items():
            self.register_buffer(name, value.detach().clone())

    @classmethod
    def of(cls, u: Tensor) -> Tails | None:
        """Fitted to rows ``(n, dim)``; None if no column has heavy tails."""
        fits = [fit_tails(column) for column in u.unbind(-1)]
        if not any(fits):
            return None
        rows = torch.tensor([fit or (0.0, 1.0, 0.0, 0.0) for fit in fits]).to(u)
        heavy = torch.tensor([fit is not None for fit in fits], device=u.device)
        return cls(heavy, rows[:, 0], rows[:, 1], rows[:, 2:])

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Normal tails to heavy ones."""
        self.check(x, context)
        y, ladj = TAIL.forward_and_ladj(self._harmless(x), self.indices)
        y, ladj = self.centre + self.spread * y, ladj + self.spread.log()
        return torch.where(self.heavy, y, x), self._sum(ladj)

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Heavy tails to normal ones."""
        self.check(y, context)
        middle = self._harmless(y - self.centre) / self.spread
        x, ladj = TAIL.inverse_and_ladj(middle, self.indices)
        return torch.where(self.heavy, x, y), self._sum(ladj - self.spread.log())

    def _harmless(self, values: Tensor) -> Tensor:
        return torch.where(self.heavy, values, torch.zeros_like(values))

    def _sum(self, ladj: Tensor) -> Tensor:
        return torch.where(self.heavy, ladj, torch.zeros_like(ladj)).sum(-1)


def fit_tails(u: Tensor) -> tuple[float, float, float, float] | None:
    """Centre, spread and the two tail parameters of one column ``(n,)``; None if a normal does.

    Maximum likelihood of normal draws under the tail transform, and a normal is what it has to
    beat.
    """
    u = u.detach().double()
    centre, width = u.median(), _width(u)
    if not bool(((u - centre).abs().amax() > FAR * width) & (width > 0)):
        return None
    v = ((u - centre) / width)[:: -(-len(u) // MOST_ROWS)]
    params = torch.zeros(4, dtype=v.dtype, device=v.device, requires_grad=True)
    optimiser = torch.optim.LBFGS([params], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        scaled = (v - params[0]) * (-params[1]).exp()
        x, ladj = TAIL.inverse_and_ladj(scaled, params[2:].expand(len(v), 2))
        value = (0.5 * x.square() - ladj).mean() + params[1]
        value.backward()
        return value.detach()

    with torch.inference_mode(False), torch.enable_grad():
        optimiser.step(loss)
        reached = float(loss())
    normal = 0.5 + float(v.std(correction=0).log())
    if not normal - reached > GAIN:  # also where the fit failed
        return None
    shift, log_scale, left, right = params.detach().tolist()
    scale = float(width) * math.exp(log_scale)
    return float(centre) + float(width) * shift, scale, left, right


def _width(u: Tensor) -> Tensor:
    """Standard deviation by the quantiles of the middle, which no single value moves."""
    normal = torch.distributions.Normal(0.0, 1.0)
    ordered = u.sort().values
    for share in SHARES:
        low, high = (ordered[round((len(u) - 1) * (1 + sign * share) / 2)] for sign in (-1, 1))
        if bool(high > low):
            return (high - low) / (2 * normal.icdf(torch.tensor((1 + share) / 2)).item())
    return torch.zeros_like(ordered[0])
