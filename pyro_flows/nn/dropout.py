# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Dropout of hidden units, off unless a trainer of finite data asks for it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pyro_flows.errors import ShapeError


class WithDropout(nn.Module):
    """A conditioner whose hidden units can be dropped in training.

    A guide must score its draws by the network that made them, so that the share is 0 unless
    :func:`set_dropout` says otherwise; and where there is no training mode there is no dropout.

    Attributes:
        dropout: share of hidden units that are dropped in training mode.

    Example:
        >>> conditioner = MLP(2, 3, hidden_dims=(8,))
        >>> isinstance(conditioner, WithDropout), conditioner.dropout
        (True, 0.0)
    """

    dropout: float = 0.0

    def drop(self, h: Tensor) -> Tensor:
        """Hidden units with a share of them at zero, the others larger by as much."""
        return F.dropout(h, self.dropout) if self.dropout and self.training else h


def set_dropout(module: nn.Module, share: float) -> None:
    """Let all conditioners inside ``module`` drop this share of hidden units in training mode.

    Args:
        module: a flow, a layer or a conditioner.
        share: at least 0, less than 1.

    Reference: Srivastava et al., Dropout, 2014.

    Example:
        >>> net = MLP(3, 4)
        >>> set_dropout(net, 0.1)
        >>> net.dropout
        0.1
    """
    if not 0 <= share < 1:
        raise ShapeError(
            f"set_dropout expected a share of at least 0 and less than 1, but got {share}. 0.1 "
            "drops a tenth of the hidden units."
        )
    for part in module.modules():
        if isinstance(part, WithDropout):
            part.dropout = share
