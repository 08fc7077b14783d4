# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Residual, convolutional and attention conditioners: start, arrangement, what sees what."""

import re

import pytest
import torch
from torch import nn

from pyro_flows.errors import ShapeError
from pyro_flows.nn import (
    ConvNet,
    Encoder,
    MaskedImage,
    PixelAttention,
    ResidualMLP,
    SelfAttention,
)
from pyro_flows.ops import channel_mask, checkerboard_mask, random_mask

SHAPE = (4, 3, 5)
MASKS = {
    "channels": channel_mask(SHAPE),
    "checkerboard": checkerboard_mask(SHAPE),
    "random": random_mask(60, 7),
}


def randomise(net):
    for p in net.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return net


def make(kind, mask, context_dim=0, num_features=1, num_parameters=2):
    mask = MASKS[mask]
    options = {"num_features": num_features, "context_dim": context_dim}
    if kind == "residual":
        kept = int((~mask).sum()) * num_features + context_dim
        return ResidualMLP(kept, int(mask.sum()) * num_parameters, hidden_dim=8)
    if kind == "attention":
        return SelfAttention(mask, num_parameters, width=8, **options)
    if kind == "conv":
        return ConvNet(mask, num_parameters, SHAPE, hidden_channels=6, **options)
    return PixelAttention(mask, num_parameters, SHAPE, width=8, **options)


