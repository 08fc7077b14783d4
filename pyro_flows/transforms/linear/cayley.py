# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Rotations by Cayley's map."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_flows.transforms.linear.skew import SkewRotation


class Cayley(SkewRotation):
    """A rotation by Cayley's map: ``y = loc + (I - A)(I + A)^-1 x`` with skew ``A = S - S^T``.

    ``S`` is strictly lower-triangular and trained. ``I + A`` is never singular, as the
    eigenvalues of ``A`` are imaginary. Every rotation without an eigenvalue of -1 is reached, and
    the others in the limit.

    Args:
        dim: number of coordinates.
        context_dim: width of the context; a network of it adds to ``loc`` and ``S``.
        hidden_dims: widths of that network's hidden layers.
        rate: ``S`` is so many times its parameters; below 1 it learns slower than other layers.
        shift: whether there is a ``loc``.

    Cost: one solve of a ``(dim, dim)`` system per call (per context, if there is one), O(dim^3),
    then a product, O(dim^2) per value; the same in both directions.

    When to choose it: as :class:`Householder`, where ``dim`` is small and any rotation may be
    needed; it has ``dim (dim - 1) / 2`` parameters, as rotations have, and none is redundant.

    Reference: Cayley 1846, https://doi.org/10.1515/crll.1846.32.119.

    Example:
        >>> layer = transforms.Cayley(4)
        >>> x = torch.randn(7, 4)
        >>> y, ladj = layer.forward_and_ladj(x)
        >>> torch.allclose(y, x), ladj.abs().max().item()
        (True, 0.0)
    """

    def _rotation(self, skew: Tensor) -> Tensor:
        one = torch.diag_embed(skew.new_ones(self.dim))
        # Both factors are polynomials in A and commute. Never singular: no check, which would
        # wait for the device.
        rotation: Tensor = torch.linalg.solve_ex(one + skew, one - skew)[0]
        return rotation
