# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""One line of the catalogue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pyro_flows.transforms import Layer


@dataclass(frozen=True)
class Entry:
    """A layer's constructor, and the settings that make sense for it.

    Args:
        make: ``(dim, context_dim) -> Layer``.
        conditional: whether it takes a context.
        needs_context_at_1: whether it takes one coordinate only with a context.
        dims: sizes it is tried at; an image-shaped layer has few.
        slow_dims: those of them that are left to ``make test-slow``.
        perturb: how far parameters are moved, at any dim or as a function of it.
        left_out: laws that may be left out of it, beside those that never apply (quadrature above
            two dimensions, gradients of a layer without parameters).
    """

    make: Callable[[int, int], Layer]
    conditional: bool = True
    needs_context_at_1: bool = False
    dims: tuple[int, ...] = (1, 2, 5, 64)
    slow_dims: tuple[int, ...] = ()
    perturb: float | Callable[[int], float] = 0.5
    left_out: frozenset[str] = frozenset()

    def context_dim(self, dim: int, wanted: int) -> int:
        """The context's width to try: the wanted one, unless the layer has no choice."""
        if not self.conditional:
            return 0
        return 2 if dim == 1 and self.needs_context_at_1 else wanted

    def perturbation(self, dim: int) -> float:
        """How far parameters are moved at ``dim``."""
        return self.perturb(dim) if callable(self.perturb) else self.perturb
