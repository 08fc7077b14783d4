# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Bins of splines: sizes from logits, edges, and what belongs to the bin of a value."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

# The smallest share of a bin, and the bound of log-slopes: splines keep their digits.
MIN_BIN = 1e-3
MAX_LOG_SLOPE = math.log(1e3)


def bin_sizes(logits: Tensor, total: float | Tensor) -> Tensor:
    """Positive sizes that add up to ``total``; zero logits give equal ones.

    Args:
        logits: shape ``(*, bins)``.
        total: a number, or broadcastable to ``(*, bins)``.
    """
    # With the bins first in memory, where a softmax over a few bins is ten times as fast; the
    # operations that follow keep this order.
    shares = logits.movedim(-1, 0).contiguous().softmax(0).movedim(0, -1)
    return total * (MIN_BIN + (1 - MIN_BIN * logits.shape[-1]) * shares)


def left_edges(sizes: Tensor, low: float) -> Tensor:
    """Left edges ``(*, bins)`` of bins that begin at ``low``."""
    return F.pad(sizes.cumsum(-1)[..., :-1], (1, 0)) + low


def bin_of(x: Tensor, edges: Tensor) -> Tensor:
    """Index ``(*, 1)`` of the bin that ``x`` lies in; the first or last where it lies in none.

    Args:
        x: shape ``(*)``.
        edges: left edges, shape ``(*, bins)``.
    """
    # No search beats this below some 32 bins, and it needs no contiguous input under vmap.
    return (x.unsqueeze(-1) >= edges[..., 1:]).sum(-1, keepdim=True)


def pick(table: Tensor, index: Tensor) -> Tensor:
    """Entries of ``table`` of shape ``(*, bins)`` at ``index`` of shape ``(*, 1)``."""
    return table.expand(*index.shape[:-1], table.shape[-1]).gather(-1, index).squeeze(-1)


def in_box(x: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """Whether ``|x| < bound``, and ``x`` with all else sent to the middle.

    So the branch that a later ``torch.where`` discards has finite values and gradients.
    """
    inside = (x > -bound) & (x < bound)
    return inside, torch.where(inside, x, torch.zeros_like(x))


def identity_outside(x: Tensor, inside: Tensor, y: Tensor, ladj: Tensor) -> tuple[Tensor, Tensor]:
    """``(y, ladj)`` where inside, ``(x, 0)`` elsewhere."""
    return torch.where(inside, y, x), torch.where(inside, ladj, torch.zeros_like(ladj))
