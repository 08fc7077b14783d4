# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Large tables that are summed at once become matrix products of the same value."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_flows import AutoFlow
from pyro_flows.guides import LogJoint, log_joint
from pyro_flows.ops.contractions import contracted
from pyro_flows.ops.record import record

aten = torch.ops.aten
ROWS = torch.randn(300, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float32)


def changed_between(x):
    x = x.clone()
    table = x[:, None] * ROWS
    x.add_(1.0)
    return table.sum(-1) + x[:, :1]


CONTRACTED = {
    "rows": lambda x: (x[:, None] * ROWS).sum(-1),
    "kept": lambda x: (ROWS * x[:, None]).sum(1, keepdim=True),
    "all but particles": lambda x: (x[:, None] * ROWS).sum((1, 2)),
    "over particles": lambda x: (x[:, None] * ROWS).sum(0),
    "expanded": lambda x: (x[:, None].expand(-1, 300, -1) * ROWS).sum(-1),
    "a size of one": lambda x: (x[:, None, None] * ROWS[:, None]).sum((-2, -1)),
    "changed in between": changed_between,
}
LEFT = {
    "small": lambda x: (x[:, None] * ROWS[:5]).sum(-1),
    "no table": lambda x: (x[:, None] * ROWS.expand(64, -1, -1).clone()).sum(-1),
    "used twice": lambda x: (t := x[:, None] * ROWS).sum(-1) + t.amax(-1),
    "both repeated": lambda x: (
        x[:, :1].expand(-1, 9000)[:, None] * x[:, 1:2].expand(-1, 9000)[:, None]
    ).sum(-1),
    "a number": lambda x: (x.repeat(1, 100) * 2.0).sum(-1),
    "of two dtypes": lambda x: (x[:, None] * ROWS.to(torch.float64)).sum(-1),
}


@pytest.mark.parametrize("name", [*CONTRACTED, *LEFT])
def test_values_stay(name):
    function = (CONTRACTED | LEFT)[name]
    graph = contracted(record(function, torch.zeros(64, 7, dtype=torch.float32)))
    targets = [node.target for node in graph.graph.nodes]
    assert (aten.einsum.default in targets) == (name in CONTRACTED)
    x = torch.randn(64, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float32)
    got, expected = graph(x), function(x)
    assert got.dtype == expected.dtype
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    node = graph.graph.output_node().args[0]
    assert node.meta["shape"] == tuple(expected.shape)


def regression(x):
    weights = pyro.sample("weights", dist.Normal(torch.zeros(5), 1.0).to_event(1))
    with pyro.plate("rows", len(x)):
        mean = (weights * x).sum(-1)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=x[:, 0])


def test_a_regression_makes_no_table():
    x = torch.randn(5000, 5)
    guide = AutoFlow(regression).setup(x)
    captured, plain = (LogJoint(regression, guide, (x,), mode=m) for m in (None, "vectorised"))
    z = torch.randn(64, 5)
    for got, expected in zip(captured.value_and_grad(z), plain.value_and_grad(z), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-2)
    nodes = captured._graphs[64, True].graph.graph.nodes
    assert not any(node.meta.get("shape") == (64, 5000, 5) for node in nodes)


def test_a_large_regression_is_made_in_few_parts(monkeypatch):
    """Though the few rows that it was tried on made tables, too large for more than four."""
    monkeypatch.setattr(log_joint, "LARGE", 800_000)
    x = torch.randn(5000, 5)
    guide = AutoFlow(regression).setup(x)
    captured, plain = (LogJoint(regression, guide, (x,), mode=m) for m in (None, "vectorised"))
    assert captured._row_bytes == 200_000
    z = torch.randn(64, 5)
    assert len(captured._parts(z)) == 4
    for got, expected in zip(captured.value_and_grad(z), plain.value_and_grad(z), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(("bytes_", "parts"), [(2**24, 1), (2**21, 2), (2**10, 60)])
def test_large_tensors_are_made_in_parts(monkeypatch, bytes_, parts):
    monkeypatch.setattr(log_joint, "LARGE", bytes_)
    x = torch.randn(5000, 5)
    guide = AutoFlow(regression).setup(x)
    captured, plain = (LogJoint(regression, guide, (x,), mode=m) for m in (None, "vectorised"))
    assert captured.mode == "captured"
    z = torch.randn(60, 5)
    for _ in range(2):  # the first time on what a few rows have taken
        got = *captured.value_and_grad(z), captured(z)
    assert len(captured._parts(z)) == parts
    assert {len(part) for part in captured._parts(z)} == {60 // parts}
    for one, other in zip(got, (*plain.value_and_grad(z), plain(z)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-2)
