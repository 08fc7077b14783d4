# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Nonlinearities that torch hasn't got."""

from __future__ import annotations

import torch
from torch import Tensor


def pseudo_huber(x: Tensor) -> Tensor:
    """``sqrt(1 + x^2) - 1``: a parabola near zero, a cone far away.

    What bends a posterior away from its Gaussian is, first of all, the third derivative of its
    log density: shifts that are quadratic in the other coordinates. An even function makes those
    at once, where an odd one, such as tanh, must first find biases that differ.

    Args:
        x: any shape.

    Returns:
        The same shape.

    Example:
        >>> pseudo_huber(torch.tensor([-0.75, 0.0, 0.75])).tolist()
        [0.25, 0.0, 0.25]
    """
    return torch.hypot(x, x.new_ones(())) - 1
