# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Autoregressive layers: each coordinate is moved as those it depends on decide."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyro_flows.errors import ShapeError
from pyro_flows.nn import MaskedMLP, Walkable
from pyro_flows.nn.walk import in_generations
from pyro_flows.ops import generations, is_recording, order_adjacency, solve_by_passes
from pyro_flows.transforms.base import Layer, vector_of
from pyro_flows.transforms.elementwise.univariate import (
    Affine,
    RationalQuadraticSpline,
    Univariate,
)

# Steps are chosen over whole passes in a graph of no more than this depth, or for a batch that
# needs so many parameters: a step's fixed cost then no longer counts. Measured on a CPU.
SHALLOW, MANY = 16, 2**16


class Autoregressive(Layer):
    """Move every coordinate by a univariate whose parameters its predecessors decide.

    ``y[i] = univariate(x[i]; conditioner(x[j] for j that i depends on, context))``.

    Who depends on whom is a full order, or any graph without cycles: a graph of depth two is a
    coupling, one without edges acts on each coordinate alone, and the graph of a model's latent
    variables needs few weights and few passes.

    Args:
        dim: number of coordinates.
        univariate: the map of each number.
        order: ``"natural"``, ``"reversed"``, ``"random"``, or the coordinates in the order in
            which they come.
        adjacency: in place of an order: bool ``(dim, dim)``, True where row depends on column.
        context_dim: width of the context, which all coordinates see, the first too.
        hidden_dims: widths of the conditioner's hidden layers.
        conditioner: a module ``(features (*, dim, num_features), context) -> (*, dim,
            num_parameters)`` in place of the :class:`~pyro_flows.nn.MaskedMLP`, of the same order
            or adjacency; it is shown ``univariate.features`` of the coordinates.
        seed: of the random order.

    Raises:
        ShapeError: a cycle, an order that is none, or a univariate without parameters.

    Cost: forwards one pass of the conditioner. Backwards the depth of the graph counts, ``dim``
    for an order. A conditioner that can be walked (:class:`~pyro_flows.nn.Walkable`; the default
    can) makes that many small steps, which together cost one pass. Any other makes whole passes,
    ``x <- univariate.inverse(y; conditioner(x))``, exact after as many as the graph is deep; they
    stop as soon as nothing moves, typically after 5 to 15. So it is for small batches, where steps
    would cost more than passes. Gradients through the passes are implicit: they take two more
    passes, the memory of two, and about as many vector-Jacobian products as there were passes (for
    second derivatives as many as the graph is deep); through steps they are plain. Where
    operations are recorded passes aren't counted but made.

    Sampling is the quick direction (IAF); ``layer.inv``, a layer too, scores quickly (MAF). Choose
    the first for guides, the second for density estimation; a coupling is quick both ways, but
    needs more layers.

    Reference: Kingma et al. 2016, arXiv:1606.04934; Papamakarios et al. 2017, arXiv:1705.07057;
    passes: Song et al. 2021, arXiv:2002.03629; graphs: Wehenkel and Louppe 2021, arXiv:2006.02548.

    Example:
        >>> layer = transforms.Autoregressive(3, transforms.Affine(), order="reversed")
        >>> y, ladj = layer.forward_and_ladj(torch.ones(5, 3))
        >>> y.shape, ladj.shape
        (torch.Size([5, 3]), torch.Size([5]))
        >>> star = torch.tensor([[0, 0, 0], [1, 0, 0], [1, 0, 0]]).bool()
        >>> transforms.Autoregressive(3, transforms.Affine(), adjacency=star).depth
        2
    """

    sequence: Tensor
    restore: Tensor
    generation: list[int]

    def __init__(
        self,
        dim: int,
        univariate: Univariate,
        *,
        order: str | Sequence[int] = "natural",
        adjacency: Tensor | None = None,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        conditioner: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(dim, context_dim)
        self.univariate = univariate
        if univariate.num_parameters == 0:
            raise ShapeError(
                f"{type(self).__name__} has nothing to decide: {univariate} has no parameters. "
                "Use Elementwise, or a Chain with a univariate that has some."
            )
        if adjacency is None:
            adjacency = order_adjacency(dim, order, seed=seed)
        elif adjacency.shape != (dim, dim):
            raise ShapeError(
                f"{type(self).__name__} expected an adjacency of shape ({dim}, {dim}), but got "
                f"{tuple(adjacency.shape)}. Row i marks the coordinates that i depends on."
            )
        generation = generations(adjacency)
        self.depth = int(generation.max()) + 1
        self.starts = in_generations(self, generation)
        self.register_index("restore", self.sequence.argsort())
        self.conditioner = conditioner or MaskedMLP(
            adjacency,
            univariate.num_parameters,
            num_features=univariate.num_features,
            context_dim=context_dim,
            hidden_dims=hidden_dims,
        )
        # One that can be walked says who comes when; of others it can't be known.
        known = getattr(self.conditioner, "generation", self.generation)
        if known != self.generation:
            raise ShapeError(
                f"{type(self).__name__} expected a conditioner of its own order or adjacency, "
                f"where coordinates come in generations {self.generation}, but got one with "
                f"{known}. Give the layer and the conditioner the same."
            )

    @property
    def domain(self) -> Any:  # type: ignore[override]
        """The univariate's domain, of every coordinate."""
        return vector_of(self.univariate.domain)

    @property
    def codomain(self) -> Any:  # type: ignore[override]
        """The univariate's codomain, of every coordinate."""
        return vector_of(self.univariate.codomain)

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Move every coordinate; one pass."""
        x = self._expanded(x, context)
        y, ladj = self.univariate.forward_and_ladj(x, self._params(x, context))
        return y, ladj.sum(-1)

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Move them back, by steps or passes."""
        y = self._expanded(y, context)
        x, ladj = (self.by_steps if self._walks(y) else self.by_passes)(y, context)
        return x, ladj.sum(-1)

    def _walks(self, y: Tensor) -> bool:
        if self.depth == 1 or not isinstance(self.conditioner, Walkable):
            return False
        large = y.numel() * self.univariate.num_parameters >= MANY
        return is_recording() or self.depth <= SHALLOW or large

    def _expanded(self, x: Tensor, context: Tensor | None) -> Tensor:
        self.check(x, context)
        if context is None:
            return x
        return x.expand(*torch.broadcast_shapes(x.shape[:-1], context.shape[:-1]), -1)

    def _params(self, x: Tensor, context: Tensor | None) -> Tensor:
        params = self.conditioner(self.univariate.features(x), context)
        return params.expand(*x.shape, -1)

    def by_steps(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The inverse, generation by generation, by a conditioner that can be walked.

        Args:
            y: ``(*, dim)``.
            context: ``(*, context_dim)``, the leading axes those of ``y`` or broadcast to them.

        Returns:
            ``(x, ladj)``, both ``(*, dim)``: the log-derivative is per coordinate.
        """
        walk = cast(Walkable, self.conditioner).walk(context, y.shape[:-1])
        y = y.index_select(-1, self.sequence)
        found = []
        for begin, end in zip(self.starts[:-1], self.starts[1:], strict=True):
            found.append(self.univariate.inverse_and_ladj(y[..., begin:end], walk.params()))
            walk.feed(self.univariate.features(found[-1][0]))
        x, ladj = (torch.cat(pieces, -1) for pieces in zip(*found, strict=True))
        return x.index_select(-1, self.restore), ladj.index_select(-1, self.restore)

    def by_passes(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The inverse as a fixed point of whole passes; arguments and results as of `by_steps`."""
        # What all passes share, such as masked weights, is computed once where that is offered.
        given = getattr(self.conditioner, "given", None)
        params = partial(self.conditioner, context=context) if given is None else given(context)

        def step(x: Tensor) -> tuple[Tensor, Tensor]:
            made = params(self.univariate.features(x)).expand(*x.shape, -1)
            return self.univariate.inverse_and_ladj(y, made)

        start = y
        if self.univariate.domain is not self.univariate.codomain:
            count = self.univariate.num_parameters
            start = self.univariate.inverse_and_ladj(y, y.new_zeros(()).expand(*y.shape, count))[0]
        return solve_by_passes(step, start, self.depth)

    def extra_repr(self) -> str:
        """Sizes and univariate, for ``print``."""
        return f"{super().extra_repr()}, depth={self.depth}, univariate={self.univariate}"


class AffineAutoregressive(Autoregressive):
    """Autoregressive with an affine univariate (IAF; its inverse: MAF).

    ``y[i] = x[i] exp(s[i]) + shift[i]``, shift and log-scale made from the coordinates before
    ``i``; see :class:`Autoregressive`.

    Args:
        dim: number of coordinates.
        order: as of :class:`Autoregressive`.
        context_dim: width of the context.
        hidden_dims: widths of the conditioner's hidden layers.
        log_scale_bound: soft bound of the log-scale.

    Cost: forwards one pass, backwards as :class:`Autoregressive`. Choose it for guides (IAF), its
    ``inv`` for density estimation (MAF); where affine maps don't bend enough take
    :class:`SplineAutoregressive`.

    Reference: Kingma et al. 2016, https://arxiv.org/abs/1606.04934; Papamakarios et al. 2017,
    https://arxiv.org/abs/1705.07057

    Example:
        >>> iaf = transforms.AffineAutoregressive(4, order="reversed")
        >>> maf = iaf.inv  # scores in one pass, where iaf draws in one
        >>> maf(torch.randn(5, 4)).shape, iaf(maf(torch.zeros(4))).tolist()
        (torch.Size([5, 4]), [0.0, 0.0, 0.0, 0.0])
    """

    def __init__(
        self,
        dim: int,
        *,
        order: str | Sequence[int] = "natural",
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        log_scale_bound: float = 3.0,
    ) -> None:
        super().__init__(
            dim,
            Affine(log_scale_bound),
            order=order,
            context_dim=context_dim,
            hidden_dims=hidden_dims,
        )


class SplineAutoregressive(Autoregressive):
    """Autoregressive with a rational-quadratic spline (NSF-AR).

    ``y[i] = spline(x[i])``, its knots and slopes made from the coordinates before ``i``; see
    :class:`Autoregressive` and :class:`RationalQuadraticSpline`.

    Args:
        dim: number of coordinates.
        order: as of :class:`Autoregressive`.
        context_dim: width of the context.
        hidden_dims: widths of the conditioner's hidden layers.
        bins: bins of the spline.
        bound: half-width of its box; the identity outside.

    Cost: forwards one pass, backwards as :class:`Autoregressive`. Choose its ``inv`` for density
    estimation where a likelihood counts more than quick sampling; whiten values first.

    Reference: Durkan et al., Neural Spline Flows, 2019, https://arxiv.org/abs/1906.04032

    Example:
        >>> layer = transforms.SplineAutoregressive(4, context_dim=2, bins=4)
        >>> layer.condition(torch.zeros(5, 2))(torch.randn(5, 4)).shape
        torch.Size([5, 4])
    """

    def __init__(
        self,
        dim: int,
        *,
        order: str | Sequence[int] = "natural",
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        bins: int = 8,
        bound: float = 5.0,
    ) -> None:
        super().__init__(
            dim,
            RationalQuadraticSpline(bins, bound),
            order=order,
            context_dim=context_dim,
            hidden_dims=hidden_dims,
        )
