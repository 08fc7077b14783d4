# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Tensors that a model makes and then fills, one element after the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from pyro_flows.ops.record import FilledError

_MAKERS = {
    *(torch.zeros, torch.ones, torch.empty, torch.full, torch.eye),
    *(torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like, torch.clone),
    *(Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty, Tensor.new_full, Tensor.clone),
    Tensor.new,  # as distributions do before they fill it with random numbers
}


class Blanks(TorchFunctionMode):
    """Inside, what is made blank belongs to one particle, so that ``vmap`` can write into it.

    ``h = torch.zeros(n); h[0] = ...`` in a model makes one tensor for all particles, into which
    no particle's own values go; nor do they in Pyro's ``OrderedLogistic``, which does the same.
    And ``x[mask] = 0``, as in ``Multinomial`` and ``Geometric``, needs the number of marked
    elements, which differs between particles: they are filled without it.

    Args:
        particle: the tensor that ``vmap`` maps over.

    Cost: each tensor made inside, also a copy of data that is never written to, is one per
    particle. So it is for models that can't do without.
    """

    def __init__(self, particle: Tensor) -> None:
        super().__init__()
        self._zero = particle.new_zeros(())

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__setitem__ and _sets_by_mask(*args):
            where, mask, value = args
            where.masked_fill_(
                mask.reshape(*mask.shape, *(1,) * (where.dim() - mask.dim())), value
            )
            return None
        made = func(*args, **(kwargs or {}))
        counts = func is Tensor.new  # of Multinomial; other integers are indices, alike for all
        if func not in _MAKERS or "out" in (kwargs or {}):
            return made
        if not (made.is_floating_point() or counts):
            return made
        # On another device, such as "meta", none of a particle's values can be written into it.
        return made + self._zero.to(made) if made.device == self._zero.device else made


def writes_in_place(error: Exception) -> bool:
    """Whether a function failed since it writes a particle's values into a tensor of all."""
    words = "being vmapped over but `self`", "indexing with a boolean mask"  # vmap's own
    return isinstance(error, FilledError) or any(word in str(error) for word in words)


def _sets_by_mask(where: Any, key: Any, value: Any) -> bool:
    """Whether marked elements of a tensor are all set to one number."""
    number = not isinstance(value, Tensor) or value.dim() == 0
    masks = isinstance(key, Tensor) and key.dtype == torch.bool
    return isinstance(where, Tensor) and masks and number
