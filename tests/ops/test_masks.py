# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Masks of couplings: halves and complements, the same every time."""

import re

import pytest
import torch

from pyro_flows.errors import ShapeError
from pyro_flows.ops import alternating_masks, channel_mask, checkerboard_mask, random_mask


@pytest.mark.parametrize("dim", [2, 3, 5, 64])
@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_pairs_are_complements(dim, count):
    masks = alternating_masks(dim, count)
    assert masks.shape == (count, dim)
    assert masks.dtype == torch.bool
    for first, second in zip(masks[0::2], masks[1::2], strict=False):
        assert (first ^ second).all()
    assert set(masks.sum(1).tolist()) <= {dim // 2, dim - dim // 2}


def test_the_first_pair_splits_by_halves():
    assert alternating_masks(5, 1)[0].tolist() == [False, False, True, True, True]


def test_masks_depend_on_the_arguments_alone():
    torch.manual_seed(1)
    first = alternating_masks(16, 6)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert torch.equal(alternating_masks(16, 6), first)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(alternating_masks(16, 6, seed=1), first)


def test_later_pairs_are_other_halves():
    masks = alternating_masks(16, 6)
    assert not torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[2], masks[4])


def test_any_two_coordinates_meet_on_both_sides():
    masks = alternating_masks(8, 12)
    for i in range(8):
        for j in range(8):
            assert i == j or (masks[:, i] & ~masks[:, j]).any()


@pytest.mark.parametrize("shape", [(2, 1, 1), (3, 2, 4), (4, 3, 5)])
def test_channel_masks_move_whole_channels(shape):
    mask = channel_mask(shape).view(shape)
    half = shape[0] // 2
    assert not mask[:half].any()
    assert mask[half:].all()
    assert torch.equal(channel_mask(shape, parity=1), ~mask.flatten())


@pytest.mark.parametrize("shape", [(1, 1, 2), (3, 2, 4), (2, 3, 5)])
def test_neighbours_on_a_checkerboard_differ(shape):
    mask = checkerboard_mask(shape).view(shape)
    assert (mask[:, 1:] != mask[:, :-1]).all()
    assert (mask[:, :, 1:] != mask[:, :, :-1]).all()
    assert (mask == mask[:1]).all()
    assert torch.equal(checkerboard_mask(shape, parity=1), ~mask.flatten())


def test_random_masks():
    torch.manual_seed(1)
    mask = random_mask(16)
    state = torch.random.get_rng_state()
    assert torch.equal(random_mask(16), mask)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert mask.sum() == 8
    assert not torch.equal(mask, random_mask(16, seed=1))
    assert [int(random_mask(9, moved).sum()) for moved in (1, 4, 8)] == [1, 4, 8]


@pytest.mark.parametrize("make", [
    lambda: channel_mask((2, 2, 2)), lambda: checkerboard_mask((2, 2, 2)), lambda: random_mask(8),
])  # fmt: skip
def test_masks_are_made_on_the_cpu(make):
    torch.set_default_device("meta")
    assert make().device.type == "cpu"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: channel_mask((1, 4, 4)), "channel_mask expected at least two channels, but got "
         "shape (1, 4, 4). Squeeze the image first, or use checkerboard_mask."),
        (lambda: checkerboard_mask((3, 1, 1)), "checkerboard_mask expected at least two pixels, "
         "but got shape (3, 1, 1). Use channel_mask."),
        (lambda: channel_mask((4, 4)), "channel_mask expected an image's shape (C, H, W), but got "
         "(4, 4). Give three positive sizes."),
        (lambda: random_mask(3, 3), "random_mask expected to move at least one of dim coordinates "
         "and to keep one, but got dim=3 and moved=3. Choose moved between 1 and dim - 1."),
        (lambda: random_mask(1), "but got dim=1 and moved=1."),
    ],
)  # fmt: skip
def test_impossible_masks(call, text):
    with pytest.raises(ShapeError, match=re.escape(text)):
        call()
