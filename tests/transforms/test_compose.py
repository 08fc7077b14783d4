# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Composition, elementwise layers, inverses."""

import pyro.distributions as dist
import pytest
import torch

from pyro_flows.distributions import Flow
from pyro_flows.errors import ContextError, ShapeError
from pyro_flows.ops import alternating_masks
from pyro_flows.transforms import (
    Affine,
    AffineCoupling,
    Chain,
    CholeskyAffine,
    CircularSpline,
    Compose,
    Coupling,
    Elementwise,
    Multiscale,
    Permute,
    RationalQuadraticSpline,
    Shift,
    Sigmoid,
    SplineCoupling,
)


def test_layers_run_first_to_last():
    shift, order = CholeskyAffine(2), Permute(2)
    shift.set(loc=torch.tensor([1.0, 0.0]))
    assert Compose([shift, order])(torch.zeros(2)).tolist() == [0.0, 1.0]
    assert Compose([order, shift])(torch.zeros(2)).tolist() == [1.0, 0.0]


def test_context_goes_to_those_that_take_one():
    flow = Compose([AffineCoupling(2, context_dim=3), Permute(2), AffineCoupling(2)])
    assert flow.context_dim == 3
    y, ladj = flow.forward_and_ladj(torch.zeros(2), torch.zeros(5, 3))
    assert y.shape == (5, 2)
    assert ladj.shape == (5,)


def test_compositions_nest():
    inner = Compose([CholeskyAffine(2), Permute(2)])
    flow = Compose([inner, inner.inv])
    x = torch.randn(4, 2)
    assert torch.allclose(flow(x), x)
    assert sum(1 for _ in flow.parameters()) == 3


@pytest.mark.parametrize(
    ("layers", "text"),
    [
        (
            [Permute(2), Permute(2), CholeskyAffine(3)],
            "here dim=2 and context_dim=0 (or 0), but layer 2, CholeskyAffine, has dim=3 and "
            "context_dim=0.",
        ),
        (
            [Permute(2), AffineCoupling(2, context_dim=1), AffineCoupling(2, context_dim=4)],
            "here dim=2 and context_dim=1 (or 0), but layer 2, AffineCoupling, has dim=2 and "
            "context_dim=4.",
        ),
    ],
)
def test_sizes_must_agree(layers, text):
    with pytest.raises(ShapeError) as caught:
        Compose(layers)
    assert str(caught.value) == (
        f"A flow expected layers of one dim and one context_dim, {text} Build all layers with the "
        "same sizes."
    )


def test_a_layer_is_needed():
    with pytest.raises(ShapeError, match="A flow expected at least one layer, but got none"):
        Compose([])


@pytest.mark.parametrize(
    ("layer", "name"),
    [
        (Compose([Permute(4), Permute(4)]), "This flow of 2 layers"),
        (Compose([Multiscale([Permute(2), Permute(4)]), Permute(4)]), "This flow of 2 layers"),
        (Multiscale([Permute(2), Permute(4)]), "Multiscale"),
    ],
)
def test_errors_call_a_flow_a_flow(layer, name):
    with pytest.raises(ShapeError, match=rf"^{name} expected values of shape \(\.\.\., 4\)"):
        layer(torch.zeros(5))
    with pytest.raises(ContextError, match=f"^{name} was built with context_dim=0"):
        layer.forward_and_ladj(torch.zeros(4), torch.zeros(1))


def test_spaces_must_agree():
    circle, squash = Coupling(2, CircularSpline()), Elementwise(2, Sigmoid())
    for layers in ([AffineCoupling(2), circle], [Permute(2), squash.inv]):
        with pytest.raises(ShapeError) as caught:
            Compose(layers)
        name = type(layers[0]).__name__
        assert f"but {name} gives all real vectors and" in str(caught.value)
        assert "Put a layer onto that space between" in str(caught.value)
    assert Compose([circle, circle]).domain.check(torch.tensor([0.0, 3.0]))
    assert Compose([squash, squash.inv])(torch.zeros(2)).abs().max() < 1e-6


def test_only_layers_compose():
    with pytest.raises(ShapeError, match="expected pyro_flows layers, but got ExpTransform"):
        Compose([dist.transforms.ExpTransform()])


