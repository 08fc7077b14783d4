# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Normalisation by the data once, at the start."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_flows.errors import DataError, ShapeError
from pyro_flows.transforms.linear.diagonal import DiagonalAffine


class ActNorm(DiagonalAffine):
    """Shift and scale that can be set from data: ``y = loc + exp(log_scale) x``.

    :meth:`initialize` sets both so that, on the base side, the data have mean 0 and standard
    deviation 1 in every coordinate; ``Flow.initialize`` does it for all layers of a flow. Before
    that it is the identity, and afterwards a trained layer like any other: no call changes it.

    Args:
        dim: number of coordinates. For images take one for each channel,
            ``Pixelwise(ActNorm(channels), shape)``.
        context_dim: width of the context; a network of it adds to ``loc`` and ``log_scale``.
        hidden_dims: widths of that network's hidden layers.

    Cost: one multiplication per coordinate in both directions.

    When to choose it: between the steps of a deep flow that is fitted to data, in place of batch
    normalisation.

    Reference: Kingma & Dhariwal 2018 (Glow), https://arxiv.org/abs/1807.03039, section 3.1.

    Example:
        >>> layer = transforms.ActNorm(2)
        >>> y = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
        >>> layer.initialize(y)
        >>> layer.inv(y).round().tolist()
        [[-1.0, -1.0], [1.0, 1.0]]
    """

    @torch.no_grad()
    def initialize(self, y: Tensor, context: Tensor | None = None) -> None:
        """Set location and scale so that the base side of ``y`` has mean 0 and sd 1.

        With a context, this is so after what its network adds by now, over all rows together. A
        constant column (and every column of a single row) gets the scale 1.

        Args:
            y: values on the data side, shape ``(*, dim)``, at least one.
            context: shape ``(*, context_dim)``.

        Raises:
            DataError: a value is not finite.
            ShapeError: there are no rows, or a width is wrong.
        """
        self.check(y, context)
        if y.numel() == 0 or not bool(y.isfinite().all()):
            _refuse(y)
        start, tensors = self.tensors.start, self.tensors(context)
        # In float64, on the CPU as not every device has it: a column may be 1e3 +- 1e-3.
        moves = {name: (tensors[name] - start[name]).cpu().double() for name in tensors}
        weight = (-moves["log_scale"]).exp().expand(y.shape)
        rest = y.cpu().double() - moves["loc"]
        loc = _over_rows(rest * weight) / _over_rows(weight)
        x = (rest - loc) * weight
        scale = _over_rows(x.square()).sqrt()
        rounding = 10 * torch.finfo(torch.float64).eps * loc.abs()
        scale = torch.where(scale > rounding, scale, torch.ones_like(scale))
        start["loc"].copy_(loc)
        start["log_scale"].copy_(scale.log())


def _over_rows(x: Tensor) -> Tensor:
    """The mean over all but the last axis."""
    return x.reshape(-1, x.shape[-1]).mean(0)


def _refuse(y: Tensor) -> None:
    if y.numel() == 0:
        raise ShapeError(
            f"ActNorm.initialize expected at least one row of values, but got shape "
            f"{tuple(y.shape)}. Pass some of the training data."
        )
    bad = int((~y.isfinite()).reshape(-1, y.shape[-1]).any(-1).sum())
    raise DataError(
        f"ActNorm.initialize expected finite values, but {bad} of {y.numel() // y.shape[-1]} rows "
        "hold NaN or infinity. Drop those rows."
    )
