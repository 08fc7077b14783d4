# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Graphs with the batch innermost: the same values in another layout."""

import pytest
import torch

from pyro_flows.flows import default
from pyro_flows.ops.batch_last import batch_last
from pyro_flows.ops.record import record

N, D = 12, 6
INTERLEAVING = torch.tensor([0, 3, 1, 4, 2, 5])
WEIGHT, BIAS = torch.linspace(-1, 1, D * 4).view(D, 4).double(), torch.linspace(0, 1, 4).double()

FUNCTIONS = {
    "pointwise": lambda x: torch.exp(-x) * x[:, :1] + BIAS[0],
    "broadcast from the right": lambda x: x + torch.arange(6.0),
    "broadcast from a row": lambda x: torch.where(x > 0, x, torch.arange(6.0)[None]),
    "three dimensions": lambda x: (x.view(N, 3, 2) * x[:, :3, None]).sum(-1) + 1,
    "cat": lambda x: torch.cat([x[:, 3:] * 2, x[:, :3]], -1) + 1,
    "cat of batches": lambda x: torch.cat([x, x]) + 1,
    "stack": lambda x: torch.stack([x[:, :3] * 2, x[:, 3:]], -1).flatten(1) + 1,
    "stack in front": lambda x: torch.stack([x, x + 1]) * 2,
    "interleaved": lambda x: (x * 2).index_select(-1, INTERLEAVING) * 2,
    "strided": lambda x: (x * 2).index_select(1, torch.tensor([1, 3, 5])) * 2,
    "one": lambda x: (x * 2).index_select(1, torch.tensor([4])) * 2,
    "backwards": lambda x: (x * 2).index_select(1, torch.tensor([5, 2, 0])) * 2,
    "twice the same": lambda x: (x * 2).index_select(1, torch.tensor([1, 1])) * 2,
    "by computed places": lambda x: (x * 2).index_select(1, x[0].argsort()) * 2,
    "rows": lambda x: (x * 2).index_select(0, torch.tensor([2, 0])) * 2,
    "product": lambda x: x @ WEIGHT,
    "product over the batch": lambda x: (x.t() @ x) * 2,
    "square product": lambda x: (x @ x.t()) @ x * 2,
    "affine": lambda x: torch.addmm(BIAS, x, WEIGHT, beta=0.5, alpha=2),
    "affine to batch": lambda x: torch.addmm(x, x @ WEIGHT, WEIGHT.t()),
    "in place": lambda x: (x * 2).mul_(3).add_(x),
    "softmax": lambda x: torch.softmax(x, -1) * 2,
    "library": lambda x: torch.linalg.solve_triangular(
        torch.eye(D) + x[:D].tril(-1), x.t(), upper=False
    ),
    "logs": lambda x: x.logsumexp(-1),
    "view over the batch": lambda x: (x @ WEIGHT).reshape(-1) * 2,
    "stack as rows": lambda x: torch.stack([x[:, :2] * 2, x[:, 2:4]], 1) @ WEIGHT[:2],
    "cat as rows": lambda x: torch.cat([x[:, :2], x[:, 2:]], 1).view(N, 3, 2) @ WEIGHT[:2],
    "turned twice": lambda x: x.t().contiguous().t().contiguous().view(-1),
    "select and change": lambda x: _changed(x * 2),
    "change after select": lambda x: _changed_later(x * 2),
    "change of an input's elements": lambda x: x.index_select(1, torch.tensor([1, 3])).mul_(3),
    "strides": lambda x: (x * 2).as_strided((3, 2), (1, 2)) * 2,
    "without the first term": lambda x: torch.addmm(BIAS / 0, x, WEIGHT, beta=0),
    "integers": lambda x: x.int() @ x.t().int(),
    "powers in place": lambda x: (x * 2).pow_(2).square_().add_(1, alpha=2).clamp_(0, 9),
    "masked in place": lambda x: (x * 2).masked_fill_(x < 0, 3.0) * 2,
    "dtypes": lambda x: (x * 2).float().mul_(x.double()),
    "looked up": lambda x: x.gather(1, x.argsort(1)) @ WEIGHT,
    "in between": lambda x: x.new_zeros(N, 2) + x[:, :2],
}

LEFT = {"strides", "dtypes"}


def _changed(y):
    picked = y.index_select(1, torch.tensor([1, 3, 5])).mul_(3)
    return y[:, :3] + picked


def _changed_later(y):
    picked = y.index_select(1, torch.tensor([1, 3, 5]))
    y.add_(1)
    return y[:, :3] + picked


@pytest.mark.parametrize("small", [4096, 0], ids=["sums", "products"])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_stay(name, small):
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(1))
    graph = record(FUNCTIONS[name], x)
    again = torch.randn(N, D, generator=torch.Generator().manual_seed(2))
    kept, expected = again.clone(), FUNCTIONS[name](again)
    laid_out = batch_last(graph, N, small)
    assert (laid_out is None) == (name in LEFT)
    for candidate in (graph, laid_out or graph):
        found = candidate(again)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected)
    assert torch.equal(again, kept)


@pytest.mark.parametrize(
    ("name", "small", "sums"),
    [("product", 24, True), ("product", 23, False), ("looked up", 24, False)],
)
def test_small_products_are_sums(name, small, sums):
    x = torch.randn(N, D)
    laid_out = record(batch_last(record(FUNCTIONS[name], x), N, small), x)
    called = {node.target for node in laid_out.graph.nodes}
    assert (torch.ops.aten.sum.dim_IntList in called) == sums
    assert (torch.ops.aten.mm.default in called) == (not sums)


@pytest.mark.parametrize("name", ["pointwise", "cat", "stack", "strided", "product", "affine"])
def test_the_batch_is_innermost(name):
    x = torch.randn(D, N).t()
    found = batch_last(record(FUNCTIONS[name], x), N)(x)
    assert found.stride(0) == 1
    assert found.stride(1) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [2, 5, 8])
def test_a_flow_and_its_gradient(dim, dtype):
    flow = default(dim).to(dtype)

    def step(z):
        z = z.detach().requires_grad_()
        x, log_det = flow.transform.forward_and_ladj(z)
        (grad,) = torch.autograd.grad(x.square().sum() + log_det.sum(), z)
        return x.detach(), log_det.detach(), grad

    x = torch.randn(N, dim, dtype=dtype)
    torch.testing.assert_close(batch_last(record(step, x), N, 1000)(x), step(x))
