# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Autoregressive layers: who moves whom, and three ways to invert that agree."""

import re

import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyro_flows.errors import ShapeError
from pyro_flows.nn import CausalTransformer, MaskedMLP
from pyro_flows.ops import order_adjacency
from pyro_flows.transforms import (
    Affine,
    AffineAutoregressive,
    Autoregressive,
    BlockAutoregressive,
    CircularSpline,
    DeepSigmoidal,
    RationalQuadraticSpline,
    Shift,
    SplineAutoregressive,
)

GRAPH = torch.tensor([[0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]).bool()
SPLINE = RationalQuadraticSpline(bins=4, bound=3.0)


def randomised(layer, size=0.5):
    torch.manual_seed(1)
    for p in layer.parameters():
        width = p.shape[-1] if p.dim() > 1 else 1
        p.data.add_(size * torch.randn_like(p) / width**0.5)
    return layer.double()


def jacobian(layer, x):
    return torch.autograd.functional.jacobian(lambda x: layer.forward_and_ladj(x)[0], x)


def transformer(dim, univariate=None, context_dim=0, **options):
    univariate = univariate or Affine()
    net = CausalTransformer(
        dim, univariate.num_parameters, context_dim=context_dim, width=8, heads=2, **options
    )
    return Autoregressive(
        dim, univariate, context_dim=context_dim, conditioner=net, **options
    )  # fmt: skip


@pytest.mark.parametrize("order", ["natural", "reversed", "random", [2, 0, 3, 1]])
def test_an_order_decides_who_moves_whom(order):
    layer = randomised(AffineAutoregressive(4, order=order))
    moves = jacobian(layer, torch.randn(4, dtype=torch.float64)) != 0
    assert torch.equal(moves, order_adjacency(4, order) | torch.eye(4).bool())
    assert layer.depth == 4


def test_a_graph_decides_who_moves_whom():
    layer = randomised(Autoregressive(4, Affine(), adjacency=GRAPH))
    moves = jacobian(layer, torch.randn(4, dtype=torch.float64)) != 0
    assert torch.equal(moves, GRAPH | torch.eye(4).bool())
    assert layer.depth == 3


def test_the_first_coordinate_sees_the_context():
    layer = randomised(SplineAutoregressive(3, context_dim=2))
    x, context = torch.zeros(2, 3, dtype=torch.float64), torch.randn(2, 2, dtype=torch.float64)
    y, _ = layer.forward_and_ladj(x, context)
    assert (y[0] != y[1]).all()


@pytest.mark.parametrize("context_dim", [0, 2])
def test_one_coordinate_is_allowed(context_dim):
    layer = randomised(AffineAutoregressive(1, context_dim=context_dim))
    x = torch.randn(5, 1, dtype=torch.float64)
    context = torch.randn(5, 2, dtype=torch.float64) if context_dim else None
    y, ladj = layer.forward_and_ladj(x, context)
    back, back_ladj = layer.inverse_and_ladj(y, context)
    assert torch.allclose(back, x)
    assert torch.allclose(ladj, -back_ladj)
    assert (y != x).all()


WAYS = {
    "affine": lambda c: AffineAutoregressive(20, order="random", context_dim=c),
    "spline": lambda c: Autoregressive(20, SPLINE, context_dim=c),
    "deep sigmoidal": lambda c: Autoregressive(4, DeepSigmoidal(), context_dim=c),
    "circle": lambda c: Autoregressive(5, CircularSpline(), context_dim=c),
    "graph": lambda c: Autoregressive(4, SPLINE, adjacency=GRAPH, context_dim=c),
    "transformer": lambda c: transformer(20, SPLINE, c, order="random"),
}


def one_by_one(layer, y, context):
    """Coordinate after coordinate, with nothing kept: the definition."""
    x = torch.zeros_like(y)
    for _ in range(layer.dim):
        x, ladj = layer.univariate.inverse_and_ladj(y, layer.conditioner(
            layer.univariate.features(x), context
        ).expand(*y.shape, -1))  # fmt: skip
    return x, ladj


@pytest.mark.parametrize("make", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("context_dim", [0, 2], ids=["plain", "context"])
def test_steps_and_passes_agree_with_the_definition(make, context_dim):
    layer = randomised(make(context_dim))
    y = torch.randn(7, layer.dim, dtype=torch.float64)
    context = torch.randn(7, 2, dtype=torch.float64) if context_dim else None
    weights = torch.randn_like(y)

    def run(way):
        x, ladj = way(y, context)
        grads = torch.autograd.grad(
            (weights * x).sum() + (ladj**2).sum(), [y, *layer.parameters()], allow_unused=True
        )
        return x, ladj, *(g for g in grads if g is not None)

    y.requires_grad_()
    expected = run(lambda y, context: one_by_one(layer, y, context))
    for way in (layer.by_steps, layer.by_passes):
        for got, want in zip(run(way), expected, strict=True):
            assert ((got - want).abs() / want.abs().clamp_min(1)).max() < 1e-10
        with torch.no_grad():
            assert (way(y, context)[0] - expected[0]).abs().max() < 1e-10


def test_steps_are_differentiable_twice():
    layer = randomised(AffineAutoregressive(3))

    def score(y):
        x, ladj = layer.inverse_and_ladj(y)
        return (x**2).sum() - ladj.sum()

    y = torch.randn(3, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(score, y)
    assert torch.allclose(hessian, torch.func.hessian(score)(y))
    assert torch.autograd.gradgradcheck(score, y.requires_grad_())


class Counting:
    """A univariate that counts how often its inverse is asked for: once a pass or step."""

    def __init__(self, univariate):
        self.univariate, self.calls = univariate, 0

    def __getattr__(self, name):
        return getattr(self.univariate, name)

    def inverse_and_ladj(self, y, params):
        self.calls += 1
        return self.univariate.inverse_and_ladj(y, params)


def passes_of(layer, y):
    layer.univariate = Counting(layer.univariate)
    with torch.no_grad():
        layer.by_passes(y)
    return layer.univariate.calls


def test_passes_stop_early_but_go_on_where_they_must():
    y = torch.randn(100, 64, dtype=torch.float64)
    assert passes_of(AffineAutoregressive(64).double(), y) == 1
    assert passes_of(randomised(AffineAutoregressive(64)), y) < 25
    # A chain whose every link doubles: nothing is right before its turn.
    chain = Autoregressive(64, Shift(), conditioner=Chained(2.0)).double()
    assert passes_of(chain, y) == 64


class Chained(nn.Module):
    """A conditioner of another kind: each coordinate sees its neighbour."""

    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, features, context=None):
        return self.slope * nn.functional.pad(features, (0, 0, 1, 0))[..., :-1, :]


def test_a_custom_conditioner_is_inverted_by_passes():
    layer = Autoregressive(5, Shift(), conditioner=Chained(0.5)).double()
    x = torch.randn(3, 5, dtype=torch.float64)
    assert torch.allclose(layer.inv(layer(x)), x, atol=1e-14)
    assert layer(x)[0, 1] == x[0, 1] + 0.5 * x[0, 0]


def test_large_batches_take_steps_and_small_ones_of_deep_graphs_passes():
    layer = randomised(AffineAutoregressive(40))
    layer.univariate = Counting(layer.univariate)
    large = layer.inv(torch.ones(2000, 40, dtype=torch.float64))
    assert layer.univariate.calls == 40
    layer.univariate.calls = 0
    with torch.no_grad():
        small = layer.inv(torch.ones(2, 40, dtype=torch.float64))
    assert layer.univariate.calls < 40
    assert (large[:2] - small).abs().max() < 1e-12


def test_maf_is_the_inverse_of_iaf():
    layer = randomised(AffineAutoregressive(3))
    x = torch.randn(5, 3, dtype=torch.float64)
    base = dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1)
    z, ladj = layer.forward_and_ladj(x)
    scored = dist.TransformedDistribution(base, [layer.inv]).log_prob(x)
    assert torch.allclose(scored, base.log_prob(z) + ladj)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Autoregressive(3, Affine(), adjacency=GRAPH), "Autoregressive expected an "
         "adjacency of shape (3, 3), but got (4, 4). Row i marks the coordinates that i depends "
         "on."),
        (lambda: Autoregressive(2, Affine(), adjacency=torch.ones(2, 2).bool()),
         "Expected an adjacency without cycles, but coordinates [0, 1] depend on themselves"),
        (lambda: AffineAutoregressive(2, order="sorted"), "but got 'sorted'"),
        (lambda: Autoregressive(2, Affine(), conditioner=MaskedMLP(
            order_adjacency(2, "reversed"), 2)), "Autoregressive expected a conditioner of its "
         "own order or adjacency, where coordinates come in generations [0, 1], but got one with "
         "[1, 0]. Give the layer and the conditioner the same."),
        (lambda: BlockAutoregressive(2, ()), "BlockAutoregressive expected at least one hidden "
         "layer and one unit for each coordinate, but got hidden_factors=(). Give (8, 8), say."),
    ],
)  # fmt: skip
def test_errors(make, text):
    with pytest.raises(ShapeError, match=re.escape(text)):
        make()


