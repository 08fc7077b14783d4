# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Permutations and the Cholesky affine map."""

import re

import pyro.distributions as dist
import pytest
import torch

from pyro_flows.errors import ShapeError
from pyro_flows.testing import Case
from pyro_flows.transforms import CholeskyAffine, Permute


@pytest.mark.parametrize("order", [[2, 0, 1], torch.tensor([2, 0, 1]), (2, 0, 1)])
def test_permute(order):
    layer = Permute(order)
    x = torch.tensor([[10.0, 11.0, 12.0]])
    y, ladj = layer.forward_and_ladj(x)
    assert y.tolist() == [[12.0, 10.0, 11.0]]
    assert ladj.tolist() == [0.0]
    assert torch.equal(layer.inv(y), x)


def test_an_integer_reverses():
    assert Permute(3)(torch.arange(3.0)).tolist() == [2.0, 1.0, 0.0]


def test_the_order_is_saved():
    new = Permute(4)
    new.load_state_dict(Permute([1, 0, 3, 2]).state_dict())
    assert new(torch.arange(4.0)).tolist() == [1.0, 0.0, 3.0, 2.0]
    assert torch.equal(new.inv(new(torch.arange(4.0))), torch.arange(4.0))


def test_permute_keeps_its_own_order():
    order = torch.tensor([1, 0])
    layer = Permute(order)
    order.zero_()
    assert layer(torch.arange(2.0)).tolist() == [1.0, 0.0]


def test_a_random_order_is_of_its_seed_alone():
    before = torch.random.get_rng_state()
    first, second, other = (Permute.random(20, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first.order, second.order)
    assert not torch.equal(first.order, other.order)
    x = torch.randn(3, 20)
    assert torch.equal(first.inv(first(x)), x)


@pytest.mark.parametrize("order", [[0, 0], [1, 2], [[0, 1]]])
def test_permute_refuses(order):
    text = (
        f"Permute expected each of 0..dim-1 once, but got {order}. "
        "Pass for example torch.randperm(dim)."
    )
    with pytest.raises(ShapeError, match=re.escape(text)):
        Permute(order)


def covariance(dim):
    a = torch.randn(dim, dim)
    return a @ a.T + torch.eye(dim)


@pytest.mark.parametrize("dim", [1, 2, 5])
def test_cholesky_is_the_full_rank_normal(dim):
    layer = CholeskyAffine(dim)
    tril, loc = torch.linalg.cholesky(covariance(dim)), torch.randn(dim)
    layer.set(loc=loc, scale_tril=tril)
    assert torch.allclose(layer.scale_tril, tril)
    base = dist.Normal(torch.zeros(dim), 1.0).to_event(1)
    value = torch.randn(6, dim)
    assert torch.allclose(
        dist.TransformedDistribution(base, [layer]).log_prob(value),
        dist.MultivariateNormal(loc, scale_tril=tril).log_prob(value),
    )


def test_cholesky_scales_rows():
    """Standard deviations of 0.02 and 9,700 are both one step's work away."""
    layer = CholeskyAffine(2)
    layer.set(scale_tril=torch.tensor([[0.02, 0.0], [9700.0, 9700.0]]))
    assert torch.allclose(layer.lower, torch.ones(1))
    assert torch.allclose(layer.log_scale, torch.tensor([0.02, 9700.0]).log())


def test_set_keeps_the_parameters_in_place():
    layer = CholeskyAffine(2)
    before = [p.data_ptr() for p in layer.parameters()]
    layer.set(loc=torch.ones(2), scale_tril=2 * torch.eye(2))
    assert [p.data_ptr() for p in layer.parameters()] == before
    assert layer(torch.ones(2)).tolist() == pytest.approx([3.0, 3.0])


def test_cholesky_regression_is_a_normal_of_its_context():
    """With a context, location and factor are its functions, around what was set."""
    layer = Case(lambda d, c: CholeskyAffine(d, c), 3, 2).layer()
    context = torch.randn(4, 2)
    eye = torch.eye(3).unsqueeze(1)
    loc = layer.forward_and_ladj(torch.zeros(3), context)[0]
    tril = (layer.forward_and_ladj(eye, context)[0] - loc).movedim(0, -1)
    assert not tril.triu(1).any()
    assert (tril.diagonal(dim1=-2, dim2=-1) > 0).all()
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    flow = dist.ConditionalTransformedDistribution(base, [layer]).condition(context)
    value = torch.randn(6, 4, 3)
    assert torch.allclose(
        flow.log_prob(value),
        dist.MultivariateNormal(loc, scale_tril=tril).log_prob(value),
    )


def test_set_sets_where_a_conditional_layer_starts():
    layer = CholeskyAffine(2, context_dim=1)
    tril = torch.tensor([[2.0, 0.0], [1.0, 3.0]])
    layer.set(loc=torch.ones(2), scale_tril=tril)
    y, ladj = layer.forward_and_ladj(torch.ones(5, 2), torch.randn(5, 1))
    assert torch.allclose(y, torch.tensor([3.0, 5.0]).expand(5, 2))
    assert torch.allclose(ladj, torch.tensor(6.0).log().expand(5))


def test_set_refuses():
    layer = CholeskyAffine(2)
    text = (
        "CholeskyAffine.set expected loc of shape (2,), but got (3,). "
        "Pass one location per coordinate."
    )
    with pytest.raises(ShapeError, match=re.escape(text)):
        layer.set(loc=torch.zeros(3))
    for bad, shape in (
        (torch.eye(3), "(3, 3)"),
        (-torch.eye(2), "(2, 2)"),
        (torch.full((2, 2), torch.nan), "(2, 2)"),
        (torch.ones(2), "(2,)"),
        (torch.tensor([[1.0, 0.5], [0.5, 1.0]]), "(2, 2)"),
    ):
        text = (
            "CholeskyAffine.set expected a lower-triangular scale_tril of shape (2, 2) with a "
            f"positive diagonal, but got one of shape {shape}. "
            "Pass torch.linalg.cholesky of a covariance."
        )
        with pytest.raises(ShapeError, match=re.escape(text)):
            layer.set(loc=torch.ones(2), scale_tril=bad)
    assert torch.equal(layer.loc, torch.zeros(2))
    assert torch.equal(layer.scale_tril, torch.eye(2))


def test_a_location_measured_in_scales_moves_by_them():
    layer = CholeskyAffine(2)
    tril = torch.tensor([[1e-4, 0.0], [2e4, 1e4]])
    layer.set(loc=torch.tensor([3.0, -5e5]), scale_tril=tril)
    x = torch.randn(7, 2)
    before = layer(x).detach()
    layer.measure_in_scales()
    torch.testing.assert_close(layer(x).detach(), before)
    torch.testing.assert_close(layer.inv(before), x, atol=1e-2, rtol=0)
    torch.testing.assert_close(layer.loc.detach(), torch.tensor([3.0, -5e5]))
    with torch.no_grad():
        layer.tensors.start["loc"].add_(1.0)
    torch.testing.assert_close(
        layer(x) - before, torch.tensor([1e-4, 1e4]).expand(7, 2), rtol=0.05, atol=0
    )
    layer.set(loc=torch.tensor([1.0, 2.0]))
    torch.testing.assert_close(layer.loc.detach(), torch.tensor([1.0, 2.0]))
