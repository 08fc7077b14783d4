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
from torch.autograd.function import once_differentiable

from pyro_flows.nn import MLP
from pyro_flows.nn.written_out import WrittenOut, clamp_with_slope, weights_of
from pyro_flows.transforms.elementwise.univariate import Affine

if TYPE_CHECKING:
    from pyro_flows.transforms.coupling import Coupling


def affine_couplings_and_score(
    layers: Sequence[Coupling], x: Tensor, score: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """``forward_and_score`` of couplings in a row, for each of which ``is_plain`` holds.

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
        *every: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(*every)
        ctx.passes = [_Pass(layer, own) for layer, own in zip(layers, weights, strict=True)]
        total = x.new_zeros(x.shape[:-1])
        for step in ctx.passes:
            x, score, ladj = step.push(x, score)
            total = total + ladj
        ctx.mark_non_differentiable(total, score)
        return x, total, score

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        _ = ctx.saved_tensors  # autograd's check that no weight has changed in place
        back, by_weights = grads[0], []
        for step in reversed(ctx.passes):
            back, own = step.pull(back)
            by_weights.append(own)
        return back, None, None, None, *sum(reversed(by_weights), [])


class _Pass:
    """One coupling's pass, which keeps what its gradient needs.

    Not what it gives: the last one's is the function's own output, which would hold itself.
    """

    def __init__(self, layer: Coupling, weights: list[Tensor]) -> None:
        self.net = WrittenOut(cast("MLP", layer.conditioner), weights)
        self.bound = cast("Affine", layer.univariate).log_scale_bound
        self.sizes = [layer.kept.shape[0], layer.moved.shape[0]]
        self.order, self.restore = torch.cat([layer.kept, layer.moved]), layer.restore

    def push(self, x: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where x lands, the score there, and the log-determinant."""
        kept, moved = self._apart(x)
        kept_score, moved_score = self._apart(score)
        shift, raw = self.net.push(kept).unflatten(-1, (-1, 2)).unbind(-1)
        log_scale, self.slope = clamp_with_slope(raw, self.bound)
        self.scale = log_scale.exp()
        self.scaled = moved * self.scale
        moved_after = moved_score / self.scale
        by_raw = torch.addcmul(self.slope, moved * moved_score, self.slope)
        by_kept, _ = self.net.pull(torch.stack([moved_after, by_raw], -1).flatten(-2))
        y = self._together(kept, self.scaled + shift)
        return y, self._together(kept_score - by_kept, moved_after), log_scale.sum(-1)

    def pull(self, ahead: Tensor) -> tuple[Tensor, list[Tensor]]:
        """From the gradient by where x lands that by x, and those by the weights."""
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
