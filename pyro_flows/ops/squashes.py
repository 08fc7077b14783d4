# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The real line squashed onto part of it, with log-derivatives that are exact in the tails.

Forwards, results are kept strictly inside the space, since the tails of a squash round to its
edge. Backwards, an edge that belongs to the space as Pyro knows it (``constraints.interval`` is
closed) counts as the number next to it; what lies outside has a log-derivative of -inf.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_flows.ops.bounded import confine, impossible_outside


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))`` to the last digits; torch's own is the identity above 20."""
    return -F.logsigmoid(-x)


def tanh_squash(x: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """``tanh`` onto (-1, 1) and its log-derivative, or ``atanh`` and its.

    Example:
        >>> y, ladj = tanh_squash(torch.tensor([0.0, 40.0]))
        >>> y.abs().max().item() < 1, ladj.round().tolist()
        (True, [0.0, -79.0])
    """
    edge = _below_one(x)
    if not inverse:
        return torch.tanh(x).clamp(-edge, edge), 2 * (math.log(2) - x - softplus(-2 * x))
    inside = (x >= -1) & (x <= 1)
    safe = confine(x, inside, 0.0).clamp(-edge, edge)
    return impossible_outside(
        x, inside, torch.atanh(safe), -torch.log1p(safe) - torch.log1p(-safe)
    )


def sigmoid_squash(x: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """The logistic function onto (0, 1) and its log-derivative, or the logit and its.

    Example:
        >>> y, ladj = sigmoid_squash(torch.tensor([0.0, -1e3]))
        >>> y.min().item() > 0, torch.allclose(sigmoid_squash(y[:1], inverse=True)[1], -ladj[:1])
        (True, True)
    """
    least, most = torch.finfo(x.dtype).tiny, _below_one(x)
    if not inverse:
        return torch.sigmoid(x).clamp(least, most), F.logsigmoid(x) + F.logsigmoid(-x)
    inside = (x >= 0) & (x <= 1)
    safe = confine(x, inside, 0.5).clamp(least, most)
    log, log_rest = safe.log(), torch.log1p(-safe)
    return impossible_outside(x, inside, log - log_rest, -log - log_rest)


def softplus_squash(x: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """``log(1 + exp(x))`` onto the positive numbers and its log-derivative, or the inverse's.

    Example:
        >>> y, ladj = softplus_squash(torch.tensor([-1e3, 1e3]))
        >>> y.min().item() > 0, y[1].item(), ladj.tolist()
        (True, 1000.0, [-1000.0, 0.0])
    """
    least = torch.finfo(x.dtype).tiny
    if not inverse:
        return softplus(x).clamp_min(least), F.logsigmoid(x)
    inside = x > 0
    safe = confine(x, inside, 1.0).clamp_min(least)
    log_rest = (-torch.expm1(-safe)).log()  # log(1 - exp(-x))
    return impossible_outside(x, inside, safe + log_rest, -log_rest)


def elu_squash(x: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """``x`` above zero, ``exp(x) - 1`` below: onto (-1, inf). Or the inverse.

    Example:
        >>> y, ladj = elu_squash(torch.tensor([-1e3, 2.0]))
        >>> y.min().item() > -1, y[1].item(), ladj.tolist()
        (True, 2.0, [-1000.0, 0.0])
    """
    edge = _below_one(x)
    if not inverse:
        below = x.clamp_max(0)
        return torch.where(x > 0, x, torch.expm1(below).clamp_min(-edge)), below
    inside = x > -1
    safe = confine(x, inside, 0.0)
    log = torch.log1p(safe.clamp_max(0))
    return impossible_outside(x, inside, torch.where(safe > 0, safe, log), -log)


def leaky_tanh(x: Tensor, limit: float, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """``tanh`` where ``|x| <= limit``, a straight line of its slope there beyond. Or the inverse.

    Example:
        >>> y, ladj = leaky_tanh(torch.tensor([0.5, 1e3]), 3.0)
        >>> y.round().tolist(), torch.allclose(y[:1], torch.tensor([0.5]).tanh())
        ([0.0, 11.0], True)
    """
    level = math.tanh(limit)
    log_slope = 2 * (math.log(2) - limit - math.log1p(math.exp(-2 * limit)))
    slope = math.exp(log_slope)
    edge = level if inverse else limit
    inside = x.abs() <= edge
    y, ladj = tanh_squash(confine(x, inside, 0.0), inverse=inverse)
    excess = x - edge * x.sign()
    if inverse:
        straight, log_slope = x.sign() * limit + excess / slope, -log_slope
    else:
        straight = x.sign() * level + excess * slope
    return torch.where(inside, y, straight), torch.where(
        inside, ladj, torch.full_like(ladj, log_slope)
    )


def _below_one(x: Tensor) -> float:
    """The largest number below one."""
    return 1 - torch.finfo(x.dtype).eps / 2
