# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Bounds of the spectral norm."""

import pytest
import torch

from pyro_flows.ops import spectral_norm_bound


@pytest.mark.parametrize("shape", [(64, 64), (64, 3), (1, 5), (7, 2, 6)])
@pytest.mark.parametrize("size", [1e-100, 1.0, 1e100])
def test_the_norm_is_bounded_closely(shape, size):
    matrix = size * torch.randn(shape)
    norm = torch.linalg.matrix_norm(matrix, ord=2)
    bound = spectral_norm_bound(matrix)
    assert bound.shape == shape[:-2]
    assert (bound >= norm * (1 - 1e-12)).all()
    assert (bound <= norm * min(shape[-2:]) ** (1 / 128) * (1 + 1e-12)).all()


def test_the_bound_in_float32_and_at_zero():
    matrix = torch.randn(32, 32, dtype=torch.float32)
    ratio = spectral_norm_bound(matrix) / torch.linalg.matrix_norm(matrix, ord=2)
    assert 1 - 1e-5 < ratio < 1.03
    zero = torch.zeros(3, 4, requires_grad=True)
    bound = spectral_norm_bound(zero)
    assert bound < 1e-100
    assert torch.equal(torch.autograd.grad(bound, zero)[0], torch.zeros(3, 4))


def test_the_bounds_gradient():
    torch.autograd.gradcheck(spectral_norm_bound, torch.randn(2, 4, 3, requires_grad=True))
    # Equal singular values are no trouble, as they'd be to a decomposition.
    torch.autograd.gradcheck(spectral_norm_bound, torch.eye(3, requires_grad=True))