def test_printed():
    text = repr(SplineAutoregressive(3, context_dim=2))
    assert text.startswith("SplineAutoregressive(\n  dim=3, context_dim=2, depth=3, univariate=")


# Block autoregressive.


def test_blocks_are_triangular_and_increasing():
    layer = randomised(BlockAutoregressive(4, (3, 5)))
    slopes = jacobian(layer, torch.randn(4, dtype=torch.float64))
    assert torch.equal(slopes != 0, torch.ones(4, 4).tril().bool())
    assert (slopes.diagonal() > 0).all()


def test_blocks_reach_all_of_the_line():
    layer = randomised(BlockAutoregressive(2), 1.0)
    y = torch.tensor([[1e6, -1e6], [-1e3, 1e9], [0.0, 0.0]], dtype=torch.float64)
    x, ladj = layer.inverse_and_ladj(y)
    assert ladj.isfinite().all()
    assert torch.allclose(layer(x), y, rtol=1e-9, atol=1e-9)


def test_blocks_score_any_value_as_a_guide_must():
    layer = BlockAutoregressive(3)
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    given = torch.tensor([3.0, -40.0, 0.0])
    assert dist.TransformedDistribution(base, [layer]).log_prob(given).isfinite()


def test_blocks_have_the_gradients_of_the_inverse_function_theorem():
    layer = randomised(BlockAutoregressive(3, (4, 4), context_dim=1))
    y = torch.randn(3, dtype=torch.float64)
    context = torch.randn(1, dtype=torch.float64)
    x, _ = layer.inverse_and_ladj(y, context)
    there = torch.autograd.functional.jacobian(
        lambda x, c: layer.forward_and_ladj(x, c)[0], (x.detach(), context)
    )
    back = torch.autograd.functional.jacobian(
        lambda y, c: layer.inverse_and_ladj(y, c)[0], (y, context)
    )
    inverse = torch.linalg.inv(there[0])
    assert torch.allclose(back[0], inverse, atol=1e-10)
    assert torch.allclose(back[1], -inverse @ there[1], atol=1e-10)
