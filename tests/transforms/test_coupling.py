# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Couplings: what moves, what stays, what is refused."""

import copy
import re

import pytest
import torch
from torch import nn

from pyro_flows.errors import PyroFlowsError, ShapeError
from pyro_flows.nn import ResidualMLP
from pyro_flows.transforms import Affine, AffineCoupling, Coupling, Shift, SplineCoupling


def randomise(layer):
    for p in layer.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return layer


@pytest.mark.parametrize("make", [list, torch.tensor], ids=["list", "tensor"])
def test_mask_says_what_moves(make):
    mask = [True, False, False, True]
    layer = randomise(Coupling(4, Affine(), mask=make(mask)))
    x = torch.randn(7, 4)
    moved = (layer(x) != x).all(0)
    assert moved.tolist() == mask


def test_by_default_the_second_half_moves():
    layer = randomise(AffineCoupling(5))
    x = torch.randn(7, 5)
    assert (layer(x) != x).all(0).tolist() == [False, False, True, True, True]


def test_moved_coordinates_depend_on_kept_ones_and_context():
    layer = randomise(AffineCoupling(2, context_dim=1))

    def second(x, context):
        return layer.forward_and_ladj(x, context)[0][1]

    x, c = torch.zeros(2), torch.zeros(1)
    gradients = torch.func.grad(second, (0, 1))(x, c)
    assert (gradients[0] != 0).all()
    assert (gradients[1] != 0).all()


def test_a_mask_may_move_everything_where_there_is_a_context():
    layer = randomise(Coupling(3, Shift(), mask=[True] * 3, context_dim=2))
    x, context = torch.randn(4, 3), torch.randn(4, 2)
    y, _ = layer.forward_and_ladj(x, context)
    assert (y != x).all()


def test_a_custom_conditioner():
    net = nn.Linear(1, 2)
    layer = Coupling(2, Affine(), conditioner=net)
    assert layer.conditioner is net
    x = torch.randn(3, 2)
    assert torch.allclose(layer.inv(layer(x)), x)


@pytest.mark.parametrize(
    ("dim", "mask", "text"),
    [
        (3, [False] * 3, "expected a mask of length 3 that moves at least one coordinate, but got "
         "[False, False, False]. True marks a coordinate that is moved."),
        (3, [True, False], "expected a mask of length 3 that moves at least one coordinate, but "
         "got [True, False]."),
        (2, [True, True], "has nothing to condition on: all 2 coordinate(s) are moved and "
         "context_dim is 0. Keep a coordinate, give a context, or use Elementwise."),
        (1, None, "has nothing to condition on: all 1 coordinate(s) are moved"),
    ],
)  # fmt: skip
def test_impossible_masks(dim, mask, text):
    with pytest.raises(ShapeError, match=re.escape(f"Coupling {text}")):
        Coupling(dim, Affine(), mask=mask)


@pytest.mark.parametrize(("dim", "context_dim"), [(0, 0), (-1, 0), (2, -1)])
def test_impossible_sizes(dim, context_dim):
    text = (
        f"AffineCoupling expected integers dim >= 1 and context_dim >= 0, but got dim={dim} and "
        f"context_dim={context_dim}. Give the size of the last axis of your values."
    )
    with pytest.raises(ShapeError, match=re.escape(text)) as caught:
        AffineCoupling(dim, context_dim=context_dim)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, PyroFlowsError)


def test_wrong_width():
    text = (
        "AffineCoupling expected values of shape (..., 3), but got (5, 4). "
        "Build the layer with dim equal to the size of the last axis."
    )
    with pytest.raises(ShapeError, match=re.escape(text)):
        AffineCoupling(3)(torch.zeros(5, 4))


def test_scales_are_softly_bounded():
    layer = AffineCoupling(2, log_scale_bound=1.5)
    layer.conditioner.linears[-1].bias.data.fill_(1e6)
    _, ladj = layer.forward_and_ladj(torch.zeros(2))
    assert ladj.item() == pytest.approx(1.5)


