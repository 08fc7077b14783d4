# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Masks of couplings: halves and complements, the same every time."""

import pytest
import torch

from pyro_flows.ops import alternating_masks


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
