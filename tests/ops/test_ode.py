# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Solvers against equations with a known solution."""

import math
import re
import sys

import pytest
import torch

from pyro_flows.ops import integrate, integrate_adaptive, runge_kutta_step
from pyro_flows.ops.ode import TABLEAUS


def spiral(t, state):
    """A turn that slows down, and its angle: ``z(1) = R(sin 1) z(0)``."""
    x, y, angle = state
    speed = math.cos(t)
    return -speed * y, speed * x, speed + 0 * angle


def solved(solver, steps, start=0.0, stop=1.0):
    state = torch.tensor([1.0]), torch.tensor([0.5]), torch.zeros(2)
    return integrate(spiral, state, start, stop, steps=steps, solver=solver)


@pytest.mark.parametrize("solver", TABLEAUS)
def test_order_of_convergence(solver):
    angle = math.sin(1.0)
    exact = math.cos(angle) - 0.5 * math.sin(angle), math.sin(angle) + 0.5 * math.cos(angle)
    errors = []
    for steps in (20, 40):
        x, y, total = solved(solver, steps)
        errors.append(math.hypot(x.item() - exact[0], y.item() - exact[1]))
        assert total.shape == (2,)
    rate = math.log2(errors[0] / errors[1])
    assert abs(rate - TABLEAUS[solver].order) < 0.15
    if solver == "rk4":
        assert errors[0] < 1e-7


def test_tableaus_are_consistent():
    for tableau in TABLEAUS.values():
        assert len(tableau.stages) == len(tableau.weights)
        assert sum(tableau.weights) == pytest.approx(1)
        for i, shares in enumerate(tableau.stages):
            assert len(shares) == i


def test_time_runs_backwards_too():
    there = solved("rk4", 50)
    back = integrate(spiral, there, 1.0, 0.0, steps=50)
    assert torch.allclose(back[0], torch.tensor([1.0]), atol=1e-7)
    assert torch.allclose(back[1], torch.tensor([0.5]), atol=1e-7)


def test_one_step_of_rk4_is_the_taylor_polynomial():
    h = 0.3
    (x,) = runge_kutta_step(lambda t, s: s, 0.0, (torch.ones(()),), h)
    assert x.item() == pytest.approx(1 + h + h**2 / 2 + h**3 / 6 + h**4 / 24, abs=1e-15)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    text = (
        "The solver 'dopri8' expected the package torchdiffeq, which is not installed. Run "
        "`pip install pyro-flows[ode]`, or take a fixed-step solver: euler, midpoint, rk4."
    )
    with pytest.raises(ImportError, match=re.escape(text)):
        integrate_adaptive(spiral, (torch.zeros(1),) * 3, 0.0, 1.0, solver="dopri8")


@pytest.mark.parametrize("solver", ["dopri5", "dopri8", "bosh3"])
def test_adaptive_solvers(solver):
    pytest.importorskip("torchdiffeq")
    state = torch.tensor([1.0]), torch.tensor([0.5]), torch.zeros(2)
    x, y, _ = integrate_adaptive(spiral, state, 0.0, 1.0, solver=solver, rtol=1e-9, atol=1e-9)
    exact = solved("rk4", 400)
    assert torch.allclose(x, exact[0], atol=1e-7)
    assert torch.allclose(y, exact[1], atol=1e-7)
