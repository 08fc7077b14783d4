# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Columns whose values run far out: power-law tails, brought to normal ones."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from pyro_flows.ops import fit_gaussians
from pyro_flows.transforms import Layer, TailTransform

# Tails up to those of a squared Cauchy.
TAIL = TailTransform(heaviest=2.0)
# Values a column must have beyond so many deviations of its middle half to be looked at closer:
# a normal has none, and below that splines do well.
FAR = 20.0
# By how many nats a row power-law tails must beat a normal density.
GAIN = 0.5
# Rows that the four numbers of a column are fitted to.
MOST_ROWS = 5_000
# Share of a column's deviation below which what happens is lost on a flow.
NARROW = 1 / 500
# Parameters of tail indices of about 0.1, 0.5, 1 and 1.9.
STARTS = (-3.0, -1.1, 0.0, 3.0)
RESTARTS, CHANGE = 5, 1e-3
HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)
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
        rows = u.new_tensor([fit or (0.0, 1.0, 0.0, 0.0) for fit in fits])
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
    """Centre, spread and the two tail parameters of one column ``(n,)``; None if it needs none.

    Maximum likelihood of normal draws under the tail transform. It has to beat a normal clearly,
    and two normals at all: a second cluster of values is no tail.

    Cost: some 50 ms, once.
    """
    u = u.detach().double()
    ordered = u.sort().values
    centre, width = ordered[(len(u) - 1) // 2], middle_width(ordered)
    farthest = float(torch.maximum(ordered[-1] - centre, centre - ordered[0]) / width)
    if not FAR < farthest < math.sqrt(torch.finfo(u.dtype).max) / len(u):  # with squares in reach
        return None
    # Order statistics, the ends among them: few rows then say what all of them do.
    chosen = torch.linspace(0, len(u) - 1, min(len(u), MOST_ROWS), device=u.device).long()
    v = (ordered[chosen] - centre) / width
    with torch.inference_mode(False), torch.enable_grad():
        params, reached = _maximise(v.clone())
    one, two = (_by_normals(v, count) for count in (1, 2))
    if not (reached < one - GAIN and reached < two):  # also where the fit failed
        return None
    shift, log_scale, left, right = params.tolist()
    scale = float(width) * math.exp(log_scale)
    return float(centre) + float(width) * shift, scale, left, right


def _maximise(v: Tensor) -> tuple[Tensor, float]:
    """Shift, log scale and tail parameters, and the mean negative log likelihood reached.

    Infinite if the optimiser never moved, as where many rows share one value.
    """

    def loss(params: Tensor) -> Tensor:
        scaled = (v - params[0]) * (-params[1]).exp()
        x, ladj = TAIL.inverse_and_ladj(scaled, params[2:].expand(len(v), 2))
        return (0.5 * x.square() - ladj).mean() + params[1] + HALF_LOG_TWO_PI

    def step() -> Tensor:
        params.grad = None
        value = loss(params)
        value.backward()
        return value.detach()

    # Far values are beyond what light tails can be moved by: begin with tails that reach them.
    starts = [v.new_tensor([0.0, 0.0, left, right]) for left in STARTS for right in STARTS]
    with torch.no_grad():
        params = min(starts, key=lambda start: float(loss(start).nan_to_num(math.inf)))
    params.requires_grad_()
    first = reached = float(step())
    for _ in range(RESTARTS):  # a line search can end at a step too long; a new one goes on
        before = reached
        optimiser = torch.optim.LBFGS([params], max_iter=60, line_search_fn="strong_wolfe")
        optimiser.step(step)
        reached = float(step())
        if not before - reached > CHANGE:
            break
    return params.detach(), reached if first - reached > CHANGE else math.inf


def _by_normals(v: Tensor, count: int) -> float:
    """Mean negative log likelihood of so many normals, none too narrow for a flow to see."""
    x = v.unsqueeze(-1)
    return -float(fit_gaussians(x, count, ridge=NARROW**2).log_prob(x).mean())


def middle_width(ordered: Tensor) -> Tensor:
    """Standard deviation by quantiles of the middle of sorted values; no single one moves it."""
    for share in SHARES:
        low, high = (ordered[round((len(ordered) - 1) * (1 + s * share) / 2)] for s in (-1, 1))
        if bool(high > low):
            return (high - low) / (2 * NormalDist().inv_cdf((1 + share) / 2))
    return torch.zeros_like(ordered[0])


def squeezed_columns(z: Tensor) -> list[int]:
    """Columns of standardised rows where values far out leave next to no room for the rest."""
    widths = [float(middle_width(column.sort().values)) for column in z.unbind(-1)]
    return [i for i, width in enumerate(widths) if width < NARROW]
