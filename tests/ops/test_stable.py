# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The soft clamp."""

import pytest
import torch

from pyro_flows.ops import soft_clamp


@pytest.mark.parametrize("bound", [0.5, 3.0])
def test_soft_clamp(bound):
    x = torch.tensor([0.0, 1e-8, 2.0, -1e20, 1e20], requires_grad=True)
    y = soft_clamp(x, bound)
    assert (y.abs() <= bound).all()
    assert y[3:].tolist() == [-bound, bound]
    slope = torch.autograd.grad(y.sum(), x)[0]
    assert slope[0] == 1
    assert ((slope >= 0) & (slope <= 1)).all()