def test_context_errors():
    from pyro_flows.errors import ContextError

    conditional, plain = AffineCoupling(2, context_dim=3), AffineCoupling(2)
    x = torch.zeros(2)
    with pytest.raises(ContextError, match=re.escape(
        "AffineCoupling expected a context of shape (..., 3), but got none. "
        "Call layer.condition(context) first, or flow(context) for a whole flow."
    )):  # fmt: skip
        conditional(x)
    with pytest.raises(ContextError, match=re.escape(
        "AffineCoupling expected a context of shape (..., 3), but got (4,). "
        "The last axis must have size 3."
    )):  # fmt: skip
        conditional.condition(torch.zeros(4))(x)
    with pytest.raises(ContextError, match=re.escape(
        "AffineCoupling was built with context_dim=0, but got a context of shape (3,). "
        "Build it with context_dim=3."
    )):  # fmt: skip
        plain.forward_and_ladj(x, torch.zeros(3))
    with pytest.raises(ContextError, match=re.escape(
        "AffineCoupling.condition expected a context of shape (..., 3), but got None. "
        "Pass the context tensor."
    )):  # fmt: skip
        conditional.condition(None)


@pytest.mark.parametrize("seed", range(3))
def test_slices_and_indices_give_the_same_digits(seed):
    """A mask that is a prefix or suffix is sliced; others are indexed."""
    for mask in ([False] * 3 + [True] * 2, [True] * 3 + [False] * 2):
        sliced = randomise(SplineCoupling(5, mask))
        indexed = copy.deepcopy(sliced)
        assert sliced.layout != "scattered"
        indexed.layout = "scattered"
        x, weights = torch.randn(2, 7, 5)
        for name in ("forward_and_ladj", "inverse_and_ladj"):
            results = []
            for layer in (sliced, indexed):
                leaf = x.clone().requires_grad_()
                y, ladj = getattr(layer, name)(leaf)
                loss = (y * weights).sum() + ladj.sum()
                grads = torch.autograd.grad(loss, [leaf, *layer.parameters()])
                results.append((y, ladj, *grads))
            assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_a_loaded_mask_is_used():
    """The mask is part of the state: another one of the same size comes with it."""
    x = torch.randn(7, 4)
    for mask in ([True, True, False, False], [True, False, True, False]):
        layer = AffineCoupling(4)
        other = randomise(AffineCoupling(4, mask))
        layer.load_state_dict(other.state_dict())
        assert torch.equal(layer(x), other(x))


def test_a_layer_built_on_meta_is_loaded():
    other = randomise(AffineCoupling(4))
    torch.set_default_device("meta")
    layer = AffineCoupling(4)
    torch.set_default_device(None)
    layer.load_state_dict(other.state_dict(), assign=True)
    x = torch.randn(7, 4)
    assert torch.equal(layer(x), other(x))
    assert layer.layout == other.layout == "kept first"


def test_a_conditioner_from_its_widths():
    asked = []

    def make(*widths):
        asked.append(widths)
        return nn.Linear(*widths)

    layer = Coupling(3, Affine(), [True, False, True], context_dim=4, conditioner=make)
    assert asked == [(5, 4)]
    assert isinstance(layer.conditioner, nn.Linear)
    assert isinstance(Coupling(3, Affine(), conditioner=ResidualMLP).conditioner, ResidualMLP)


def test_a_conditioner_of_the_wrong_width():
    """Two numbers for three moved coordinates would be shared by all three, silently."""
    layer = Coupling(4, Affine(), [False, True, True, True], conditioner=nn.Linear(1, 2))
    text = (
        "Coupling expected its conditioner to map 1 numbers to 3 * 2, parameters for each moved "
        "coordinate, but it gave 2. Build it for these widths."
    )
    with pytest.raises(ShapeError, match=re.escape(text)):
        layer(torch.zeros(4))


def test_printed():
    text = repr(SplineCoupling(3, context_dim=2))
    assert text.startswith(
        "SplineCoupling(\n  dim=3, context_dim=2, moved=[1, 2], univariate=Rational"
    )
