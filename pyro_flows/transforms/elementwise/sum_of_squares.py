# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Sums of squares of polynomials."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from pyro_flows.ops import gauss_legendre, linear_tails, powers, soft_clamp
from pyro_flows.transforms.elementwise.options import require_within
from pyro_flows.transforms.elementwise.root_finding import Monotone, RootFinding

FLOOR = 1e-3
MAX_COEFFICIENT = 10.0
# How much of the slope the constants that tell polynomials apart make up at the start.
UNEVENNESS = 0.02


@dataclass(frozen=True)
class SumOfSquares(RootFinding):
    """The integral of a sum of squares of polynomials on ``[-bound, bound]``.

    ``y = shift + int_0^x (1e-3 + sum_p q_p(u / bound)^2) / (1 + 1e-3) du``: any positive
    polynomial is such a sum. Outside the box the map goes on along its tangents.

    At zero parameters all ``q_p`` would be the same constant, and be taught the same; small fixed
    coefficients, at right angles to it, set them apart. So the start is within 2% of the identity.

    Args:
        polynomials: number of squares.
        degree: degree of each polynomial; the map is of degree ``2 degree + 1``.
        bound: half-width of the box; values are best whitened first.

    Parameters per element: ``1 + polynomials (degree + 1)``, the shift and the coefficients.

    Cost: ``degree + 2`` evaluations of each polynomial forwards (Gauss-Legendre quadrature is
    exact here); a root (see :class:`RootFinding`) backwards. Choose it for smooth, light-handed
    densities.

    Reference: Jaini, Selby, Yu, Sum-of-squares polynomial flow, 2019,
    https://arxiv.org/abs/1905.02325

    Example:
        >>> layer = transforms.Elementwise(2, transforms.SumOfSquares(polynomials=2, degree=3))
        >>> x = torch.randn(5, 2)
        >>> layer(x).shape, torch.allclose(layer(x), x, atol=0.1)
        (torch.Size([5, 2]), True)
    """

    polynomials: int = 3
    degree: int = 3
    bound: float = 5.0
    nodes: tuple[float, ...] = field(init=False, repr=False, compare=False)
    weights: tuple[float, ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require_within(self, polynomials=(1, 1000), degree=(0, 50), bound=(1e-3, 1e6))
        nodes, weights = gauss_legendre(self.degree + 1)
        object.__setattr__(self, "nodes", nodes)
        object.__setattr__(self, "weights", weights)

    @property
    def num_parameters(self) -> int:
        """A shift, and the coefficients of the polynomials."""
        return 1 + self.polynomials * (self.degree + 1)

    def function(self, params: Tensor) -> Monotone:
        """The integral at given parameters."""
        shift = params[..., 0]
        moves = params[..., 1:].unflatten(-1, (self.polynomials, self.degree + 1))
        coefficients = params.new_tensor(self._start()) + soft_clamp(moves, MAX_COEFFICIENT)
        # The last node is the end, where the slope is asked for.
        nodes, weights = params.new_tensor((*self.nodes, 1.0)), params.new_tensor(self.weights)

        def inside(x: Tensor) -> tuple[Tensor, Tensor]:
            u = (x / self.bound).unsqueeze(-1) * nodes
            terms = coefficients.unsqueeze(-3) * powers(u, self.degree).unsqueeze(-2)
            slopes = (FLOOR + terms.sum(-1).square().sum(-1)) / (1 + FLOOR)
            value = shift + x * (weights * slopes[..., :-1]).sum(-1)
            return value, slopes[..., -1].log()

        return lambda x: linear_tails(inside, x, -self.bound, self.bound)

    def _start(self) -> list[list[float]]:
        """Coefficients at zero parameters: one constant, and columns orthogonal to it and others.

        The squares then sum to ``1 + e^2 sum_k v^(2k)``: all that is linear in ``e`` cancels.
        """
        count = self.polynomials
        uneven = min(self.degree, count - 1)
        e = math.sqrt(UNEVENNESS / max(uneven, 1))
        return [
            [1 / math.sqrt(count)]
            + [
                e * math.sqrt(2 / count) * math.cos(math.pi * (p + 0.5) * k / count)
                if k <= uneven
                else 0.0
                for k in range(1, self.degree + 1)
            ]
            for p in range(count)
        ]
