# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Many parameters as one vector, so that a step's cost doesn't grow with their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


class Flat:
    """One vector for all parameters of a dtype, a device and a kind.

    An optimiser's, a clip's and an average's dozens of small operations are then a few.

    Args:
        parameters: leaf tensors; they stay what they are, and hold the values.
        kind: parameters for which it differs are kept apart.

    Attributes:
        vectors: the values; :meth:`write` gives them to the parameters.
        groups: the parameters of each vector.
        kinds: the kind of each vector.
    """

    def __init__(
        self, parameters: Sequence[Tensor], kind: Callable[[Tensor], Any] = lambda _: None
    ) -> None:
        groups: dict[Any, list[Tensor]] = {}
        for p in parameters:
            groups.setdefault((p.device, p.dtype, kind(p)), []).append(p)
        self.groups = list(groups.values())
        self.kinds = [key[-1] for key in groups]
        self.vectors = [_cat(group) for group in self.groups]
        self._views = [
            [
                part.view_as(p)
                for part, p in zip(vector.split([p.numel() for p in group]), group, strict=True)
            ]
            for vector, group in zip(self.vectors, self.groups, strict=True)
        ]

    def gather(self) -> list[Tensor]:
        """The parameters' gradients, set as those of the vectors; zero where there is none.

        So an optimiser's weight decay reaches parameters that nothing uses, too.
        """
        for vector, group in zip(self.vectors, self.groups, strict=True):
            vector.grad = _cat([torch.zeros_like(p) if p.grad is None else p.grad for p in group])
            for p in group:
                p.grad = None
        return [vector.grad for vector in self.vectors if vector.grad is not None]

    @torch.no_grad()
    def write(self) -> None:
        """Give the parameters the vectors' values."""
        for views, group in zip(self._views, self.groups, strict=True):
            torch._foreach_copy_(group, views)


def _cat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
