# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Couplings whose gradients are written out, against autograd and the inverse."""

import gc
import weakref

import pytest
import torch

from pyro_flows import flows
from pyro_flows.nn import MLP, pseudo_huber, set_dropout
from pyro_flows.transforms import (
    Affine,
    AffineCoupling,
    BatchNorm,
    Compose,
    Coupling,
    Layer,
    Shift,
)
from pyro_flows.transforms.coupling import is_plain


def perturbed(layer, size=0.3):
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(size * torch.randn_like(p))
    return layer


def results(layer, way, x, score, weights):
    x = x.clone().requires_grad_()
    y, ladj, pushed = way(layer, x, score)
    grads = torch.autograd.grad((y * weights).sum(), [x, *layer.parameters()])
    return [y, ladj, pushed, *grads]


@pytest.mark.parametrize("activation", [torch.tanh, pseudo_huber])
@pytest.mark.parametrize("hidden_dims", [(), (16,), (8, 12)])
@pytest.mark.parametrize("reach", [float("inf"), 2.0])
@pytest.mark.parametrize("mask", [[False, True, True], [True, False, True], [True, False, False]])
def test_written_out_is_what_autograd_gives(activation, hidden_dims, reach, mask):
    torch.manual_seed(0)
    net = MLP(3 - sum(mask), 2 * sum(mask), hidden_dims, activation, reach)
    layer = perturbed(Coupling(3, Affine(), mask, conditioner=net).double())
    assert is_plain(layer)
    x, score, weights = (3 * torch.randn(3, 20, 3, dtype=torch.float64)).unbind(0)
    got = results(layer, type(layer).forward_and_score, x, score, weights)
    expected = results(layer, Layer.forward_and_score, x, score, weights)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dim", [1, 2, 7])
def test_the_score_of_a_flow_is_that_of_its_log_density_far_from_the_start(dim, dtype):
    torch.manual_seed(1)
    flow = perturbed(flows.make("default", dim, levels=[0] + [1] * (dim - 1)).to(dtype), 0.2)
    z = 4 * torch.randn(50, dim, dtype=dtype)
    x, ladj, score = flow.transform.forward_and_score(z, -z)
    point = x.detach().double().requires_grad_()
    log_q = flow.double().log_prob(point)
    (expected,) = torch.autograd.grad(log_q.sum(), point)
    got = -0.5 * (z.double().square() + torch.tensor(2 * torch.pi).log()).sum(-1) - ladj
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    torch.testing.assert_close(got, log_q, rtol=tolerance, atol=tolerance, check_dtype=False)
    size = expected.abs().amax(-1, keepdim=True)
    assert ((score - expected).abs() / size).max() < tolerance


def test_runs_of_couplings_go_together_and_others_by_themselves():
    torch.manual_seed(2)
    masks = [[True, False, False], [False, True, True]]
    plain = [AffineCoupling(3, mask) for mask in masks]
    layers = [*plain, Coupling(3, Shift(), masks[0]), *flows.make("default", 3).transform.layers]
    stack = perturbed(Compose(layers).double())
    x, score, weights = torch.randn(3, 10, 3, dtype=torch.float64).unbind(0)
    got = results(stack, Compose.forward_and_score, x, score, weights)
    expected = results(stack, Layer.forward_and_score, x, score, weights)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


class Lifted(AffineCoupling):
    """Does more than a coupling does."""

    def forward_and_ladj(self, x, context=None):
        y, ladj = super().forward_and_ladj(x, context)
        return y + 10, ladj

    def inverse_and_ladj(self, y, context=None):
        return super().inverse_and_ladj(y - 10, context)


@pytest.mark.parametrize("layer", [Lifted(2), BatchNorm(2)])
def test_a_subclass_is_asked_for_its_own_map(layer):
    layer = perturbed(layer).double().eval()
    if isinstance(layer, BatchNorm):
        layer.running_mean.fill_(5.0)
        layer.running_variance.fill_(4.0)
    stack = Compose([AffineCoupling(2).double(), layer])
    x, score, weights = torch.randn(3, 10, 2, dtype=torch.float64).unbind(0)
    got = results(stack, Compose.forward_and_score, x, score, weights)
    expected = results(stack, Layer.forward_and_score, x, score, weights)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_not_plain_is_not_written_out():
    def conditioner(**options):
        return MLP(1, 2, (4,), **options)

    hooked = AffineCoupling(2)
    hooked.conditioner.linears[0].register_forward_hook(lambda *_: None)
    assert not is_plain(hooked)
    unbiased = AffineCoupling(2)
    unbiased.conditioner.linears[0] = torch.nn.Linear(1, 64, bias=False)
    assert not is_plain(unbiased)
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_plain(AffineCoupling(2))

    assert not is_plain(AffineCoupling(2, context_dim=1))
    assert not is_plain(Coupling(2, Affine(), conditioner=conditioner(activation=torch.relu)))
    assert not is_plain(Coupling(2, Affine(), conditioner=torch.nn.Linear(1, 2)))
    dropped = Coupling(2, Affine(), conditioner=conditioner())
    set_dropout(dropped, 0.5)
    assert not is_plain(dropped)
    assert is_plain(dropped.eval())


def test_a_gradient_can_be_taken_twice_from_one_pass():
    layer = perturbed(AffineCoupling(2).double())
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    y, _, _ = layer.forward_and_score(x, -x.detach())
    (first,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (second,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(first, second)


def test_what_it_cannot_do_right_is_refused():
    layer = perturbed(AffineCoupling(2).double())
    x = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    y, _, _ = layer.forward_and_score(x, -x.detach())
    (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True, retain_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
    y, _, _ = layer.forward_and_score(x, -x.detach())
    with torch.no_grad():
        layer.conditioner.linears[0].weight.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_under_vmap():
    layer = perturbed(AffineCoupling(2).double())
    x, score = torch.randn(2, 3, 4, 2, dtype=torch.float64)
    together = [part.flatten(0, 1) for part in (x, score)]
    for one, other in zip(
        torch.vmap(layer.forward_and_score)(x, score),
        layer.forward_and_score(*together),
        strict=True,
    ):
        torch.testing.assert_close(one.flatten(0, 1), other)


def test_nothing_outlives_its_step():
    layer = perturbed(AffineCoupling(2))
    gc.disable()
    try:
        y, ladj, score = layer.forward_and_score(torch.randn(5, 2), torch.randn(5, 2))
        y.sum().backward()
        watched = [weakref.ref(tensor) for tensor in (y, ladj, score)]
        del y, ladj, score
        assert [ref() for ref in watched] == [None] * 3
    finally:
        gc.enable()
