# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Solvers of ordinary differential equations: fixed steps of our own, adaptive ones borrowed."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

State = tuple[Tensor, ...]
#: ``(t, state) -> d state / dt``, of the state's shapes.
Derivative = Callable[[float, State], State]


class Tableau(NamedTuple):
    """An explicit Runge-Kutta method: each stage's shares of the earlier ones, and the step's."""

    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    order: int


#: The fixed-step methods by name.
TABLEAUS = {
    "euler": Tableau(((),), (1.0,), 1),
    "midpoint": Tableau(((), (0.5,)), (0.0, 1.0), 2),
    "rk4": Tableau(((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), 4),
}
#: The adaptive ones, by torchdiffeq.
ADAPTIVE = ("dopri5", "dopri8", "bosh3")


def runge_kutta_step(
    derivative: Derivative, t: float, state: State, h: float, solver: str = "rk4"
) -> State:
    """One step from ``t`` to ``t + h``.

    Args:
        derivative: ``(t, state) -> d state / dt``.
        t: the time.
        state: tensors of any shapes, solved together.
        h: the step, of either sign.
        solver: a name in ``TABLEAUS``.

    Returns:
        The state at ``t + h``, in error by O(h^(order + 1)).

    Cost: 1 (``euler``), 2 (``midpoint``) or 4 (``rk4``) evaluations.

    Example:
        >>> (x,) = runge_kutta_step(lambda t, s: (-s[0],), 0.0, (torch.ones(()),), 0.1)
        >>> abs(x - torch.tensor(-0.1).exp()) < 1e-6
        tensor(True)
    """
    tableau = TABLEAUS[solver]
    slopes: list[State] = []
    for shares in tableau.stages:
        slopes.append(derivative(t + h * sum(shares), _moved(state, slopes, shares, h)))
    return _moved(state, slopes, tableau.weights, h)


def _moved(state: State, slopes: list[State], shares: tuple[float, ...], h: float) -> State:
    for share, slope in zip(shares, slopes, strict=True):
        if share:
            state = tuple(x + h * share * dx for x, dx in zip(state, slope, strict=True))
    return state


def integrate(
    derivative: Derivative,
    state: State,
    start: float,
    stop: float,
    *,
    steps: int,
    solver: str = "rk4",
) -> State:
    """Integrate with steps of one size, the same for every element of a batch.

    An adaptive step is chosen by the error over the batch, so that an element's answer depends on
    its batch mates; this one can't.

    Args:
        derivative: ``(t, state) -> d state / dt``.
        state: tensors of any shapes, at ``start``.
        start: the time to begin at.
        stop: the time to end at, before or after ``start``.
        steps: number of steps.
        solver: ``"euler"``, ``"midpoint"`` or ``"rk4"``.

    Returns:
        The state at ``stop``, in error by O(steps^-order).

    Example:
        >>> (x,) = integrate(lambda t, s: (2 * t + 0 * s[0],), (torch.zeros(3),), 0, 2, steps=4)
        >>> torch.allclose(x, torch.tensor(4.0))
        True
    """
    h = (stop - start) / steps
    for i in range(steps):
        state = runge_kutta_step(derivative, start + i * h, state, h, solver)
    return state


def integrate_adaptive(
    derivative: Derivative,
    state: State,
    start: float,
    stop: float,
    *,
    solver: str = "dopri5",
    rtol: float = 1e-6,
    atol: float = 1e-6,
) -> State:
    """Integrate with steps chosen by an error estimate over the whole state, by torchdiffeq.

    Args:
        derivative: ``(t, state) -> d state / dt``.
        state: tensors of any shapes, at ``start``.
        start: the time to begin at.
        stop: the time to end at.
        solver: a name in ``ADAPTIVE``.
        rtol: relative tolerance.
        atol: absolute tolerance.

    Returns:
        The state at ``stop``.

    Raises:
        ImportError: torchdiffeq is not installed.
    """
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        raise ImportError(
            f"The solver {solver!r} expected the package torchdiffeq, which is not installed. Run "
            f"`pip install pyro-flows[ode]`, or take a fixed-step solver: {', '.join(TABLEAUS)}."
        ) from error
    times = torch.tensor([start, stop], dtype=state[0].dtype, device=state[0].device)
    path = odeint(derivative, state, times, method=solver, rtol=rtol, atol=atol)
    return tuple(x[-1] for x in path)
