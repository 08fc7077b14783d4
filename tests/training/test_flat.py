# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Many parameters as one vector."""

import torch

from pyro_flows.training.flat import Flat


def parameters():
    torch.manual_seed(0)
    shapes = (2, 3), (), (4,), (0,)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def test_an_optimiser_of_the_vector_is_one_of_the_parameters():
    ours, theirs = parameters(), parameters()
    flat = Flat(ours)
    (vector,) = flat.vectors
    optimisers = torch.optim.Adam([vector], lr=0.1), torch.optim.Adam(theirs, lr=0.1)
    for _ in range(5):
        for group in (ours, theirs):
            sum((p.square() * (1 + p)).sum() for p in group).backward()
        flat.gather()
        optimisers[0].step()
        flat.write()
        optimisers[1].step()
        optimisers[1].zero_grad()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
        assert one.grad is None


def test_without_a_gradient_it_is_zero():
    some = parameters()
    some[0].sum().backward()
    (gradient,) = Flat(some).gather()
    assert gradient.tolist() == [1.0] * 6 + [0.0] * 5


def test_dtypes_and_kinds_are_kept_apart():
    some = [*parameters(), torch.zeros(2, dtype=torch.float32, requires_grad=True)]
    flat = Flat(some, lambda p: p.dim() > 1)
    assert [len(vector) for vector in flat.vectors] == [6, 5, 2]
    assert flat.kinds == [True, False, False]


def test_writing_is_a_change_that_autograd_sees():
    some = parameters()
    versions = [p._version for p in some]
    flat = Flat(some)
    flat.vectors[0].add_(1)
    before = [p.detach().clone() for p in some]
    flat.write()
    for p, old, version in zip(some, before, versions, strict=True):
        torch.testing.assert_close(p.detach(), old + 1)
        assert p.is_leaf
        assert p.requires_grad
        assert p._version > version
