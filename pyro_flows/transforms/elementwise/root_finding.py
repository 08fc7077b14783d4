# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Univariates with a formula one way only: the other way is found as a root."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_flows.ops import monotone_inverse
from pyro_flows.transforms.elementwise.univariate import Univariate

Monotone = Callable[[Tensor], tuple[Tensor, Tensor]]


class RootFinding(Univariate):
    """An increasing map of the real line onto itself that has a formula forwards only.

    A subclass says in :meth:`function` what the map is at given parameters; the inverse follows
    by :func:`pyro_flows.ops.monotone_inverse`, exact to the last digits, with the gradients of
    the implicit function theorem, right to second order.

    Cost of the inverse: typically 4 to 10 evaluations of the map; 28 where operations are
    recorded (``torch.compile``, ``vmap``). Where scoring matters more than sampling, run the
    layer backwards (``layer.inv``).

    Example:
        >>> class Cubic(transforms.RootFinding):
        ...     "y = x + a^2 x^3: simple, but not linear far away, as a layer should be."
        ...     num_parameters = 1
        ...     def function(self, params):
        ...         a2 = params[..., 0] ** 2
        ...         return lambda x: (x + a2 * x**3, torch.log1p(3 * a2 * x**2))
        >>> layer = transforms.Coupling(4, Cubic())
        >>> x = torch.randn(5, 4)
        >>> torch.allclose(layer.inv(layer(x)), x, atol=1e-6)
        True
    """

    @abstractmethod
    def function(self, params: Tensor) -> Monotone:
        """The map ``x -> (y, log dy/dx)`` at parameters ``(*, D, num_parameters)``.

        What doesn't depend on ``x`` is computed here, once for all evaluations.
        """

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the map."""
        return self.function(params)(x)

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Find the root."""
        shape = torch.broadcast_shapes(y.shape, params.shape[:-1])
        return monotone_inverse(self.function(params), y.expand(shape))