def test_elementwise_moves_each_coordinate_by_itself():
    layer = Elementwise(3, RationalQuadraticSpline(bins=4))
    for p in layer.parameters():
        p.data.normal_()
    jacobian = torch.func.jacrev(layer)(torch.randn(3))
    assert torch.equal(jacobian, torch.diag(jacobian.diagonal()))
    assert (jacobian.diagonal() > 0).all()


def test_elementwise_under_context():
    layer = Elementwise(3, Affine(), context_dim=2, hidden_dims=())
    for p in layer.parameters():
        p.data.normal_()
    y, _ = layer.forward_and_ladj(torch.zeros(3), torch.randn(5, 2))
    assert y.shape == (5, 3)
    assert (y[0] != y[1]).all()


def test_elementwise_is_printed():
    assert repr(Elementwise(2, Shift())).startswith("Elementwise(\n  dim=2, univariate=Shift()")


def test_chain_adds_up():
    chain = Chain((RationalQuadraticSpline(4), Affine(), Shift()))
    assert chain.num_parameters == 11 + 2 + 1
    params = torch.randn(3, 14)
    x = torch.randn(3)
    y, ladj = chain.forward_and_ladj(x, params)
    a, first = RationalQuadraticSpline(4).forward_and_ladj(x, params[:, :11])
    b, second = Affine().forward_and_ladj(a, params[:, 11:13])
    assert torch.allclose(y, b + params[:, 13])
    assert torch.allclose(ladj, first + second)


@pytest.mark.parametrize("univariate", [Shift(), Affine(), RationalQuadraticSpline()])
def test_univariates_are_values(univariate):
    """Equal by their settings and hashable, so that two layers of one kind compare and print."""
    assert univariate == type(univariate)()
    assert hash(univariate) == hash(type(univariate)())


def test_inverses_are_equal_by_their_layer():
    layer = CholeskyAffine(2)
    assert layer.inv == layer.inv
    assert layer.inv != CholeskyAffine(2).inv
    assert len({layer.inv, layer.inv}) == 1
    assert layer.inv.inv is layer


class TestRecompute:
    def stack(self, context_dim=0):
        torch.manual_seed(0)
        masks = alternating_masks(4, 6)
        layers = [SplineCoupling(4, mask, context_dim, hidden_dims=(16,)) for mask in masks]
        stack = Compose(layers).double()
        with torch.no_grad():
            for p in stack.parameters():
                p.add_(0.3 * torch.randn_like(p))
        return stack

    def kept(self, stack, x):
        """Bytes that autograd keeps for the gradient."""
        total = 0

        def pack(tensor):
            nonlocal total
            total += tensor.nbytes
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            _, ladj = stack.inverse_and_ladj(x)
        ladj.sum().backward()
        return total

    @pytest.mark.parametrize("context_dim", [0, 2])
    @pytest.mark.parametrize("way", ["forward_and_ladj", "inverse_and_ladj"])
    def test_gives_the_same_gradients(self, way, context_dim):
        stack = self.stack(context_dim)
        x = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
        context = torch.randn(7, context_dim, dtype=torch.float64) if context_dim else None
        results = []
        for stack.recompute in (False, True):
            y, ladj = getattr(stack, way)(x, context)
            total = y.sin().sum() + ladj.square().sum()
            first = torch.autograd.grad(total, [x, *stack.parameters()], create_graph=True)
            (second,) = torch.autograd.grad(first[0].square().sum(), x)
            results.append([y, ladj, *first, second])
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)

    def test_keeps_less(self):
        stack, x = self.stack(), torch.randn(500, 4, dtype=torch.float64)
        plain = self.kept(stack, x)
        stack.recompute = True
        assert self.kept(stack, x) < plain / 10

    def test_leaves_vmap_and_no_grad_alone(self):
        flow = Flow([AffineCoupling(3), AffineCoupling(3)], recompute=True).double()
        x = torch.randn(5, 3, dtype=torch.float64)
        torch.testing.assert_close(torch.vmap(flow.log_prob)(x), flow.log_prob(x))
        with torch.no_grad():
            assert not flow.log_prob(x).requires_grad
