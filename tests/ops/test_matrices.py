# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Matrices in batches against loops over them; products of rank-one factors one by one."""

import pytest
import torch

from pyro_flows.ops import (
    cosines,
    matvec,
    rank_ones,
    rank_ones_inverse,
    strict_lower,
    strict_lower_positions,
    triangular_solve,
)

D = 4
SHAPES = [
    ((), ()),
    ((), (3,)),
    ((), (5, 3)),
    ((3,), ()),
    ((3,), (3,)),
    ((3,), (5, 2, 3)),
    ((2, 3), (3,)),
    ((2, 1), (7, 2, 3)),
    ((), (0,)),
    ((3,), (0, 3)),
]


def tensors(batch, *shapes):
    torch.manual_seed(0)
    return [torch.randn(*batch, *s) for s in shapes]


@pytest.mark.parametrize(("batch", "lead"), SHAPES)
def test_matvec_broadcasts(batch, lead):
    (matrix,), (x,) = tensors(batch, (3, D)), tensors(lead, (D,))
    got = matvec(matrix, x)
    assert got.shape == (*torch.broadcast_shapes(batch, lead), 3)
    torch.testing.assert_close(got, (matrix @ x.unsqueeze(-1)).squeeze(-1))


@pytest.mark.parametrize("unitriangular", [False, True])
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize(("batch", "lead"), SHAPES)
def test_triangular_solve_reads_its_triangle_only(batch, lead, upper, unitriangular):
    (matrix,), (x,) = tensors(batch, (D, D)), tensors(lead, (D,))
    triangle = matrix.triu() if upper else matrix.tril()
    if unitriangular:
        eye = torch.eye(D)
        triangle = triangle * (1 - eye) + eye
    y = triangular_solve(matrix, x, upper=upper, unitriangular=unitriangular)
    assert y.shape == (*torch.broadcast_shapes(batch, lead), D)
    torch.testing.assert_close(matvec(triangle, y), x.expand(y.shape))


def test_no_matrix_is_copied_for_samples():
    """Samples are columns: the product of one matrix with many vectors is one product."""
    matrix, x = torch.randn(2, 64, 64), torch.randn(1000, 2, 64)
    with torch.profiler.profile(profile_memory=True) as profile:
        matvec(matrix, x)
    largest = max(e.self_cpu_memory_usage for e in profile.events())
    assert largest <= 2 * x.numel() * 4


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_strict_lower(dim):
    count = dim * (dim - 1) // 2
    entries = torch.arange(1.0, count + 1).expand(3, count)
    matrix = strict_lower(entries, strict_lower_positions(dim), dim)
    assert matrix.shape == (3, dim, dim)
    assert not matrix.triu().any()
    rows, columns = torch.tril_indices(dim, dim, offset=-1)
    assert torch.equal(matrix[:, rows, columns], entries)


def test_cosines_come_again_after_dim():
    rows = cosines(7, 5)
    assert torch.equal(rows[5:], rows[:2])
    gram = rows[:5] @ rows[:5].T
    torch.testing.assert_close(gram, gram.diagonal().diag(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("rank", [0, 1, 3, 6])
@pytest.mark.parametrize(("batch", "lead"), SHAPES)
def test_rank_ones_are_the_product(batch, lead, rank):
    left, right = tensors(batch, (rank, D), (rank, D))
    left = 0.3 * left
    (x,) = tensors(lead, (D,))
    product = torch.eye(D).expand(*batch, D, D)
    for i in range(rank):
        factor = left[..., i, :, None] * right[..., i, None, :]
        product = product @ (torch.eye(D) + factor)
    y = rank_ones(x, left, right)
    torch.testing.assert_close(y, matvec(product, x))
    torch.testing.assert_close(rank_ones_inverse(y, left, right), x.expand(y.shape))


def test_many_equal_reflections_stay_exact():
    """The worst case for a compact form: a hundred times the same reflection, and its undoing."""
    v = torch.nn.functional.normalize(torch.randn(8), dim=-1).expand(100, 8)
    x = torch.randn(50, 8)
    torch.testing.assert_close(rank_ones(x, -2 * v, v), x, atol=1e-4, rtol=0)
