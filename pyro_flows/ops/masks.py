# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Which coordinates a coupling keeps and which it moves."""

from __future__ import annotations

import torch
from torch import Tensor


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
    masks = []
    for pair in range((count + 1) // 2):
        # The first pair splits by halves; order carries meaning in many models (location sites
        # before scale sites), and later pairs mix at random.
        if pair == 0:
            order = torch.arange(dim, device="cpu")
        else:
            order = torch.randperm(dim, generator=generator, device="cpu")
        mask = torch.zeros(dim, dtype=torch.bool, device="cpu")
        mask[order[dim // 2 :]] = True
        masks += [mask, ~mask]
    return torch.stack(masks[:count])
