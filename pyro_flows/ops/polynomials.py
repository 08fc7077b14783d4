# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Bases of polynomials."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pyro_flows.ops.tracing import is_recording


def powers(x: Tensor, degree: int) -> Tensor:
    """``1, x, ..., x^degree`` on a new last axis, with right derivatives at 0 too (to second).

    Args:
        x: any shape.
        degree: the highest power.

    Returns:
        Shape ``(*, degree + 1)``.

    Example:
        >>> powers(torch.tensor(2.0), 3).tolist()
        [1.0, 2.0, 4.0, 8.0]
    """
    if torch.is_grad_enabled() or is_recording():
        # Moved off 0, by what no other number sees: there the second derivative of torch.pow is
        # NaN. Derivatives divide by up to the third power.
        x = x + torch.finfo(x.dtype).tiny ** (1 / 3)
    return x.unsqueeze(-1) ** torch.arange(degree + 1, dtype=x.dtype, device=x.device)


def bernstein_basis(t: Tensor, degree: int) -> Tensor:
    """Bernstein polynomials ``C(n, k) t^k (1 - t)^(n - k)`` on a new last axis.

    Positive on ``[0, 1]`` with sum 1: a sum over them is a weighted mean of its coefficients.

    Args:
        t: values in ``[0, 1]``, any shape.
        degree: ``n``.

    Returns:
        Shape ``(*, degree + 1)``.

    Example:
        >>> bernstein_basis(torch.tensor(0.5), 2).tolist()
        [0.25, 0.5, 0.25]
    """
    binomials = torch.tensor(
        [math.comb(degree, k) for k in range(degree + 1)], dtype=t.dtype, device=t.device
    )
    return binomials * powers(t, degree) * powers(1 - t, degree).flip(-1)
