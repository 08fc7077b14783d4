# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Where a named flow starts on data: whitened, on top of the best mixture of Gaussians.

A mixture is hard to beat on a few thousand rows, and a flow that starts at the standard normal
overfits before it gets there. Starting from the mixture, it has only to learn what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from pyro_flows.density.fitting import Rows
from pyro_flows.distributions import CorrelatedMixture, Flow, StandardNormal
from pyro_flows.ops import Gaussians, factor_covariance, fit_gaussians
from pyro_flows.transforms import CholeskyAffine, Layer
from pyro_flows.transforms.base import is_real

# Rows that the mixtures are fitted to, at most: their few numbers need no more.
MOST_ROWS = 20_000
# Passes of each fit, and those where a pass handles so many products of two columns that all the
# fits would take minutes: a start needn't be the optimum.
PASSES, FEW_PASSES, MANY_PRODUCTS = 100, 30, 5e7


def takes_start(flow: Any, spec: Any) -> bool:
    """Whether a flow is given a start: one asked for by name, on the standard normal."""
    return (
        isinstance(spec, str)
        and type(flow) is Flow
        and type(flow.base) is StandardNormal
        and is_real(flow.transform.codomain)
        and is_real(flow.transform.domain)
    )


def with_start(flow: Flow, components: int) -> Flow:
    """The flow between a base of so many Gaussians (0: its own) and an affine layer.

    The affine layer is moved by the context, if there is one: a Gaussian regression.
    """
    layers = [cast("Layer", layer) for layer in flow.transform.layers]
    layers.append(CholeskyAffine(flow.dim, flow.context_dim))
    return Flow(layers, CorrelatedMixture(flow.dim, components) if components else flow.base)


@torch.no_grad()
def find_start(flow: Flow, rows: Rows, held: Rows, candidates: Sequence[int], seed: int) -> Flow:
    """Whiten the rows; and, without a context, put the best mixture below the flow.

    Args:
        flow: the identity, or near it.
        rows: to fit mixtures to.
        held: rows that say how many Gaussians it takes.
        candidates: numbers of Gaussians to try; those too many for the rows are left out.
        seed: of the mixtures' starts.
    """
    started = with_start(flow, 0).to(rows.x)
    rows = _some(rows)
    x = rows.x
    affine = cast("CholeskyAffine", started.transform.layers[-1])
    affine.set(x.double().mean(0), factor_covariance(x.double()))
    started.initialize(x, rows.context)
    if rows.context is not None:
        return started
    # Layers such as ActNorm are set: the mixtures see what all of them leave of the data.
    z, held_z = (started.transform.inverse_and_ladj(r)[0].double() for r in (x, held.x))
    fits = _mixtures(z, held_z, candidates, seed)
    if not fits:
        return started
    gaussians = choose(fits)
    base = CorrelatedMixture(flow.dim, len(gaussians.mean)).to(rows.x)
    base.set(gaussians)
    return Flow([cast("Layer", layer) for layer in started.transform.layers], base)


def choose(fits: Sequence[tuple[Gaussians, Tensor]]) -> Gaussians:
    """Of mixtures and their log densities of the same rows: the smallest that is level.

    Level with the best: behind it by no more than the standard error of their difference, row by
    row. A few held-out rows can't tell more, and what is too large overfits.
    """
    best = max(fits, key=lambda fit: float(fit[1].mean()))[1]

    def level(log_prob: Tensor) -> bool:
        behind = best - log_prob  # of one row alone nothing is known: all are level
        return len(behind) < 2 or bool(behind.mean() <= behind.std() / len(behind) ** 0.5)

    enough = [gaussians for gaussians, log_prob in fits if level(log_prob)]
    return min(enough, key=lambda gaussians: len(gaussians.mean))


def _mixtures(
    z: Tensor, held: Tensor, candidates: Sequence[int], seed: int
) -> list[tuple[Gaussians, Tensor]]:
    """Mixtures of those sizes, with their log densities of the held-out rows."""
    fits = []
    for count in candidates:
        # Fewer rows to a Gaussian than it has axes, and its covariance would be all ridge.
        if count * (z.shape[1] + 1) < len(z):
            passes = FEW_PASSES if z.numel() * z.shape[1] > MANY_PRODUCTS else PASSES
            gaussians = fit_gaussians(z, count, seed=seed, most_passes=passes)
            fits.append((gaussians, gaussians.log_prob(held)))
    return fits


def _some(rows: Rows) -> Rows:
    """The first rows, if they are like all (mean 0, deviation 1); else a row every so many.

    Rows come in the user's order where there is a validation set, and may be sorted.
    """
    head = rows[:MOST_ROWS]
    mean, sd = head.x.mean(0), head.x.std(0)
    if len(rows) <= MOST_ROWS or bool(((mean.abs() < 0.2) & ((sd - 1).abs() < 0.2)).all()):
        return head
    return rows[:: -(-len(rows) // MOST_ROWS)]
