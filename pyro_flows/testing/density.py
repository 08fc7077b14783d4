# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Laws of density: it integrates to one, samples follow it, sampling and scoring agree."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import biject_to

from pyro_flows.distributions import Flow
from pyro_flows.testing.case import Case, Pair, directions, double, in_double, jacobian

INTEGRAL = {1: 1e-3, 2: 2e-2}


def integrates_to_one(case: Case) -> str | None:
    """In one and two dimensions the density integrates to 1, of the layer and of its inverse."""
    if case.dim > 2:
        return "quadrature is for one and two dimensions"
    maps = directions(in_double(case.layer()), double(case.one_context()))
    for name, there, back in (
        ("the layer", "forward", "inverse"),
        ("its inverse", "inverse", "forward"),
    ):
        total = _quadrature(case, maps, there, back)[1].sum()
        case.require(
            abs(total - 1) < INTEGRAL[case.dim],
            f"The density of a standard normal pushed through {name} should integrate to 1, "
            f"but does to {total:.6f}.",
        )
    return None


def samples_follow_density(case: Case) -> str | None:
    """Samples pass Kolmogorov-Smirnov tests on projections against the density (1-D and 2-D)."""
    if case.dim > 2:
        return "quadrature is for one and two dimensions; above, round trip and log-det imply it"
    maps = directions(in_double(case.layer()), double(case.one_context()))
    points, mass = _quadrature(case, maps, "forward", "inverse")
    samples = maps["forward"](case.moved_into("forward", _noise(case, 2000)))[0].detach()
    # Off the axes, where whole rows of the grid would fall on one place.
    angles = 0.3 + torch.arange(4, dtype=torch.float64) * torch.pi / 4
    for angle in angles[:1] * 0 if case.dim == 1 else angles:
        direction = torch.stack([angle.cos(), angle.sin()])[: case.dim]
        place, order = (points @ direction).sort()
        cumulative = (mass[order].cumsum(0) - 0.5 * mass[order]) / mass.sum()
        drawn = (samples @ direction).sort()[0]
        below = cumulative[(torch.searchsorted(place, drawn) - 1).clamp_min(0)]
        rank = torch.arange(1, len(drawn) + 1, dtype=torch.float64) / len(drawn)
        distance = (below - rank).abs().max() * len(drawn) ** 0.5
        case.require(
            distance < 2.5,  # above it once in 100,000 tests
            f"Samples should follow the density, but along {direction.tolist()} the root-n "
            f"Kolmogorov-Smirnov distance is {distance:.2f}, above 2.5.",
        )
    return None


def scores_its_samples(case: Case) -> None:
    """``rsample_and_log_prob`` equals ``log_prob`` of the sample: Flow and Pyro's own class."""
    layer, context = case.layer(), case.context()
    flow = Flow([layer], None if case.is_real() else _Base(case)).to(case.dtype)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(case.seed)
        value, log_prob = flow(context).rsample_and_log_prob((5,))
    tolerance = _score_tolerance(case, value, context)
    for name, again in (
        ("Flow", flow(context).log_prob(value.clone())),
        ("TransformedDistribution", case.distribution(layer, context).log_prob(value.clone())),
    ):
        case.require_close(again, log_prob, tolerance, f"log_prob by {name}", "that of the draw")
    shape = (5, *(case.batch_shape if case.context_dim else ()), case.dim)
    case.require(
        value.shape == shape,
        f"A draw of 5 should have shape {shape}, but has {tuple(value.shape)}.",
    )


class _Base(nn.Module):
    """The laws' base distribution as a module, for a layer whose domain isn't the real line."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        return self.case.base(self.case.dtype)


def _score_tolerance(case: Case, value: Tensor, context: Tensor | None) -> float:
    """100 eps times the slope of the log density and the condition, at least the ladj's 1e-8."""
    exact = directions(in_double(case.layer()), double(context))["inverse"]
    slopes = jacobian(exact, value.double())
    condition = float(torch.linalg.matrix_norm(slopes, ord=2).clamp_min(1).max())
    floor = 1e-8 if case.dtype == torch.float64 else 1e-4
    return max(floor, 100 * case.eps * condition)


def _noise(case: Case, count: int) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(4000 + case.seed)
    return torch.randn(count, case.dim, generator=generator, dtype=torch.float64)


@torch.no_grad()
def _quadrature(case: Case, maps: dict[str, Pair], there: str, back: str) -> tuple[Tensor, Tensor]:
    """Points ``(n, dim)`` and the probability each stands for, ``(n,)``, by the trapezoid rule.

    Of a standard normal, moved into the space that ``there`` takes, and pushed through it. The
    grid lives in real coordinates of the space that ``there`` leads to. Its box holds 20,000
    samples of a normal wider than the base, and so all but a trifle.
    """
    source, target = biject_to(case.space(there)), biject_to(case.space(back))

    def sampler(z: Tensor) -> Tensor:
        return target.inv(maps[there](source(z))[0])

    reach = sampler(1.15 * torch.cat([_noise(case, 20000), torch.zeros(1, case.dim)]))
    low, high = reach.amin(0), reach.amax(0)
    pad = 0.05 * (high - low)
    low, high = low - pad, high + pad
    if case.dim == 1:
        even = torch.linspace(0, 1, 4001, dtype=torch.float64).unsqueeze(-1)
        base = torch.linspace(-9, 9, 4001, dtype=torch.float64).unsqueeze(-1)
        grid = torch.cat([low + (high - low) * even, sampler(base)]).sort(0)[0]
        weight = _trapezoid(grid[:, 0])
    else:
        even = torch.linspace(0, 1, 351, dtype=torch.float64)
        axes = [a + (b - a) * even for a, b in zip(low, high, strict=True)]
        grid = torch.cartesian_prod(*axes)
        weight = torch.outer(_trapezoid(axes[0]), _trapezoid(axes[1])).reshape(-1)
    points = target(grid)
    x, ladj = maps[back](points)
    z = source.inv(x)
    ladj = ladj - source.log_abs_det_jacobian(z, x)
    ladj = ladj + target.log_abs_det_jacobian(grid, points)
    log_p = (
        -0.5 * (z * z).sum(-1) - 0.5 * case.dim * float(torch.tensor(2 * torch.pi).log()) + ladj
    )
    return points, weight * log_p.exp()


def _trapezoid(grid: Tensor) -> Tensor:
    step = grid.diff()
    return 0.5 * (torch.cat([step, step[:1] * 0]) + torch.cat([step[:1] * 0, step]))
