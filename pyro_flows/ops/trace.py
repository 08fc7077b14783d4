# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Traces and log-determinants estimated from a few products with a random vector."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pyro_flows.ops.derivatives import once
from pyro_flows.ops.tracing import is_recording

Push = Callable[[Tensor], Tensor]


def rademacher(x: Tensor) -> Tensor:
    """Random signs of the shape, dtype and device of ``x``, from torch's global generator.

    Of all random vectors with unit covariance these give Hutchinson's estimate of a trace,
    ``v . J v``, the least variance for matrices of unknown structure.

    Example:
        >>> rademacher(torch.zeros(3, 2)).abs()
        tensor([[1., 1.],
                [1., 1.],
                [1., 1.]])
    """
    return 2.0 * (torch.rand_like(x) < 0.5).to(x.dtype) - 1.0


def log_det_estimate(
    push: Push, noise: Tensor, *, lipschitz: float, exact_terms: int = 10
) -> Tensor:
    """An unbiased estimate of ``log det(I + J)``, for a ``J`` that contracts.

    The series ``sum_k (-1)^(k+1) tr(J^k) / k`` with Hutchinson's traces ``v . J^k v``. After
    ``exact_terms`` terms each further one is taken with probability ``lipschitz``, and those taken
    are weighted by the inverse of the probability of getting so far (Russian roulette), so that no
    term is missing on average. With a probability below ``lipschitz^2`` the variance could be
    infinite.

    The gradient is unbiased too, for any weights of the samples: it is that of
    ``v . J (sum_k (-1)^k J^k v)`` with the inner vector held fixed, one product in the graph
    however many terms there are. (Chen et al.'s implementation scales all samples' gradients by
    the first one's weight.) It can't be differentiated again.

    Args:
        push: ``v -> J v`` with ``v`` and ``J v`` of shape ``(*, dim)``.
        noise: random ``v`` of unit covariance, shape ``(*, dim)``: see :func:`rademacher`.
        lipschitz: bound of the spectral norm of ``J``, below 1.
        exact_terms: how many terms are always taken; more cost more and vary less.

    Returns:
        Shape ``(*)``. Where operations are recorded (see :func:`is_recording`) the number of terms
        can't be drawn: the series is cut after the first term below ``1e-7 dim``, whatever it is.

    Cost: ``exact_terms + lipschitz / (1 - lipschitz)`` products on average without gradient, one
    with.

    Reference: Chen et al., Residual flows, 2019, https://arxiv.org/abs/1906.02735

    Example:
        >>> v = rademacher(torch.zeros(7, 2))
        >>> estimate = log_det_estimate(lambda v: 0.5 * v, v, lipschitz=0.5, exact_terms=60)
        >>> torch.allclose(estimate, 2 * torch.tensor(1.5).log())
        True
    """
    recording = is_recording()
    exact = terms_until(1e-7, lipschitz) if recording else exact_terms
    extra = 0 if recording else _geometric(lipschitz)
    value, inner, term = torch.zeros_like(noise[..., 0]), noise, noise
    with torch.no_grad():
        for k in range(1, exact + extra + 1):
            term = -push(term)
            weight = lipschitz ** -max(0, k - exact)
            value = value - weight / k * (noise * term).sum(-1)
            inner = inner + weight * term
    if torch.is_grad_enabled():
        slope = (noise * push(inner)).sum(-1)
        value = once(value + (slope - slope.detach()), "An estimated log-determinant")
    return value


def terms_until(tolerance: float, lipschitz: float) -> int:
    """The first power of ``lipschitz`` that is at most ``tolerance``.

    Example:
        >>> terms_until(1e-3, 0.5)
        10
    """
    return max(1, math.ceil(math.log(tolerance) / math.log(lipschitz)))


def _geometric(chance: float) -> int:
    """How often in a row something of this chance happens, by torch's global generator."""
    drawn = float(torch.rand((), device="cpu", dtype=torch.float64))
    count = 0
    while drawn < chance ** (count + 1):
        count += 1
    return count
