# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Orders, dependency graphs and masks: against brute force, at any width."""

import itertools
import re

import pytest
import torch

from pyro_flows.errors import ShapeError
from pyro_flows.ops import autoregressive_masks, generations, order_adjacency


def random_graph(dim, share, seed):
    generator = torch.Generator().manual_seed(seed)
    lower = torch.rand(dim, dim, generator=generator).tril(-1) > 1 - share
    order = torch.randperm(dim, generator=generator)
    return lower[order][:, order]


def longest_path(adjacency, i):
    return 1 + max((longest_path(adjacency, j) for j in adjacency[i].nonzero()[:, 0]), default=-1)


def test_orders():
    assert order_adjacency(3).int().tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert torch.equal(order_adjacency(4, "reversed"), order_adjacency(4).T)
    assert torch.equal(order_adjacency(4, "reversed"), order_adjacency(4, [3, 2, 1, 0]))
    random = order_adjacency(9, "random")
    assert torch.equal(random, order_adjacency(9, "random"))
    assert not torch.equal(random, order_adjacency(9, "random", seed=1))
    assert sorted(generations(random).tolist()) == list(range(9))


@pytest.mark.parametrize("seed", range(5))
def test_generations_are_longest_paths(seed):
    graph = random_graph(7, 0.3, seed)
    assert generations(graph).tolist() == [longest_path(graph, i) for i in range(7)]


@pytest.mark.parametrize("share", [0.15, 0.5, 1.0])
@pytest.mark.parametrize("hidden_dims", [(1,), (3,), (40,), (3, 30), (30, 3, 12)])
def test_masks_allow_what_the_graph_does_and_no_unit_is_dead(hidden_dims, share):
    graph = random_graph(8, share, seed=len(hidden_dims))
    generation = generations(graph)
    masks, units = autoregressive_masks(graph, generation, hidden_dims)
    assert [m.shape[0] for m in masks] == [*hidden_dims, 8]
    reached = torch.linalg.multi_dot([m.double() for m in reversed(masks)]) > 0
    assert (reached <= graph).all()
    if min(hidden_dims) >= 8:
        assert torch.equal(reached, graph)
    for mask, after in itertools.pairwise(masks):
        assert mask.any(1).all(), "a unit that reads nothing"
        assert after.any(0).all(), "a unit that nothing reads"
    for layer, of in enumerate(units):
        assert (of.diff() >= 0).all(), "units are sorted by generation"
        if layer:
            readable = units[layer - 1].unsqueeze(0) <= of.unsqueeze(1)
            assert (masks[layer] <= readable).all()
    assert (masks[-1] <= (units[-1].unsqueeze(0) <= generation.unsqueeze(1))).all()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: order_adjacency(3, [0, 1, 1]), "Expected an order of 3 coordinates: 'natural', "
         "'reversed', 'random' or a permutation of 0, ..., 2, but got [0, 1, 1]."),
        (lambda: order_adjacency(3, "sorted"), "a permutation of 0, ..., 2, but got 'sorted'."),
        (lambda: generations(torch.tensor([[0, 1, 0], [0, 0, 1], [0, 1, 0]])),
         "Expected an adjacency without cycles, but coordinates [1, 2] depend on themselves, "
         "directly or through others. Remove a dependency, or give an order instead."),
        (lambda: generations(torch.eye(2)), "but coordinates [0, 1] depend on themselves"),
        (lambda: generations(torch.zeros(2, 3)), "Expected an adjacency of shape (dim, dim), but "
         "got (2, 3). Row i marks the coordinates that coordinate i depends on."),
    ],
)  # fmt: skip
def test_errors(call, text):
    with pytest.raises(ShapeError, match=re.escape(text)):
        call()
