# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The continuous layer: points flow along a vector field for a unit of time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from pyro_flows.errors import OptionError, ShapeError
from pyro_flows.nn import VectorField
from pyro_flows.nn.sizes import is_size
from pyro_flows.ops import (
    contraction_inverse,
    integrate,
    integrate_adaptive,
    log_det,
    near_identity_inverse,
    rademacher,
    runge_kutta_step,
)
from pyro_flows.ops.ode import ADAPTIVE, TABLEAUS, Derivative, State
from pyro_flows.transforms.base import Layer

MODES = ("exact", "stochastic")
# Evaluations of a step's inverse where operations are recorded: it starts very close.
RECORDED = 6
# What one step may stretch differences by, beyond the identity, where the inverse has no Jacobian.
RATE = 0.5


class ContinuousFlow(Layer):
    """``y = z(1)`` where ``dz/dt = f(z, t, context)`` from ``z(0) = x``, ``f`` a network.

    By default the layer is the *discrete* map of ``steps`` Runge-Kutta steps, each one a bijection
    close to the identity, and not an approximation of something else: ``ladj`` is the
    log-determinant of that map (tangents are pushed through its stages, which costs as much as
    the exact trace does), and the inverse undoes each step by Newton's method from the step
    backwards. So the density is exact for any number of steps; more of them only bring it closer
    to the equation's. Steps are of one size: where an error estimate over the batch chooses
    them, an element's density depends on its batch mates.

    Args:
        dim: number of coordinates.
        context_dim: with a context the field depends on it.
        hidden_dims: widths of the hidden layers of the field.
        steps: number of steps. Each should move neighbours by less than their distance
            (``|df/dz| < steps``): a step that folds space gives a ``ladj`` of NaN, or an inverse
            that is not found.
        solver: ``"rk4"``, ``"midpoint"`` or ``"euler"``; or torchdiffeq's ``"dopri5"``,
            ``"dopri8"`` or ``"bosh3"`` (``pip install pyro-flows[ode]``), which are as exact as
            their tolerance, both ways, and choose their steps by the batch.
        log_det: ``"exact"``, by ``dim`` tangents; or ``"stochastic"``: the trace estimated by
            Hutchinson's method with one random vector per value, held for the whole solve, for
            hundreds of dimensions. Its mean is the integrated trace, which differs from the
            discrete map's log-determinant by the solver's error. It draws from torch's global
            generator in every call, in ``train()`` and ``eval()``.
        rtol: relative tolerance of an adaptive solver.
        atol: absolute tolerance of an adaptive solver.

    Raises:
        OptionError: no such solver or mode, or no step.
        ImportError: torchdiffeq is not installed, when an adaptive solver is called.
        NotConvergedError: by the inverse, where a step folds space.
        DerivativeError: by a second derivative of the inverse in stochastic mode.

    Cost: ``rk4`` evaluates the field 4 times a step forward, with ``dim`` tangents each time, and
    a determinant of O(dim^3) a step. The inverse costs about 4 times as much: 3 or 4 evaluations
    of each step; its gradient is that of the implicit function theorem, right to second order.
    Stochastic: one tangent, no determinant; the inverse then iterates each step's fixed point, and
    refuses second derivatives.

    When: with :meth:`flow_matching_loss`, which trains on data without solving anything; smooth
    densities without any preferred order of coordinates. Slow to score and to sample.

    Reference: Chen et al., Neural ordinary differential equations, 2018,
    https://arxiv.org/abs/1806.07366; Grathwohl et al., FFJORD, 2018,
    https://arxiv.org/abs/1810.01367

    Example:
        >>> layer = transforms.ContinuousFlow(2, hidden_dims=(16,), steps=4)
        >>> x = torch.randn(5, 2)
        >>> y, ladj = layer.forward_and_ladj(x)
        >>> torch.equal(y, x), torch.allclose(layer.inv(y), x), ladj.shape
        (True, True, torch.Size([5]))
    """

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        *,
        hidden_dims: Sequence[int] = (64, 64),
        steps: int = 8,
        solver: str = "rk4",
        log_det: str = "exact",
        rtol: float = 1e-6,
        atol: float = 1e-6,
    ) -> None:
        super().__init__(dim, context_dim)
        _require_known("solver", solver, (*TABLEAUS, *ADAPTIVE))
        _require_known("log_det", log_det, MODES)
        if not is_size(steps):
            raise OptionError(
                f"ContinuousFlow expected at least 1 step, but got steps={steps!r}. 8 is usual."
            )
        self.field = VectorField(dim, context_dim, hidden_dims)
        self.steps, self.solver, self.log_det = steps, solver, log_det
        self.rtol, self.atol = rtol, atol

    def extra_repr(self) -> str:
        """Sizes and solver, for ``print``."""
        options = f"steps={self.steps}, solver={self.solver!r}, log_det={self.log_det!r}"
        return f"{super().extra_repr()}, {options}"

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Flow from time 0 to time 1."""
        z, context = self._together(x, context)
        if self.solver in ADAPTIVE or self.log_det == "stochastic":
            return self._solve(z, context, 0.0, 1.0)
        total = torch.zeros_like(z[..., 0])
        for i in range(self.steps):
            z, jacobian = self._step(i, context, z)
            total = total + log_det(jacobian)
        return z, total

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Flow from time 1 back to time 0, undoing each step of the forward direction."""
        z, context = self._together(y, context)
        if self.solver in ADAPTIVE:
            return self._solve(z, context, 1.0, 0.0)
        if self.log_det == "stochastic":
            for i in reversed(range(self.steps)):
                z = self._undo_by_fixed_point(i, context, z)
            return z, -self._solve(z, context, 0.0, 1.0)[1]
        total = torch.zeros_like(z[..., 0])
        for i in reversed(range(self.steps)):
            start = self._backwards(i, context, z)
            step = partial(self._step, i, context)
            z, ladj = near_identity_inverse(step, z, start, recorded=RECORDED)
            total = total + ladj
        return z, total

    def flow_matching_loss(
        self,
        base_sample: Tensor,
        data: Tensor,
        context: Tensor | None = None,
        *,
        times: Tensor | None = None,
    ) -> Tensor:
        """Squared error of the field against straight lines from base samples to data.

        ``|f(x_t, t) - (x_1 - x_0)|^2`` at ``x_t = (1 - t) x_0 + t x_1``. Its minimiser moves the
        base distribution onto that of the data. No equation is solved, so a step of training
        costs one pass of the network. The two samples must be drawn independently of each other.

        Args:
            base_sample: ``x_0``, of the base distribution, shape ``(*, dim)``.
            data: ``x_1``, of the same shape.
            context: shape ``(*, context_dim)``.
            times: ``t`` in [0, 1], shape ``(*)``; by default evenly spread over the batch from a
                random start, so that each is uniform and together they vary little.

        Returns:
            The loss of each pair, shape ``(*)``: weigh and average as you like.

        Raises:
            ShapeError: base sample and data have different shapes.

        Reference: Lipman et al., Flow matching for generative modeling, 2022,
        https://arxiv.org/abs/2210.02747

        Example:
            >>> layer = transforms.ContinuousFlow(2, hidden_dims=(16,))
            >>> data = torch.randn(100, 2) + 3
            >>> layer.flow_matching_loss(torch.randn(100, 2), data).shape
            torch.Size([100])
        """
        self.check(data, context)
        if base_sample.shape != data.shape:
            raise ShapeError(
                f"flow_matching_loss expected a base sample for each value of shape "
                f"{tuple(data.shape)}, but got {tuple(base_sample.shape)}. Draw it with "
                "torch.randn_like(data)."
            )
        if times is None:
            count = data[..., 0].numel()
            even = torch.arange(count, dtype=data.dtype, device=data.device) / max(count, 1)
            start = torch.rand((), dtype=data.dtype, device=data.device)
            times = ((even + start) % 1).reshape(data.shape[:-1])
        t = times.unsqueeze(-1)
        point, context = self._together(base_sample + t * (data - base_sample), context)
        return (self.field(t, point, context) - (data - base_sample)).square().sum(-1)

    def _together(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Value and context over the same batch."""
        self.check(x, context)
        if context is None:
            return x, None
        batch = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
        return x.expand(*batch, -1), context.expand(*batch, -1)

    def _times(self, i: int) -> tuple[float, float, float]:
        """Where step ``i`` begins and ends, and how long it is."""
        return i / self.steps, (i + 1) / self.steps, 1 / self.steps

    def _step(self, i: int, context: Tensor | None, z: Tensor) -> tuple[Tensor, Tensor]:
        """Step ``i`` from ``z``, and its transposed Jacobian."""
        eye = torch.eye(self.dim, dtype=z.dtype, device=z.device)
        moved, rows = self._step_along(i, context, z, eye)
        return moved, rows

    def _step_along(self, i: int, context: Tensor | None, z: Tensor, rows: Tensor) -> State:
        def derivative(t: float, state: State) -> State:
            return self.field.push(t, state[0], context, state[1])

        start, _, h = self._times(i)
        return runge_kutta_step(derivative, start, (z, rows), h, self.solver)

    def _move(self, context: Tensor | None, z: Tensor, start: float, h: float) -> Tensor:
        def derivative(t: float, state: State) -> State:
            return (self.field(t, state[0], context),)

        return runge_kutta_step(derivative, start, (z,), h, self.solver)[0]

    @torch.no_grad()
    def _backwards(self, i: int, context: Tensor | None, z: Tensor) -> Tensor:
        """A step back in time: close to the inverse of step ``i``, so that to start at."""
        _, stop, h = self._times(i)
        return self._move(context, z, stop, -h)

    def _undo_by_fixed_point(self, i: int, context: Tensor | None, y: Tensor) -> Tensor:
        start, _, h = self._times(i)

        def along(x: Tensor, v: Tensor) -> Tensor:
            rows = self._step_along(i, context, x, v.unsqueeze(-2))[1]
            return rows.squeeze(-2) - v

        return contraction_inverse(
            lambda x: self._move(context, x, start, h) - x,
            along,
            y,
            self._backwards(i, context, y),
            RATE,
        )

    def _solve(
        self, z: Tensor, context: Tensor | None, start: float, stop: float
    ) -> tuple[Tensor, Tensor]:
        """Value and integrated trace, solved together."""
        state = z, torch.zeros_like(z[..., 0])
        derivative = self._with_trace(z, context)
        if self.solver in ADAPTIVE:
            tolerance = {"rtol": self.rtol, "atol": self.atol}
            z, ladj = integrate_adaptive(
                derivative, state, start, stop, solver=self.solver, **tolerance
            )
        else:
            z, ladj = integrate(
                derivative, state, start, stop, steps=self.steps, solver=self.solver
            )
        return z, ladj

    def _with_trace(self, z: Tensor, context: Tensor | None) -> Derivative:
        if self.log_det == "stochastic":
            noise = rademacher(z).unsqueeze(-2)
        else:
            noise = torch.eye(self.dim, dtype=z.dtype, device=z.device)

        def derivative(t: float, state: State) -> State:
            velocity, rows = self.field.push(t, state[0], context, noise)
            return velocity, (rows * noise).sum((-2, -1)) + torch.zeros_like(state[1])

        return derivative


def _require_known(option: str, got: str, known: Sequence[str]) -> None:
    if got not in known:
        raise OptionError(
            f"ContinuousFlow expected {option} to be one of {', '.join(known)}, but got {got!r}. "
            f"The default is {'rk4' if option == 'solver' else known[0]!r}."
        )
