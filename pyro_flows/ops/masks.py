# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Which coordinates a coupling keeps and which it moves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows.errors import ShapeError


def alternating_masks(dim: int, count: int, *, seed: int = 0) -> Tensor:
    """Masks for ``count`` couplings: random halves, each followed by its complement.

    Two successive masks move every coordinate; fresh random halves for each pair let any two
    coordinates meet. The masks depend on the arguments alone, not on the global random state,
    so two flows of one architecture always have the same ones.

    Args:
        dim: number of coordinates, at least 2.
        count: number of masks.
        seed: another seed gives other halves.

    Returns:
        Bool tensor of shape ``(count, dim)``; True marks a coordinate that is moved.

    Example:
        >>> masks = alternating_masks(5, 4)
        >>> bool((masks[0] ^ masks[1]).all()), masks.sum(1).tolist()
        (True, [3, 2, 3, 2])
    """
    generator = torch.Generator(device="cpu").manual_seed(7919 * seed + dim)
    masks = [torch.zeros(0, dim, dtype=torch.bool, device="cpu")]
    for pair in range((count + 1) // 2):
        # The first pair splits by halves; order carries meaning in many models (location sites
        # before scale sites), and later pairs mix at random.
        if pair == 0:
            order = torch.arange(dim, device="cpu")
        else:
            order = torch.randperm(dim, generator=generator, device="cpu")
        mask = torch.zeros(dim, dtype=torch.bool, device="cpu")
        mask[order[dim // 2 :]] = True
        masks.append(torch.stack([mask, ~mask]))
    return torch.cat(masks)[:count]


def channel_mask(shape: Sequence[int], *, parity: int = 0) -> Tensor:
    """Half of an image's channels: the later ones, or with ``parity=1`` the others.

    Args:
        shape: ``(C, H, W)``, at least two channels.
        parity: 0 or 1; successive couplings alternate.

    Returns:
        Bool tensor of shape ``(C * H * W,)``, the flattening of ``(C, H, W)``; True marks a
        value that is moved.

    Raises:
        ShapeError: one channel can't be halved, or the shape is no image's.

    Example:
        >>> channel_mask((2, 1, 2)).tolist()
        [False, False, True, True]
    """
    channels, height, width = _image_shape("channel_mask", shape)
    if channels < 2:
        raise ShapeError(
            f"channel_mask expected at least two channels, but got shape {tuple(shape)}. Squeeze "
            "the image first, or use checkerboard_mask."
        )
    mask = torch.arange(channels, device="cpu") >= channels // 2
    mask = mask.view(-1, 1, 1).expand(channels, height, width).reshape(-1)
    return ~mask if parity % 2 else mask


def checkerboard_mask(shape: Sequence[int], *, parity: int = 0) -> Tensor:
    """Every second pixel of an image, as the white squares of a chessboard, in every channel.

    Args:
        shape: ``(C, H, W)``, at least two pixels.
        parity: 0 or 1; successive couplings alternate.

    Returns:
        Bool tensor of shape ``(C * H * W,)``, the flattening of ``(C, H, W)``; True marks a
        value that is moved.

    Raises:
        ShapeError: one pixel can't be halved, or the shape is no image's.

    Example:
        >>> checkerboard_mask((1, 2, 3)).tolist()
        [False, True, False, True, False, True]
    """
    channels, height, width = _image_shape("checkerboard_mask", shape)
    if height * width < 2:
        raise ShapeError(
            f"checkerboard_mask expected at least two pixels, but got shape {tuple(shape)}. Use "
            "channel_mask."
        )
    rows, columns = torch.arange(height, device="cpu"), torch.arange(width, device="cpu")
    mask = (rows.view(-1, 1) + columns + parity) % 2 == 1
    return mask.expand(channels, height, width).reshape(-1)


def random_mask(dim: int, moved: int | None = None, *, seed: int = 0) -> Tensor:
    """A random choice of the coordinates that a coupling moves.

    As with :func:`alternating_masks`, it depends on the arguments alone, not on the global random
    state.

    Args:
        dim: number of coordinates, at least 2.
        moved: how many of them move; the larger half by default.
        seed: another seed gives another choice.

    Returns:
        Bool tensor of shape ``(dim,)``; True marks a coordinate that is moved.

    Raises:
        ShapeError: nothing would move, or nothing stay.

    Example:
        >>> mask = random_mask(5)
        >>> mask.shape, mask.sum().item()
        (torch.Size([5]), 3)
    """
    count = dim - dim // 2 if moved is None else moved
    if not 0 < count < dim:
        raise ShapeError(
            f"random_mask expected to move at least one of dim coordinates and to keep one, but "
            f"got dim={dim} and moved={count}. Choose moved between 1 and dim - 1."
        )
    generator = torch.Generator(device="cpu").manual_seed(7919 * seed + dim)
    mask = torch.zeros(dim, dtype=torch.bool, device="cpu")
    mask[torch.randperm(dim, generator=generator, device="cpu")[:count]] = True
    return mask


def _image_shape(name: str, shape: Sequence[int]) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape) < 1:
        raise ShapeError(
            f"{name} expected an image's shape (C, H, W), but got {tuple(shape)}. "
            "Give three positive sizes."
        )
    return shape[0], shape[1], shape[2]