KINDS = ["residual", "attention", "conv", "pixels"]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("num_features", [1, 2])
@pytest.mark.parametrize("context_dim", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_starts_at_zero_exactly_and_learns(kind, context_dim, num_features, mask):
    net = make(kind, mask, context_dim, num_features)
    kept, moved = int((~MASKS[mask]).sum()), int(MASKS[mask].sum())
    for batch in ((), (2,), (2, 3), (0,)):
        y = net(torch.randn(*batch, kept * num_features + context_dim))
        assert y.shape == (*batch, 2 * moved)
        assert (y == 0).all()
    randomise(net)(torch.randn(5, kept * num_features + context_dim)).square().sum().backward()
    assert [n for n, p in net.named_parameters() if not (p.grad != 0).any()] == []


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_is_of_the_size_of_the_mlps(kind):
    """Outputs are divided by the width, so that one learning rate serves all conditioners."""
    net = make(kind, "channels")
    assert torch.allclose(net.last.weight, torch.zeros(()))
    net.last.bias.data.fill_(1.0)
    width = {"residual": 8, "attention": 8, "conv": 6, "pixels": 8}[kind]
    assert torch.allclose(net(torch.randn(3, 30)), torch.tensor(1 / width))


@pytest.mark.parametrize("mask", MASKS)
def test_images_and_parameters_lie_where_the_mask_says(mask):
    mask = MASKS[mask]
    places = MaskedImage(mask, SHAPE, num_features=2, num_parameters=3)
    values = torch.randn(5, *SHAPE, 2)
    image = places.image(values.flatten(1, 3)[:, ~mask].flatten(1))
    per_place = values.permute(0, 1, 4, 2, 3) * ~mask.view(SHAPE)[:, None]
    channels = slice(0, 2) if places.by_channel else slice(None)
    assert torch.equal(
        image[:, :8][:, : places.channels * 2], per_place[:, channels].flatten(1, 2)
    )
    if not places.by_channel:
        assert torch.equal(image[:, 8:], mask.view(SHAPE).double().expand(5, -1, -1, -1))
    # Number the places and the parameters of each, and find them in order again.
    number = torch.arange(60).view(SHAPE)[:, None] * 3 + torch.arange(3).view(1, 3, 1, 1)
    made = number[2:] if places.by_channel else number
    found = places.parameters_of(made.flatten(0, 1)[None]).view(-1, 3)
    assert torch.equal(found[:, 0] // 3, mask.nonzero()[:, 0])
    assert torch.equal(found, found[:, :1] + torch.arange(3))


@pytest.mark.parametrize("mask", ["channels", "checkerboard"])
def test_convolutions_see_their_neighbourhood_only(mask):
    net = randomise(ConvNet(MASKS[mask], 1, SHAPE, hidden_channels=6, blocks=0))
    x = torch.randn(int((~MASKS[mask]).sum()))
    slopes = torch.func.jacrev(net)(x) != 0
    row, column = (torch.arange(60).view(SHAPE) // 5 % 3), (torch.arange(60).view(SHAPE) % 5)
    rows = [place.flatten()[MASKS[mask]][:, None] for place in (row, column)]
    columns = [place.flatten()[~MASKS[mask]] for place in (row, column)]
    near = torch.stack([(a - b).abs() for a, b in zip(rows, columns, strict=True)]).amax(0) <= 1
    assert torch.equal(slopes, near)


def test_a_convolution_moves_with_the_image():
    """Away from the borders, a shifted image has shifted parameters."""
    shape = (2, 9, 9)
    net = randomise(ConvNet(channel_mask(shape), 1, shape, hidden_channels=6, blocks=1))
    x = torch.randn(9, 9)
    y, shifted = net(x.flatten()).view(9, 9), net(x.roll(1, 1).flatten()).view(9, 9)
    assert torch.allclose(shifted[:, 4:6], y[:, 3:5])


def test_attention_lets_every_coordinate_see_every_other():
    net = randomise(SelfAttention([True, False, False, True, True], 2, width=8))
    assert (torch.func.jacrev(net)(torch.randn(2)) != 0).all()


def test_attention_is_softmax_of_products():
    """Against torch's own attention."""
    block = randomise(Encoder(8, heads=2, blocks=1)).blocks[0]
    theirs = nn.MultiheadAttention(8, 2, batch_first=True)
    ours = block.queries, block.keys, block.values
    theirs.in_proj_weight.data = torch.cat([linear.weight.data for linear in ours])
    theirs.in_proj_bias.data = torch.cat(
        [block.queries.bias.data, torch.zeros(8), block.values.bias.data]
    )
    theirs.out_proj.load_state_dict(block.out.state_dict())
    h = torch.randn(3, 5, 8)
    assert torch.allclose(block._attend(h), theirs(h, h, h, need_weights=False)[0])


@pytest.mark.parametrize("kind", ["attention", "conv", "pixels"])
def test_vmap_gives_what_a_batch_gives(kind):
    net = randomise(make(kind, "checkerboard", context_dim=2))
    x = torch.randn(4, int((~MASKS["checkerboard"]).sum()) + 2)
    assert torch.allclose(torch.func.vmap(net)(x), net(x))


@pytest.mark.parametrize("kind", KINDS)
def test_built_elsewhere(kind):
    torch.set_default_device("meta")
    net = make(kind, "random", context_dim=2)
    assert {t.device.type for t in net.state_dict().values()} == {"meta"}


def test_norm_keeps_far_inputs_from_growing():
    x = 1e6 * torch.ones(3)
    plain, normed = (randomise(ResidualMLP(3, 1, norm=norm)) for norm in (False, True))
    for net in (plain, normed):
        net.shortcut.weight.data.zero_()
    assert normed(x).abs() < 10 < plain(x).abs()


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: ResidualMLP(0, 2), "ResidualMLP expected in_dim >= 1, hidden_dim >= 1 and blocks "
         ">= 0, but got in_dim=0, hidden_dim=64, blocks=2. Without inputs, use MLP: it gives a "
         "trainable constant."),
        (lambda: Encoder(6, heads=4), "Encoder expected a width that its heads divide, but got "
         "width=6 and heads=4. Choose for example width=32."),
        (lambda: ConvNet([True, False], 2, (1, 2, 2)), "MaskedImage expected a shape (C, H, W) "
         "and a mask of length C * H * W that keeps and moves at least one value, but got shape "
         "(1, 2, 2) and a mask of shape (2,) that moves 1. Use ops.channel_mask(shape) or "
         "ops.checkerboard_mask(shape)."),
        (lambda: PixelAttention([True] * 4, 2, (1, 2, 2)), "a mask of shape (4,) that moves 4."),
    ],
)  # fmt: skip
def test_impossible_sizes(call, text):
    with pytest.raises(ShapeError, match=re.escape(text)):
        call()


def test_printed():
    assert "in_dim=3, out_dim=4" in repr(ResidualMLP(3, 4))
