# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The integral of a positive network."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor

from pyro_flows.errors import OptionError
from pyro_flows.ops import gauss_legendre, linear_tails, soft_clamp
from pyro_flows.transforms.elementwise.options import require_within
from pyro_flows.transforms.elementwise.root_finding import Monotone, RootFinding

# Bounds of the integrand: with them the quadrature's error is known (see the docstring).
MAX_STEEPNESS = 2.0
MAX_LOG_SLOPE = 4.0
MAX_OFFSET = 2.0
# The least per unit of the bound: the error then is below 1e-6 at any parameters.
NODES = 8


@dataclass(frozen=True)
class MonotonicNetwork(RootFinding):
    """An unconstrained monotonic network: the integral of a positive network.

    ``y = shift + int_0^x g(u) du``, ``log g(u) = offset + sum_k v_k tanh(w_k (u - m_k))``, on
    ``[-bound, bound]``; outside, ``g`` is constant and the map linear. The network is made of
    parameters alone, so that a conditioner decides all of it; ``|w_k| < 2`` and
    ``sum_k |v_k| < 4``. Zero parameters (``v = 0``) are the identity.

    Args:
        hidden: number of hidden units.
        bound: half-width of the box; values are best whitened first.
        nodes: nodes of the Gauss-Legendre quadrature on ``[0, x]``, at least ``8 * bound``.

    Parameters per element: ``3 hidden + 2``.

    The quadrature's error is that of the log-derivative, ``log g(x)``, as a derivative of the
    computed ``y``: at the default ``nodes`` and ``bound`` below 1e-9 at parameters of size 1 or
    2, and below 1e-6 at any. It grows with ``bound`` and falls fast with ``nodes``.

    Raises:
        OptionError: too few nodes for the bound, or an option out of its range.

    Cost: ``nodes + 1`` evaluations of the network forwards; a root (see :class:`RootFinding`)
    backwards: the dearest univariate. Choose it where the map must be smooth and is not made of
    a few bumps.

    Reference: Wehenkel, Louppe, Unconstrained monotonic neural networks, 2019,
    https://arxiv.org/abs/1908.05164

    Example:
        >>> layer = transforms.Elementwise(2, transforms.MonotonicNetwork(hidden=4))
        >>> x = torch.randn(5, 2)
        >>> layer(x).shape, torch.allclose(layer(x), x, atol=1e-5)
        (torch.Size([5, 2]), True)
    """

    hidden: int = 8
    bound: float = 5.0
    nodes: int = 48
    rule: tuple[tuple[float, ...], tuple[float, ...]] = field(
        init=False, repr=False, compare=False
    )

    def __post_init__(self) -> None:
        require_within(self, hidden=(1, 1000), bound=(1e-3, 100), nodes=(8, 1000))
        if self.nodes < NODES * self.bound:
            raise OptionError(
                f"MonotonicNetwork expected nodes >= {NODES} * bound, since with fewer its log-"
                f"derivatives are wrong, but got nodes={self.nodes} and bound={self.bound}. Give "
                f"nodes={math.ceil(2 * NODES * self.bound)}, or whiten values for a smaller bound."
            )
        object.__setattr__(self, "rule", gauss_legendre(self.nodes))

    @property
    def num_parameters(self) -> int:
        """A shift, an offset, and three numbers per unit."""
        return 3 * self.hidden + 2

    def function(self, params: Tensor) -> Monotone:
        """The integral at given parameters."""
        shift, offset = params[..., 0], soft_clamp(params[..., 1:2], MAX_OFFSET)
        w, m, v = (t.unsqueeze(-2) for t in params[..., 2:].chunk(3, -1))
        w = soft_clamp(1 + w, MAX_STEEPNESS)
        # Units start at places of their own, spread over the middle of the box.
        places = [(2 * k + 1 - self.hidden) / self.hidden for k in range(self.hidden)]
        m = 0.6 * self.bound * params.new_tensor(places) + soft_clamp(m, self.bound)
        v = soft_clamp(v, MAX_LOG_SLOPE / self.hidden)
        # The last node is the end, where the slope is asked for.
        nodes, weights = params.new_tensor((*self.rule[0], 1.0)), params.new_tensor(self.rule[1])

        def inside(x: Tensor) -> tuple[Tensor, Tensor]:
            u = (x.unsqueeze(-1) * nodes).unsqueeze(-1)
            log_slopes = offset + (v * (w * (u - m)).tanh()).sum(-1)
            value = shift + x * (weights * log_slopes[..., :-1].exp()).sum(-1)
            return value, log_slopes[..., -1]

        return lambda x: linear_tails(inside, x, -self.bound, self.bound)
