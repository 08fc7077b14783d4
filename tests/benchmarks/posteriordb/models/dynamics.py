# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Differential equations: lotka_volterra and one_comp_mm_elim_abs.

They are solved by the classical Runge-Kutta method on a fixed grid, for all particles at once.
Where a solution leaves what it should be (a population below 0, an overflow), Stan rejects; here
the log joint is NaN or -inf. The likelihoods don't validate their parameters: that would raise
for all particles because of one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from .common import Data, Entries, Port, vector

# The largest error in the log joint, over the reference draws, is 9e-5 with 10 steps a year for
# the lynx and hares, and 2e-5 with the steps below for the drug.
YEARLY_STEPS = 10
FIRST_STEPS, LATER_STEPS = 20, 4


def runge_kutta(
    slope: Callable[[float, Tensor], Tensor], state: Tensor, grid: list[float]
) -> list[Tensor]:
    """Gives the state at each point of the grid, the first included."""
    states = [state]
    for start, stop in pairwise(grid):
        step = stop - start
        middle = start + 0.5 * step
        k1 = slope(start, state)
        k2 = slope(middle, torch.add(state, k1, alpha=0.5 * step))
        k3 = slope(middle, torch.add(state, k2, alpha=0.5 * step))
        k4 = slope(stop, torch.add(state, k3, alpha=step))
        total = torch.add(k1, k2 + k3, alpha=2.0) + k4
        state = torch.add(state, total, alpha=step / 6.0)
        states.append(state)
    return states


def log_normal(loc: Tensor, scale: Tensor) -> dist.TransformedDistribution:
    """A log-normal that isn't validated; ``dist.LogNormal`` always validates its parameters."""
    normal = dist.Normal(loc, scale, validate_args=False)
    return dist.TransformedDistribution(
        normal, dist.transforms.ExpTransform(), validate_args=False
    )


# Models


def lotka_volterra(y_init: Tensor, y: Tensor, grid: list[float]) -> None:
    """Hares and lynx: du/dt = (alpha - beta v) u, dv/dt = (-gamma + delta u) v.

    As in Stan, the priors of the four rates are not normalised anew above 0.

    Args:
        y_init: The pelts of both at time 0.
        y: The pelts in later years, ``(N, 2)``.
        grid: The solver's times, a whole number of steps for each year.
    """
    theta = pyro.sample("theta", dist.ImproperUniform(constraints.positive, (), (4,)))
    prior = dist.Normal(y.new_tensor([1.0, 0.05, 1.0, 0.05]), y.new_tensor([0.5, 0.05, 0.5, 0.05]))
    pyro.sample("theta_prior", prior.to_event(1), obs=theta)
    z_init = pyro.sample(
        "z_init", dist.LogNormal(y.new_full((2,), math.log(10.0)), 1.0).to_event(1)
    )
    sigma = pyro.sample("sigma", dist.LogNormal(-y.new_ones(2), 1.0).to_event(1))

    sign = y.new_tensor([1.0, -1.0])
    growth, interaction = theta[..., ::2] * sign, theta[..., 1::2] * sign

    def slope(time: float, z: Tensor) -> Tensor:
        return (growth - interaction * z.flip(-1)) * z

    states = runge_kutta(slope, z_init, grid)
    every = (len(grid) - 1) // len(y)
    z = torch.stack(states[every::every], -2)
    pyro.sample("y_init", dist.LogNormal(z_init.log(), sigma).to_event(1), obs=y_init)
    pyro.sample("y", log_normal(z.log(), sigma.unsqueeze(-2)).to_event(2), obs=y)


def one_compartment(
    c_hat: Tensor, grid: list[float], observed: list[int], dose: float, volume: float
) -> None:
    """A drug that is absorbed at rate ``k_a`` and eliminated as Michaelis and Menten say.

    Args:
        c_hat: The measured concentrations.
        grid: The solver's times.
        observed: Where on the grid the measurements are.
        dose: The drug given at time 0, in mg.
        volume: The compartment's volume, in litres.
    """
    unit = c_hat.new_tensor(1.0)
    k_a, k_m, v_m, sigma = (
        pyro.sample(name, dist.HalfCauchy(unit)) for name in ("k_a", "K_m", "V_m", "sigma")
    )

    def slope(time: float, c: Tensor) -> Tensor:
        absorbed = (-k_a * time).exp() * (dose / volume) * k_a
        return absorbed - v_m / volume * c / (k_m + c)

    states = runge_kutta(slope, torch.zeros_like(k_a), grid)
    c = torch.stack([states[i] for i in observed], -1)
    pyro.sample("C_hat", log_normal(c.log(), sigma.unsqueeze(-1)).to_event(1), obs=c_hat)


# Builders


def _lotka_volterra(data: Data) -> Port:
    count = len(data["ts"]) * YEARLY_STEPS
    grid = [step / YEARLY_STEPS for step in range(count + 1)]
    return Port(lotka_volterra, (vector(data["y_init"]), vector(data["y"]), grid))


def _one_compartment(data: Data) -> Port:
    times = data["times"]
    # The concentration starts at 0, where elimination is stiff if K_m is small: the steps grow
    # from 6e-5 days on.
    grid = [times[0] * (step / FIRST_STEPS) ** 3 for step in range(FIRST_STEPS + 1)]
    for start, stop in pairwise(times):
        parts = range(1, LATER_STEPS + 1)
        grid += [start + (stop - start) * part / LATER_STEPS for part in parts]
    observed = [FIRST_STEPS + LATER_STEPS * n for n in range(len(times))]
    args = (vector(data["C_hat"]), grid, observed, float(data["D"]), float(data["V"]))
    return Port(one_compartment, args)


ENTRIES: Entries = {
    "lotka_volterra": ("hudson_lynx_hare-lotka_volterra", _lotka_volterra),
    "one_comp_mm_elim_abs": ("one_comp_mm_elim_abs-one_comp_mm_elim_abs", _one_compartment),
}
