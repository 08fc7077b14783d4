# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Linear tails: a function kept to an interval, and continued along its tangents."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

Pair = Callable[[Tensor], tuple[Tensor, Tensor]]
End = TypeVar("End", float, Tensor)


def linear_tails(function: Pair, x: Tensor, low: End, high: End) -> tuple[Tensor, Tensor]:
    """Evaluate an increasing function inside ``[low, high]``, and its end tangents outside.

    The result is continuous in value and slope, onto the real line, and finite for any finite
    ``x``, with finite gradients: the function itself never sees a number outside the interval.

    Args:
        function: ``x -> (f(x), log f'(x))``, elementwise.
        x: values, any shape.
        low: left end, a number or a tensor that broadcasts against ``x``.
        high: right end, of the same kind.

    Returns:
        ``(y, ladj)`` of the shape of ``x``. NaN stays NaN.

    Cost: one evaluation of the function.

    Example:
        >>> y, ladj = linear_tails(lambda x: (x.exp(), x), torch.tensor([0.0, 5.0]), -1.0, 0.0)
        >>> y.tolist(), ladj.tolist()
        ([1.0, 6.0], [0.0, 0.0])
    """
    inside = x.clamp(low, high)
    value, log_slope = function(inside)
    return value + (x - inside) * log_slope.exp(), log_slope
