# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What the synthetic targets share: densities with exact draws, in a natural and an opaque form.

The opaque form is a flat prior and one ``pyro.factor``: nothing of the model's structure shows,
and sampling from its prior can't give the answer away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from .target import Model, Modes, Target

Sampler: TypeAlias = Callable[[np.random.Generator, int], np.ndarray]

N_DRAWS = 40_000  # exact draws handed out as reference
SEED = 20_260


def zero() -> Tensor:
    """A float64 zero: the first argument of a site's distribution, which sets its dtype."""
    return torch.zeros((), dtype=torch.float64)


def opaque(
    log_density: Callable[[Tensor], Tensor],
    dim: int,
    support: constraints.Constraint = constraints.real,
) -> Model:
    """Makes a model of one site ``z``, flat on its support, and one factor.

    Args:
        log_density: From ``(..., dim)``, in float64, to ``(...)``.
        dim: The size of ``z``.
        support: The support of ``z``: the real line, or a stated box.
    """

    def model() -> None:
        z = pyro.sample("z", dist.ImproperUniform(support, (), (dim,)))
        # A flat prior has no dtype of its own: it is the density that asks for float64.
        pyro.factor("log_density", log_density(z.to(torch.float64)))

    return model


@dataclass(frozen=True)
class Density:
    """A density on unconstrained vectors that can be sampled exactly.

    Attributes:
        dim: The number of coordinates.
        log_density: From ``(..., dim)`` to ``(...)``.
        sample: Exact draws ``(n, dim)`` from a generator and n.
        log_z: The log of the density's integral.
        modes: Its modes, where it has several.
        natural: The same density as a model of ordinary sites, if it has such a form.
        sites: From vectors ``(n, dim)`` to the values of the natural model's sites.
    """

    dim: int
    log_density: Callable[[Tensor], Tensor]
    sample: Sampler
    log_z: float = 0.0
    modes: Modes | None = None
    natural: Model | None = None
    sites: Callable[[np.ndarray], dict[str, np.ndarray]] = lambda z: {"z": z}

    def draws(self) -> np.ndarray:
        """Gives the reference draws, the same ones at each call."""
        return self.sample(np.random.default_rng(SEED), N_DRAWS)


def both_forms(name: str, density: Density, group: str) -> dict[str, Target]:
    """Gives the targets ``name``, where there is a natural form, and ``name_opaque``."""
    made = {}
    if density.natural is not None:
        made[name] = Target(
            name,
            density.natural,
            log_z=density.log_z,
            modes=density.modes,
            group=group,
            _read_reference=lambda: density.sites(density.draws()),
        )
    made[f"{name}_opaque"] = Target(
        f"{name}_opaque",
        opaque(density.log_density, density.dim),
        log_z=density.log_z,
        modes=density.modes,
        opaque=True,
        group=group,
        _read_reference=lambda: {"z": density.draws()},
    )
    return made


@dataclass(frozen=True)
class Grid:
    """Quadrature of, and draws from, a density in at most three dimensions.

    Attributes:
        log_density: From points ``(n, dim)`` to ``(n,)``; -inf and NaN count as no mass.
        bounds: The low and high end in each dimension.
        size: The number of cells in each dimension.
    """

    log_density: Callable[[Tensor], Tensor]
    bounds: tuple[tuple[float, float], ...]
    size: int

    def log_z(self) -> float:
        """Gives the log of the integral, by the midpoint rule."""
        _, log_mass = self._cells()
        return float(torch.logsumexp(log_mass, 0))

    def draws(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draws a cell by its mass, then a point uniformly in the cell."""
        points, log_mass = self._cells()
        total = torch.softmax(log_mass, 0).cumsum(0).numpy()
        chosen = np.searchsorted(total / total[-1], rng.random(count), side="right")
        jitter = (rng.random((count, len(self.bounds))) - 0.5) * self._steps().numpy()
        return points[torch.from_numpy(chosen)].numpy() + jitter

    def _steps(self) -> Tensor:
        ends = torch.tensor(self.bounds, dtype=torch.float64)
        return (ends[:, 1] - ends[:, 0]) / self.size

    def _cells(self) -> tuple[Tensor, Tensor]:
        middles = torch.arange(self.size, dtype=torch.float64) + 0.5
        axes = [
            low + step * middles for (low, _), step in zip(self.bounds, self._steps(), strict=True)
        ]
        points = torch.cartesian_prod(*axes).reshape(-1, len(axes))
        log_mass = self.log_density(points) + self._steps().log().sum()
        return points, torch.where(log_mass.isnan(), -torch.inf, log_mass)


def by_grid(
    target: Target,
    log_z: float,
    bounds: tuple[tuple[float, float], ...],
    to_sites: Callable[[np.ndarray], dict[str, np.ndarray]],
) -> Target:
    """Adds log Z, and draws from a grid of 500 cells in each of two dimensions.

    Args:
        target: The target, still without them.
        log_z: Its log Z.
        bounds: The grid's ends.
        to_sites: From points of the grid to site values; as a map to the unconstrained vector it
            has a Jacobian of 1.
    """

    def log_density(points: Tensor) -> Tensor:
        z = target.unconstrain(to_sites(points.numpy()))
        return target.log_joint(z, chunk_size=50_000)

    def read() -> dict[str, np.ndarray]:
        grid = Grid(log_density, bounds, 500)
        return to_sites(grid.draws(np.random.default_rng(SEED), N_DRAWS))

    return replace(target, log_z=log_z, _read_reference=read)
