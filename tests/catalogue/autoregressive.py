# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Autoregressive layers: orders and graphs, univariates, conditioners, both directions."""

from __future__ import annotations

import torch

from catalogue.entry import Entry
from pyro_flows.nn import CausalTransformer
from pyro_flows.transforms import (
    Affine,
    AffineAutoregressive,
    Autoregressive,
    BlockAutoregressive,
    CircularSpline,
    DeepSigmoidal,
    RationalQuadraticSpline,
    SplineAutoregressive,
)

HIDDEN = (8,)
SPLINE = RationalQuadraticSpline(bins=4, bound=3.0)


def _graph(dim):
    """A random graph, of small depth, its coordinates in no order."""
    generator = torch.Generator("cpu").manual_seed(dim)
    lower = torch.rand(dim, dim, generator=generator, device="cpu").tril(-1) > max(0, 1 - 2 / dim)
    order = torch.randperm(dim, generator=generator, device="cpu")
    return lower[order][:, order]


def _transformer(dim, c):
    net = CausalTransformer(
        dim, 2, order="reversed", context_dim=c, width=8, heads=2, blocks=1 + (dim < 5)
    )
    return Autoregressive(dim, Affine(), order="reversed", context_dim=c, conditioner=net)


ENTRIES = {
    "iaf": Entry(lambda d, c: AffineAutoregressive(d, context_dim=c, hidden_dims=HIDDEN)),
    "maf": Entry(
        lambda d, c: AffineAutoregressive(d, order="random", context_dim=c, hidden_dims=(8, 8)).inv
    ),
    "autoregressive-spline": Entry(
        lambda d, c: SplineAutoregressive(
            d, order="reversed", context_dim=c, hidden_dims=HIDDEN, bins=4, bound=3.0
        ),
        slow_dims=(64,),
    ),
    "autoregressive-graph": Entry(
        lambda d, c: (
            Autoregressive(d, SPLINE, adjacency=_graph(d), context_dim=c, hidden_dims=HIDDEN).inv
        )
    ),
    "autoregressive-circular": Entry(
        lambda d, c: Autoregressive(d, CircularSpline(4), context_dim=c, hidden_dims=HIDDEN),
        slow_dims=(64,),
        left_out=frozenset({"reaches_far"}),
    ),
    "naf": Entry(
        lambda d, c: Autoregressive(d, DeepSigmoidal(3, 1), context_dim=c, hidden_dims=HIDDEN),
        slow_dims=(64,),
    ),
    "autoregressive-transformer": Entry(_transformer, dims=(2, 5, 64), slow_dims=(64,)),
    "block_autoregressive": Entry(
        lambda d, c: BlockAutoregressive(d, (3,), c, hidden_dims=HIDDEN), slow_dims=(64,)
    ),
    "inverse-block_autoregressive": Entry(
        lambda d, c: BlockAutoregressive(d, (4, 2), c, hidden_dims=HIDDEN).inv, slow_dims=(64,)
    ),
}
