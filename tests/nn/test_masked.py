# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Conditioners of autoregressive layers: who sees whom, and walks that give what passes give."""

import re

import pytest
import torch

from pyro_flows.errors import ShapeError
from pyro_flows.nn import CausalTransformer, MaskedMLP, Walkable
from pyro_flows.ops import order_adjacency

DIM = 6
GRAPH = torch.tensor(
    [
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 0, 0],
        [1, 0, 0, 1, 0, 1],
        [0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
    ],
).bool()


def randomised(net):
    for p in net.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return net.double()


def mlp(adjacency, context_dim, **options):
    return MaskedMLP(adjacency, 3, num_features=2, context_dim=context_dim, **options)


CASES = {
    "order": (order_adjacency(DIM, "random"), mlp, {}),
    "graph": (GRAPH, mlp, {"hidden_dims": (16,)}),
    "no edges": (torch.zeros(DIM, DIM).bool(), mlp, {}),
    "linear": (GRAPH, mlp, {"hidden_dims": ()}),
    "narrow": (order_adjacency(DIM), mlp, {"hidden_dims": (3, 20)}),
    "one unit": (order_adjacency(DIM), mlp, {"hidden_dims": (1,)}),
    "residual": (GRAPH, mlp, {"hidden_dims": (12, 12, 12), "residual": True}),
    "transformer": (
        order_adjacency(DIM, "reversed"),
        lambda adjacency, c, **o: CausalTransformer(
            DIM, 3, order="reversed", num_features=2, context_dim=c, width=8, heads=2
        ),
        {},
    ),
}
every_case = pytest.mark.parametrize("context_dim", [0, 2], ids=["plain", "context"])
every_net = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def made(case, context_dim):
    adjacency, make, options = case
    torch.manual_seed(0)
    net = randomised(make(adjacency, context_dim, **options))
    x = torch.randn(4, DIM, 2, dtype=torch.float64)
    context = torch.randn(4, context_dim, dtype=torch.float64) if context_dim else None
    return adjacency, net, x, context


@every_net
@every_case
def test_sees_what_the_graph_says_and_no_more(case, context_dim):
    adjacency, net, x, context = made(case, context_dim)
    assert net(x, context).shape == (4, DIM, 3) or not adjacency.any()
    first = None if context is None else context[0]
    jacobian = torch.autograd.functional.jacobian(lambda x: net(x, first), x[0])
    assert torch.equal(jacobian.abs().sum((1, 3)) > 0, adjacency)


@every_net
def test_every_parameter_of_every_coordinate_sees_the_context(case):
    _, net, x, context = made(case, 2)
    jacobian = torch.autograd.functional.jacobian(lambda c: net(x[0], c), context[0])
    assert (jacobian != 0).all()


@every_net
@every_case
def test_every_weight_tensor_gets_a_gradient(case, context_dim):
    _, net, x, context = made(case, context_dim)
    y = net(x, context)
    grads = torch.autograd.grad((y * torch.randn_like(y)).sum(), list(net.parameters()))
    assert all((g != 0).any() for g in grads)


@every_net
@every_case
def test_a_walk_gives_what_a_pass_gives(case, context_dim):
    _, net, x, context = made(case, context_dim)
    assert isinstance(net, Walkable)
    x = x.expand(5, 4, DIM, 2)
    walk = net.walk(context, x.shape[:-2])
    steps = []
    for begin, end in zip(net.starts[:-1], net.starts[1:], strict=True):
        steps.append(walk.params())
        walk.feed(x.index_select(-2, net.sequence[begin:end]))
    expected = net(x, context).expand(5, 4, -1, -1).index_select(-2, net.sequence)
    assert torch.allclose(torch.cat(steps, -2), expected, atol=1e-13)


@every_net
def test_starts_at_zero(case):
    adjacency, make, options = case
    net = make(adjacency, 2, **options)
    assert not net(torch.randn(3, DIM, 2), torch.randn(3, 2)).any()


def test_units_each_start_at_the_size_of_what_they_see():
    net = MaskedMLP(order_adjacency(64), 1, hidden_dims=(63,))
    sizes = net.hidden[0].masked_weight().pow(2).sum(1)
    assert sizes[:8].mean().item() == pytest.approx(1 / 3, abs=0.25)
    assert sizes[-8:].mean().item() == pytest.approx(1 / 3, abs=0.1)


def test_errors():
    with pytest.raises(ShapeError, match=re.escape(
        "MaskedMLP expected hidden layers of one width where residual=True, but got "
        "hidden_dims=(4, 5). Give equal widths, or residual=False."
    )):  # fmt: skip
        MaskedMLP(GRAPH, 1, hidden_dims=(4, 5), residual=True)
    with pytest.raises(ShapeError, match=re.escape(
        "expected dim >= 2, blocks >= 1, and a width that is a multiple of heads, but got dim=3, "
        "blocks=2, width=10, heads=4."
    )):  # fmt: skip
        CausalTransformer(3, 1, width=10)
