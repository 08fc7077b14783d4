# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Graphs of tensor functions: what is recorded, what is computed once, what is refused."""

import copy
import pickle

import pytest
import torch
from torch import Tensor

from pyro_flows.guides.capture import capture
from pyro_flows.ops import is_recording
from pyro_flows.ops.record import RecordingError, record

DATA = torch.tensor([1.0, torch.nan, 3.0])


def calls(graph):
    return [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]


def test_a_graph_gives_what_the_function_gives():
    def function(x, y):
        first, second = (x @ y.T).chunk(2)
        return first.exp() + second.sum(), torch.logsumexp(x, -1)

    graph = record(function, torch.zeros(4, 3), torch.zeros(4, 3))
    x, y = torch.randn(2, 4, 3).unbind()
    for got, expected in zip(graph(x, y), function(x, y), strict=True):
        torch.testing.assert_close(got, expected)


def test_gradients_are_part_of_it():
    run = capture(torch.vmap(lambda z: z.sin().square().sum()), torch.zeros(5, 2), with_grad=True)
    z = torch.randn(5, 2)
    value, grad = run(z)
    torch.testing.assert_close(value, z.sin().square().sum(-1))
    torch.testing.assert_close(grad, (2 * z).sin())
    assert not value.requires_grad


def test_what_depends_on_data_alone_is_computed_once():
    graph = record(lambda x: x * DATA.exp().log1p(), torch.zeros(3))
    assert calls(graph) == ["aten.mul.Tensor"]


def test_python_may_look_at_data():
    def function(x):
        return sum(x * value for value in DATA if not torch.isnan(value))

    assert record(function, torch.tensor(0.0))(torch.tensor(2.0)) == 8.0


def test_random_numbers_are_drawn_anew():
    def function(x):
        return x + torch.randn(3) + torch.empty(3).uniform_()

    graph = record(function, torch.zeros(3))
    torch.manual_seed(1)
    got = graph(torch.zeros(3)), graph(torch.zeros(3))
    torch.manual_seed(1)
    torch.testing.assert_close(got, (function(torch.zeros(3)), function(torch.zeros(3))))
    assert (got[0] != got[1]).all()


def test_in_place_changes_of_what_depends_on_inputs_are_kept():
    def function(x):
        y = x.clone()
        y[0] = 0.0
        y.mul_(2).add_(x)
        return y

    graph = record(function, torch.ones(3))
    x = torch.tensor([1.0, 2.0, 3.0])
    assert graph(x).tolist() == graph(x).tolist() == [1.0, 6.0, 9.0]
    assert x.tolist() == [1.0, 2.0, 3.0]


def fills(x):
    table = torch.zeros(3)
    table[1] = x[1]
    return table + x


def changes_later(x):
    table = torch.zeros(3)
    y = x + table
    table.add_(1)
    return y + table


def fills_a_part(x):
    noise = torch.zeros(3)
    noise[:2].normal_()
    return x + noise


def fills_several(x):
    table = torch.zeros(3)
    torch._foreach_add_([table], [x])
    return table


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x * float(x.sum()), "asks for values"),
        (lambda x: x if bool(x.sum() > 0) else -x, "asks for values"),
        (lambda x: x[x > 0].sum(), "a shape that depends"),
        (lambda x: x.nonzero().sum() + x, "a shape that depends"),
        (fills_a_part, "writes into a tensor that is made only once"),
        (fills_several, "writes into a tensor that is made only once"),
        (fills, "writes into a tensor that is made only once"),
        (changes_later, "changed in place after it had been used"),
    ],
)
def test_what_a_graph_would_freeze_is_refused(function, reason):
    with pytest.raises(RecordingError, match=reason):
        record(function, torch.ones(3))


def test_indices_that_are_data_are_no_masks():
    index, mask = torch.tensor([2, 0]), torch.tensor([True, False, True])
    graph = record(lambda x: x[index] + x[mask], torch.zeros(3))
    assert graph(torch.tensor([1.0, 2.0, 3.0])).tolist() == [4.0, 4.0]


TABLE = torch.tensor([[True, False, True], [False, False, True]])


def assigned(x):
    x = x.clone()
    x[:, TABLE] = x[:, TABLE] ** 2
    return x


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[..., TABLE],
        lambda x: x[TABLE[:, 0]][:, torch.tensor([1, 0]), TABLE[1]],
        assigned,
    ],
)
def test_masks_that_are_data_are_looked_through_once(function):
    graph = record(function, torch.zeros(2, 2, 3))
    constants = [node for node in graph.graph.nodes if node.op == "get_attr"]
    assert torch.bool not in {node.meta["dtype"] for node in constants}
    x = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(graph(x), function(x))


def test_a_mask_that_is_filled_stays():
    def function(x):
        x = x.clone()
        x[:, TABLE] = 2.0
        return x

    graph, x = record(function, torch.zeros(2, 2, 3)), torch.ones(2, 2, 3)
    assert torch.equal(graph(x), function(x))


def test_a_mask_without_dimensions_stays():
    graph = record(lambda x: x[torch.tensor(True)], torch.zeros(2))
    assert graph(torch.ones(2)).tolist() == [[1.0, 1.0]]


def test_a_mask_that_changes_later_is_noticed():
    mask = torch.tensor([True, False])

    def function(x):
        y = x[mask]
        mask.fill_(True)
        return y

    with pytest.raises(RecordingError, match="changed in place"):
        record(function, torch.ones(2))


def test_data_may_be_made_in_inference_mode():
    with torch.inference_mode():
        data = torch.ones(3)
    assert record(lambda x: x + data, torch.zeros(3))(torch.ones(3)).tolist() == [2.0] * 3


def test_iterations_know_that_they_are_recorded():
    seen = []

    def function(x: Tensor) -> Tensor:
        seen.append(is_recording())
        return x + 1

    record(function, torch.zeros(2))
    function(torch.zeros(2))
    assert seen == [True, False]


def test_graphs_are_copied_and_pickled():
    graph = record(lambda x: x.chunk(2)[1] * DATA[2:], torch.zeros(2))
    for other in (copy.deepcopy(graph), pickle.loads(pickle.dumps(graph))):
        assert other(torch.ones(2)).tolist() == [3.0]


def attention(x, dropout=0.0):
    return torch.nn.functional.scaled_dot_product_attention(x, x, x, dropout_p=dropout)


def test_random_numbers_are_refused_where_asked():
    x = torch.randn(2, 1, 4, 8)
    graph = record(attention, x, chance=False)
    torch.testing.assert_close(graph(x), attention(x))
    for function in (lambda x: attention(x, 0.5), lambda x: x + torch.rand(8)):
        record(function, x)
        with pytest.raises(RecordingError, match="draws random numbers"):
            record(function, x, chance=False)
