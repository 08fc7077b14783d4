# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Normalisation by running averages over the data."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.distributions import Transform

from pyro_flows.errors import OptionError, ShapeError
from pyro_flows.transforms.base import Conditioned
from pyro_flows.transforms.linear.diagonal import DiagonalAffine


class BatchNorm(DiagonalAffine):
    """Normalise by running mean and variance: ``y = mean + sd * (loc + exp(log_scale) x)``.

    ``sd = sqrt(variance + epsilon)``. In evaluation mode (``layer.eval()``) both directions use
    the running statistics, and the layer is an affine map like any other.

    In training mode the direction from data to base (``inverse_and_ladj``, which is what scoring
    data uses) normalises by the mean and variance of its batch, with their gradients, and moves
    the running statistics; the direction from base to data always uses the running ones. So in
    training mode an element's density depends on its batch mates, and the directions are not each
    other's inverses: call ``eval()`` for every use but a training step. Score in training by
    ``Flow.log_prob``; Pyro's ``TransformedDistribution`` serves with the layers one by one, not
    with a ``Compose`` of them, which it asks for the other direction's log-determinant.

    Args:
        dim: number of coordinates. For images take one for each channel,
            ``Pixelwise(BatchNorm(channels), shape)``.
        context_dim: width of the context; a network of it adds to ``loc`` and ``log_scale``.
        hidden_dims: widths of that network's hidden layers.
        momentum: the share of a batch in the new running statistics, in (0, 1]. The first
            ``1 / momentum`` batches are averaged evenly, so that no start has to be forgotten.
        epsilon: added to variances, so that a constant column is not divided by 0.

    Cost: one multiplication per coordinate in both directions; in training two means over the
    batch.

    When to choose it: to follow MAF and RealNVP as published, in density estimation with large
    batches. :class:`ActNorm` has none of the above caveats; guides should take that.

    Reference: Dinh et al. 2016 (RealNVP), https://arxiv.org/abs/1605.08803, section 3.7.

    Example:
        >>> layer = transforms.BatchNorm(2)
        >>> y = torch.tensor([[1.0, 10.0], [3.0, 30.0]])
        >>> layer.inv(y).round().tolist()
        [[-1.0, -1.0], [1.0, 1.0]]
        >>> layer.eval().running_mean.tolist()
        [2.0, 20.0]
    """

    running_mean: Tensor
    running_variance: Tensor
    batches: Tensor

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        momentum: float = 0.1,
        epsilon: float = 1e-5,
    ) -> None:
        super().__init__(dim, context_dim, hidden_dims)
        if not 0 < momentum <= 1 or not epsilon > 0:
            raise OptionError(
                "BatchNorm expected momentum in (0, 1] and epsilon > 0, but got "
                f"momentum={momentum} and epsilon={epsilon}. Leave them at 0.1 and 1e-5."
            )
        self.momentum, self.epsilon = momentum, epsilon
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_variance", torch.ones(dim))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Base to data, by the running statistics in every mode."""
        y, ladj = super().forward_and_ladj(x, context)
        log_sd = self._log_sd(self.running_variance)
        return self.running_mean + log_sd.exp() * y, ladj + log_sd.sum(-1)

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Data to base; in training mode by batch statistics, which move the running ones."""
        self.check(y, context)
        mean, variance = self.running_mean, self.running_variance
        if self.training:
            mean, variance = self._batch_statistics(y)
            self._follow(mean.detach(), variance.detach(), y.numel() // self.dim)
        return self._normalise(y, context, mean, variance)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """log|det dy/dx|, in training mode that of the direction that uses the batch ``y``."""
        return self._ladj_of_pair(x, y, None)

    def condition(self, context: Tensor | None) -> Transform:
        """Fix the context."""
        return self if self.context_dim == 0 else _ConditionedBatchNorm(self, context)

    def _ladj_of_pair(self, x: Tensor, y: Tensor, context: Tensor | None) -> Tensor:
        if not self.training:
            return self.forward_and_ladj(x, context)[1]
        return -self._normalise(y, context, *self._batch_statistics(y))[1]

    def _normalise(
        self, y: Tensor, context: Tensor | None, mean: Tensor, variance: Tensor
    ) -> tuple[Tensor, Tensor]:
        log_sd = self._log_sd(variance)
        x, ladj = super().inverse_and_ladj((y - mean) * (-log_sd).exp(), context)
        return x, ladj - log_sd.sum(-1)

    def _log_sd(self, variance: Tensor) -> Tensor:
        return 0.5 * (variance + self.epsilon).log()

    def _batch_statistics(self, y: Tensor) -> tuple[Tensor, Tensor]:
        if y.numel() < 2 * self.dim:
            raise ShapeError(
                "BatchNorm in training mode expected a batch of at least 2 values, but got shape "
                f"{tuple(y.shape)}. Call eval() to use the running statistics, or use ActNorm."
            )
        mean = _over_rows(y)
        return mean, _over_rows((y - mean).square())

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        # A batch with NaN in it must not spoil the running statistics for good.
        sound = mean.isfinite() & variance.isfinite()
        unbiased = variance * (count / (count - 1))
        share = self.batches.add_(1).to(mean.dtype).reciprocal().clamp_min(self.momentum)
        for running, now in ((self.running_mean, mean), (self.running_variance, unbiased)):
            running.copy_(torch.where(sound, running.lerp(now, share), running))

    def extra_repr(self) -> str:
        """Sizes, momentum and epsilon, for ``print``."""
        return f"{super().extra_repr()}, momentum={self.momentum}, epsilon={self.epsilon}"


class _ConditionedBatchNorm(Conditioned):
    """As the layer: in training mode the log-determinant is that of the batch ``y``."""

    layer: BatchNorm

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self.layer._ladj_of_pair(x, y, self.context)


def _over_rows(x: Tensor) -> Tensor:
    """The mean over all but the last axis."""
    return x.reshape(-1, x.shape[-1]).mean(0)
