# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Affine couplings in a row: value, score and gradient written out.

They are what default guides are made of, and on small models a step of training costs as much as
its operations are many: here about sixty a coupling, where autograd makes two hundred.

With ``y_m = x_m e^s + t`` and the score ``g`` of x, the score of y is ``h_m = g_m e^-s`` and
``h_k = g_k - (d(s, t) / d x_k)^T (x_m g_m + 1, h_m)``, m for moved and k for kept coordinates: a
coupling's Jacobian is triangular, so that nothing is solved (Vaitl et al. 2024,
arXiv:2403.15881).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from pyro_flows.nn import MLP
from pyro_flows.nn.written_out import (
    WrittenOut,
    can_be_written_out,
    clamp_with_slope,
    weights_of,
)
from pyro_flows.transforms.elementwise.univariate import Affine

if TYPE_CHECKING:
    from pyro_flows.transforms.coupling import Coupling


def is_plain(layer: Coupling) -> bool:
    """Whether :func:`affine_couplings_and_score` knows this coupling."""
    return (
        type(layer.univariate) is Affine
        and layer.context_dim == 0
        and can_be_written_out(layer.conditioner)
    )


def affine_couplings_and_score(
    layers: Sequence[Coupling], x: Tensor, score: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``forward_and_score`` of couplings in a row, for each of which :func:`is_plain` holds.

    Args:
        layers: the couplings, first to last.
        x: shape ``(N, dim)``.
        score: shape ``(N, dim)``.
    """
    weights = [weights_of(cast("MLP", layer.conditioner)) for layer in layers]
    result: tuple[Tensor, Tensor, Tensor]
    result = _Couplings.apply(x, score.detach(), layers, weights, *sum(weights, []))
    return result


class _Couplings(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        score: Tensor,
        layers: Sequence[Coupling],
        weights: list[list[Tensor]],
        *_: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.passes = []
        total = x.new_zeros(x.shape[:-1])
        for layer, own in zip(layers, weights, strict=True):
            step = _Pass(layer, own, x, score)
            x, score, total = step.y, step.score, total + step.ladj
            ctx.passes.append(step)
        ctx.mark_non_differentiable(total, score)
        return x, total, score

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        back, by_weights = grads[0], []
        for step in reversed(ctx.passes):
            back, own = step.pull(back)
            by_weights.append(own)
        return back, None, None, None, *sum(reversed(by_weights), [])


class _Pass:
    """One coupling's pass: what it gives, and what its gradient needs."""

    def __init__(self, layer: Coupling, weights: list[Tensor], x: Tensor, score: Tensor) -> None:
        kept, moved = layer.kept, layer.moved
        self.restore = layer.restore
        self.sizes = [kept.shape[0], moved.shape[0]]
        self.order = torch.cat([kept, moved])
        kept, moved = self._apart(x)
        kept_score, moved_score = self._apart(score)
        self.net = WrittenOut(cast("MLP", layer.conditioner), weights, kept)
        shift, raw = self.net.y.unflatten(-1, (-1, 2)).unbind(-1)
        bound = cast("Affine", layer.univariate).log_scale_bound
        log_scale, self.slope = clamp_with_slope(raw, bound)
        self.scale = log_scale.exp()
        self.scaled = moved * self.scale
        moved_after = moved_score / self.scale
        by_raw = torch.addcmul(self.slope, moved * moved_score, self.slope)
        by_kept, _ = self.net.pull(torch.stack([moved_after, by_raw], -1).flatten(-2))
        self.y = self._together(kept, self.scaled + shift)
        self.score = self._together(kept_score - by_kept, moved_after)
        self.ladj = log_scale.sum(-1)

    def pull(self, ahead: Tensor) -> tuple[Tensor, list[Tensor]]:
        """From the gradient by ``y`` that by ``x``, and those by the weights."""
        kept, moved = self._apart(ahead)
        by_raw = moved * self.scaled * self.slope
        by_kept, by_weights = self.net.pull(
            torch.stack([moved, by_raw], -1).flatten(-2), weights=True
        )
        return self._together(kept + by_kept, moved * self.scale), by_weights

    def _apart(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Kept coordinates, then moved ones."""
        kept, moved = x.index_select(-1, self.order).split_with_sizes(self.sizes, -1)
        return kept, moved

    def _together(self, kept: Tensor, moved: Tensor) -> Tensor:
        return torch.cat([kept, moved], -1).index_select(-1, self.restore)
