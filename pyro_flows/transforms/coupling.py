# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Couplings: part of the vector decides how the rest moves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_flows.errors import ShapeError
from pyro_flows.nn import MLP
from pyro_flows.nn.written_out import can_be_written_out
from pyro_flows.ops import alternating_masks
from pyro_flows.transforms.base import Layer, is_real, vector_of
from pyro_flows.transforms.elementwise.univariate import (
    Affine,
    RationalQuadraticSpline,
    Univariate,
)
from pyro_flows.transforms.scored import affine_couplings_and_score


class Coupling(Layer):
    """Move the masked coordinates by a univariate whose parameters the kept ones decide.

    ``y[kept] = x[kept]``, ``y[moved] = univariate(x[moved]; conditioner(x[kept], context))``.

    One coupling leaves half of the vector alone: use two with complementary masks
    (:func:`pyro_flows.ops.alternating_masks`), or a permutation between.

    Args:
        dim: number of coordinates.
        univariate: the map of each moved number.
        mask: bool sequence of length ``dim``, True where moved; by default the second half moves.
        context_dim: width of the context.
        hidden_dims: widths of the conditioner's hidden layers.
        conditioner: a module ``(*, kept * num_features + context_dim) -> (*, moved *
            num_parameters)`` in place of the MLP, or what makes one from these two widths, such as
            :class:`pyro_flows.nn.ResidualMLP`. It is shown ``univariate.features`` of the kept
            coordinates, then the context; its output is ordered by coordinate.

    Raises:
        ShapeError: the mask moves nothing, or leaves nothing to condition on.

    Cost: one conditioner pass in each direction. Choose it where both sampling and scoring must be
    quick; an :class:`Autoregressive` layer does more, but is slow in one direction.

    Reference: Dinh et al. 2016, arXiv:1605.08803.

    Example:
        >>> layer = transforms.Coupling(3, transforms.Affine(), mask=[False, True, True])
        >>> y, ladj = layer.forward_and_ladj(torch.ones(5, 3))
        >>> y.shape, ladj.shape
        (torch.Size([5, 3]), torch.Size([5]))
        >>> layer = transforms.Coupling(3, transforms.Shift(), conditioner=ResidualMLP)
        >>> layer(torch.ones(5, 3)).shape
        torch.Size([5, 3])
    """

    kept: Tensor
    moved: Tensor
    restore: Tensor

    def __init__(
        self,
        dim: int,
        univariate: Univariate,
        mask: Sequence[bool] | Tensor | None = None,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        conditioner: nn.Module | Callable[[int, int], nn.Module] | None = None,
    ) -> None:
        super().__init__(dim, context_dim)
        if mask is None:
            moved = alternating_masks(dim, 1)[0]
        else:
            moved = torch.as_tensor(mask, dtype=torch.bool, device="cpu")
        kept_count, moved_count = self._check_parts(moved, univariate)
        self.univariate = univariate
        kept_index, moved_index = (~moved).nonzero()[:, 0], moved.nonzero()[:, 0]
        self.register_index("kept", kept_index)
        self.register_index("moved", moved_index)
        self.register_index("restore", torch.cat([kept_index, moved_index]).argsort())
        self._note_layout()
        sizes = (
            kept_count * univariate.num_features + context_dim,
            moved_count * univariate.num_parameters,
        )
        if conditioner is None:
            conditioner = MLP(*sizes, hidden_dims)
        self.conditioner = (
            conditioner if isinstance(conditioner, nn.Module) else conditioner(*sizes)
        )

    def _check_parts(self, moved: Tensor, univariate: Univariate) -> tuple[int, int]:
        """How many coordinates are kept and moved; raise unless they can make a coupling."""
        kept_count, moved_count = int((~moved).sum()), int(moved.sum())
        if moved.shape != (self.dim,) or moved_count == 0:
            raise ShapeError(
                f"{type(self).__name__} expected a mask of length {self.dim} that moves at least "
                f"one coordinate, but got {moved.tolist()}. True marks a coordinate that is moved."
            )
        if kept_count + self.context_dim == 0:
            raise ShapeError(
                f"{type(self).__name__} has nothing to condition on: all {self.dim} coordinate(s) "
                "are moved and context_dim is 0. Keep a coordinate, give a context, or use "
                "Elementwise."
            )
        if univariate.num_parameters == 0:
            raise ShapeError(
                f"{type(self).__name__} has nothing to decide: {univariate} has no parameters. "
                "Use Elementwise, or a Chain with a univariate that has some."
            )
        if univariate.domain is not univariate.codomain:
            raise ShapeError(
                f"{type(self).__name__} expected a univariate from one space to itself, since "
                f"kept coordinates stay where they are, but got {univariate}. Use Elementwise."
            )
        return kept_count, moved_count

    @property
    def domain(self) -> Any:  # type: ignore[override]
        """The univariate's domain, of every coordinate."""
        return vector_of(self.univariate.domain)

    codomain = domain

    def _note_layout(self) -> None:
        """See whether the mask is a prefix or a suffix: slices are quicker than indices."""
        self.layout = "scattered"
        if self.restore.is_meta:
            return
        kept, moved = self.kept.tolist(), self.moved.tolist()
        for layout, order in (("kept first", kept + moved), ("moved first", moved + kept)):
            if order == sorted(order):
                self.layout = layout

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._note_layout()

    def _apart(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.layout == "scattered":
            return x.index_select(-1, self.kept), x.index_select(-1, self.moved)
        sizes = self.kept.shape[0], self.moved.shape[0]
        if self.layout == "kept first":
            kept, moved = x.split(sizes, -1)
        else:
            moved, kept = x.split(sizes[::-1], -1)
        # A matrix product of a strided tensor rounds differently: a mask's answer would depend
        # on its layout.
        return kept.contiguous(), moved

    def _join(self, kept: Tensor, moved: Tensor) -> Tensor:
        if self.layout == "moved first":
            return torch.cat([moved, kept], -1)
        together = torch.cat([kept, moved], -1)
        return together if self.layout == "kept first" else together.index_select(-1, self.restore)

    def _split(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        self.check(x, context)
        kept, moved = self._apart(x)
        inputs = self.univariate.features(kept).flatten(-2)
        if context is not None:
            batch = torch.broadcast_shapes(kept.shape[:-1], context.shape[:-1])
            kept = kept.expand(*batch, -1)
            inputs = torch.cat([inputs.expand(*batch, -1), context.expand(*batch, -1)], -1)
        params = self.conditioner(inputs)
        sizes = moved.shape[-1], self.univariate.num_parameters
        if params.shape[-1] != sizes[0] * sizes[1]:
            raise ShapeError(
                f"{type(self).__name__} expected its conditioner to map {inputs.shape[-1]} "
                f"numbers to {sizes[0]} * {sizes[1]}, parameters for each moved coordinate, but "
                f"it gave {params.shape[-1]}. Build it for these widths."
            )
        return kept, moved, params.unflatten(-1, sizes)

    def _total(self, kept: Tensor, ladj: Tensor) -> Tensor:
        """The sum over moved coordinates; -inf where a kept one lies outside its space."""
        total = ladj.sum(-1)
        if is_real(self.univariate.domain):
            return total
        outside = ~(self.univariate.domain.check(kept) | kept.isnan()).all(-1) & ~total.isnan()
        return torch.where(outside, torch.full_like(total, -torch.inf), total)

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Move the masked coordinates."""
        kept, moved, params = self._split(x, context)
        moved, ladj = self.univariate.forward_and_ladj(moved, params)
        return self._join(kept, moved), self._total(kept, ladj)

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Move them back; the kept coordinates give the same parameters."""
        kept, moved, params = self._split(y, context)
        moved, ladj = self.univariate.inverse_and_ladj(moved, params)
        return self._join(kept, moved), self._total(kept, ladj)

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Move the masked coordinates; affine couplings with an MLP have no inverse pass."""
        if x.dim() == 2 and is_plain(self):
            self.check(x, context)
            return affine_couplings_and_score([self], x, score)
        return super().forward_and_score(x, score, context)

    def extra_repr(self) -> str:
        """Sizes and univariate, for ``print``."""
        return f"{super().extra_repr()}, moved={self.moved.tolist()}, univariate={self.univariate}"


class AffineCoupling(Coupling):
    """Coupling with an affine univariate (RealNVP): ``y = x exp(s) + shift`` where moved.

    Shift and log-scale ``s`` are made from what is kept; see :class:`Coupling`.

    Args:
        dim: number of coordinates.
        mask: True where moved.
        context_dim: width of the context.
        hidden_dims: widths of the conditioner's hidden layers.
        log_scale_bound: soft bound of the log-scale.

    Cost: one conditioner pass in each direction. Choose it first: it is the quickest layer both
    ways; where a stack of them doesn't bend enough, take :class:`SplineCoupling`.

    Reference: Dinh et al., Density estimation using Real NVP, 2016,
    https://arxiv.org/abs/1605.08803

    Example:
        >>> layer = transforms.AffineCoupling(4, mask=[True, False, True, False])
        >>> x = torch.randn(5, 4)
        >>> torch.equal(layer(x), x)  # until it is trained
        True
    """

    def __init__(
        self,
        dim: int,
        mask: Sequence[bool] | Tensor | None = None,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        log_scale_bound: float = 3.0,
    ) -> None:
        super().__init__(dim, Affine(log_scale_bound), mask, context_dim, hidden_dims)


def is_plain(layer: Layer) -> bool:
    """Whether :func:`affine_couplings_and_score` does for this layer, as things are now.

    Not for subclasses, which may do something else, nor where torch transforms or casts what is
    called.
    """
    if not isinstance(layer, Coupling) or type(layer) not in (Coupling, AffineCoupling):
        return False
    return (
        type(layer.univariate) is Affine
        and layer.context_dim == 0
        and can_be_written_out(layer.conditioner)
        and torch._C._functorch.peek_interpreter_stack() is None
        and not torch.is_autocast_enabled(layer.kept.device.type)
    )


class SplineCoupling(Coupling):
    """Coupling with a rational-quadratic spline (NSF): ``y = spline(x)`` where moved.

    Knots and slopes are made from what is kept; see :class:`Coupling` and
    :class:`RationalQuadraticSpline`.

    Args:
        dim: number of coordinates.
        mask: True where moved.
        context_dim: width of the context.
        hidden_dims: widths of the conditioner's hidden layers.
        bins: bins of the spline.
        bound: half-width of its box; the identity outside.

    Cost: one conditioner pass in each direction, then a softmax and a gather. Choose it for
    densities with several modes or sharp edges; whiten values first, so that the box holds them.

    Reference: Durkan et al., Neural Spline Flows, 2019, https://arxiv.org/abs/1906.04032

    Example:
        >>> layer = transforms.SplineCoupling(2, context_dim=3, bins=4)
        >>> y, ladj = layer.forward_and_ladj(torch.randn(5, 2), torch.randn(5, 3))
        >>> y.shape, ladj.shape
        (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(
        self,
        dim: int,
        mask: Sequence[bool] | Tensor | None = None,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        bins: int = 8,
        bound: float = 5.0,
    ) -> None:
        univariate = RationalQuadraticSpline(bins, bound)
        super().__init__(dim, univariate, mask, context_dim, hidden_dims)
