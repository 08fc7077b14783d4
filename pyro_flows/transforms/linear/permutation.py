# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Permutations of the coordinates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows.errors import ShapeError
from pyro_flows.transforms.base import Layer


class Permute(Layer):
    """Reorder the coordinates: ``y[i] = x[permutation[i]]``, log-determinant 0.

    Args:
        permutation: the order, a sequence or tensor holding 0 .. dim-1 once each; or an integer
            ``dim`` for the reversed order.

    :meth:`random` makes a random order from a seed.

    The order is a buffer: it is saved in the state dict and moves with ``.to(device)``.

    Cost: an index in both directions. When to choose it: between couplings, which leave some
    coordinates alone, or autoregressive layers, which have an order; :class:`PLU` mixes better
    and costs more.

    Example:
        >>> transforms.Permute([2, 0, 1])(torch.tensor([10.0, 11.0, 12.0]))
        tensor([12., 10., 11.])
    """

    order: Tensor
    inverse_order: Tensor

    def __init__(self, permutation: int | Sequence[int] | Tensor) -> None:
        if isinstance(permutation, int):
            order = torch.arange(permutation, device="cpu").flip(0)
        else:
            order = torch.as_tensor(permutation, dtype=torch.long, device="cpu")
        if order.dim() != 1 or order.sort()[0].tolist() != list(range(order.numel())):
            raise ShapeError(
                f"Permute expected each of 0..dim-1 once, but got {order.tolist()}. "
                "Pass for example torch.randperm(dim)."
            )
        super().__init__(order.numel())
        self.register_index("order", order.clone())
        self.register_index("inverse_order", order.argsort())

    @classmethod
    def random(cls, dim: int, *, seed: int = 0) -> Permute:
        """A random order of ``dim`` coordinates, of the seed alone.

        The global random state is neither read nor moved, so two flows of one architecture have
        the same orders.

        Example:
            >>> first, second = transforms.Permute.random(6), transforms.Permute.random(6)
            >>> torch.equal(first.order, second.order)
            True
        """
        generator = torch.Generator(device="cpu").manual_seed(seed)
        return cls(torch.randperm(dim, generator=generator, device="cpu"))

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Reorder."""
        self.check(x, context)
        return x.index_select(-1, self.order), x.new_zeros(x.shape[:-1])

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Restore the order."""
        self.check(y, context)
        return y.index_select(-1, self.inverse_order), y.new_zeros(y.shape[:-1])
