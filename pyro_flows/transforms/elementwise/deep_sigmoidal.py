# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Deep sigmoidal networks with monotone weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_flows.ops import logit_of_mixture, soft_clamp
from pyro_flows.transforms.elementwise.mixture_cdf import SPREAD, logistic_start, spread_offsets
from pyro_flows.transforms.elementwise.options import require_within
from pyro_flows.transforms.elementwise.root_finding import Monotone, RootFinding

MAX_OFFSET = 10.0
MAX_LOG_SLOPE = 2.0
# How far fixed log-weights differ, so that no two outputs of a layer are taught the same.
UNEVENNESS = 0.3

Weights = tuple[Tensor | None, Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class DeepSigmoidal(RootFinding):
    """A small monotone network of sigmoids, onto the real line (NAF's transformer).

    Each layer maps ``h`` to ``logit(W sigmoid(a * (U h) + b))``, with the rows of ``U`` and ``W``
    positive and of sum 1, ``a > 0``; the first takes the number ``x``, the last gives ``y``. With
    one layer it is NAF's deep sigmoidal flow, with more its dense one. Logits of mixtures are
    computed on the scale of logarithms, so that nothing saturates: far out the map is linear.
    Zero parameters are within 0.1 of the identity on ``|x| <= 3``; small fixed offsets keep units
    from being taught the same. ``|b| < 10.5``, and ``|log a|`` is below about 2.

    Args:
        hidden: sigmoids per layer.
        layers: number of layers.

    Parameters per element: ``3 hidden`` with one layer; with more, about
    ``2 layers hidden^2``.

    Cost: ``layers`` products of ``hidden x hidden`` matrices with vectors, on the scale of
    logarithms, forwards; a root (see :class:`RootFinding`) backwards. Choose it where nothing is
    known of the shape of the map.

    Reference: Huang et al., Neural Autoregressive Flows, 2018, https://arxiv.org/abs/1804.00779

    Example:
        >>> layer = transforms.Elementwise(2, transforms.DeepSigmoidal(hidden=4, layers=2))
        >>> x = torch.tensor([[0.5, 1e6]])
        >>> layer(x).shape, torch.allclose(layer.inv(layer(x)), x)
        (torch.Size([1, 2]), True)
    """

    hidden: int = 8
    layers: int = 2

    def __post_init__(self) -> None:
        require_within(self, hidden=(1, 1000), layers=(1, 100))

    @property
    def num_parameters(self) -> int:
        """All entries of ``U``, ``a``, ``b`` and ``W`` of all layers."""
        return sum(self._sizes())

    def _shapes(self) -> list[tuple[int, int]]:
        """Width of what goes into each layer, and of what comes out."""
        inner = [self.hidden] * (self.layers - 1)
        return list(zip([1, *inner], [*inner, 1], strict=True))

    def _sizes(self) -> list[int]:
        sizes = []
        for into, out in self._shapes():
            # A weighted mean of one number needs no weights.
            sizes += [self.hidden * into if into > 1 else 0, self.hidden, self.hidden]
            sizes += [self.hidden * out]
        return sizes

    def function(self, params: Tensor) -> Monotone:
        """The network at given parameters."""
        shares = iter(params.split(self._sizes(), -1))
        layers = [
            self._weights(next(shares), next(shares), next(shares), next(shares))
            for _ in range(self.layers)
        ]

        def network(x: Tensor) -> tuple[Tensor, Tensor]:
            h, log_slope = x.unsqueeze(-1), torch.zeros_like(x).unsqueeze(-1)
            for weights in layers:
                h, log_slope = _layer(h, log_slope, weights)
            return h.squeeze(-1), log_slope.squeeze(-1)

        return network

    def _weights(self, u: Tensor, a: Tensor, b: Tensor, w: Tensor) -> Weights:
        """Log-weights before the sigmoids, log-slopes, offsets, log-weights after them."""
        # What each layer's spread does to the map adds up with its square.
        offsets = spread_offsets(self.hidden, SPREAD / math.sqrt(self.layers))
        log_a = math.log(logistic_start(offsets)) + soft_clamp(a, MAX_LOG_SLOPE)
        b = u.new_tensor(offsets) + soft_clamp(b, MAX_OFFSET)
        log_u = u.unflatten(-1, (self.hidden, -1)).log_softmax(-1) if u.shape[-1] else None
        w = w.unflatten(-1, (-1, self.hidden))
        return log_u, log_a, b, (w + w.new_tensor(self._uneven(w.shape[-2]))).log_softmax(-1)

    def _uneven(self, out: int) -> list[list[float]]:
        """Log-weights of a layer of several outputs at zero parameters; none for one output."""
        return [
            [
                UNEVENNESS * math.cos(math.pi * (k + 0.5) * (i + 1) / self.hidden) * (out > 1)
                for k in range(self.hidden)
            ]
            for i in range(out)
        ]


def _layer(h: Tensor, log_slope: Tensor, weights: Weights) -> tuple[Tensor, Tensor]:
    """Values and log-slopes ``(*, into)`` to those of the next layer, ``(*, out)``."""
    log_u, log_a, b, log_w = weights
    if log_u is not None:
        h = (log_u.exp() * h.unsqueeze(-2)).sum(-1)
        log_slope = (log_u + log_slope.unsqueeze(-2)).logsumexp(-1)
    z, log_slope = log_a.exp() * h + b, log_a + log_slope
    y, log_partials = logit_of_mixture(z.unsqueeze(-2), log_w)
    return y, (log_partials + log_slope.unsqueeze(-2)).logsumexp(-1)
