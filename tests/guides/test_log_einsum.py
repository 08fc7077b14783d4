# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Sums of products on the log scale: Pyro's values and gradients, also under vmap."""

import opt_einsum
import pytest
import torch
from pyro.ops.einsum import torch_log

from pyro_flows.guides import log_einsum

EQUATIONS = {
    "a->a": [(3,)],
    "a->": [(3,)],
    "ab->ba": [(2, 3)],
    "ab,b->a": [(2, 3), (3,)],
    "a,bc,ab->c": [(2,), (3, 4), (2, 3)],
    "aA,AB->B": [(2, 3), (3, 4)],
    "Zab,Zbc->acZ": [(4, 2, 3), (4, 3, 2)],
    "a,b->ab": [(2,), (3,)],
}


def operands(shapes, special):
    torch.manual_seed(0)
    tensors = [100 * torch.randn(shape, dtype=torch.float64) for shape in shapes]
    if special:  # nothing there; and all of a sum gone
        tensors[0][0] = -torch.inf
    return [tensor.requires_grad_() for tensor in tensors]


@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("equation", EQUATIONS)
def test_it_is_pyros(equation, special):
    given = operands(EQUATIONS[equation], special)
    got, expected = (
        opt_einsum.contract(equation, *given, backend=backend)
        for backend in ("pyro_flows.guides.log_einsum", "pyro.ops.einsum.torch_log")
    )
    torch.testing.assert_close(got, expected)
    along = torch.randn(expected.shape, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad(got, given, along),
        torch.autograd.grad(expected, given, along),
        strict=True,
    ):
        torch.testing.assert_close(one, other, equal_nan=True)


def test_small_sums_keep_their_value():
    x = torch.tensor([0.0, -200.0], dtype=torch.float64)
    y = torch.tensor([-200.0, 0.0], dtype=torch.float64)
    got = log_einsum.einsum("a,a->", x, y)
    torch.testing.assert_close(got, torch_log.einsum("a,a->", x, y))
    assert float(got) == pytest.approx(-200 + torch.tensor(2.0).log())


def test_second_derivatives():
    torch.manual_seed(0)
    x, y = torch.randn(2, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)

    def hessian(einsum):
        return torch.autograd.functional.hessian(lambda x: einsum("ab,b->a", x, y).sum(), x)

    got, expected = hessian(log_einsum.einsum), hessian(torch_log.einsum)
    torch.testing.assert_close(got, expected)


def test_one_particle_and_the_next():
    torch.manual_seed(0)
    x, y = torch.randn(5, 2, 3), torch.randn(3, 4)
    got = torch.vmap(lambda x: log_einsum.einsum("ab,bc->ac", x, y))(x)
    rows = [torch_log.einsum("ab,bc->ac", row, y) for row in x]
    torch.testing.assert_close(got, torch.stack(rows))
