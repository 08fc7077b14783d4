# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What all affine layers share: a location, tensors that a context may move, both directions."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pyro_flows.nn import Parameters
from pyro_flows.ops.derivatives import gradient_at
from pyro_flows.transforms.base import Layer

# How much a context may add to an entry of a matrix or to a log-scale: softly, and generously.
# Factors of e^5 beside the trained start are a strange thing to learn from a context.
CONTEXT_BOUND = 5.0

# The tensors of a layer by name, with the context's leading axes in front.
Tensors = dict[str, Tensor]


class AffineMap(Layer):
    """``y = loc + W x``; a subclass says how ``W`` is stored, applied and undone.

    Args:
        dim: number of coordinates.
        start: name -> initial value of each tensor that makes up ``W``.
        context_dim: width of the context; with one, a network of it adds to ``loc`` and to the
            tensors (to those softly, by 5 at most), and ``W`` is another for every context.
        hidden_dims: widths of that network's hidden layers.
        shift: whether there is a ``loc``, beside another tensor.

    A subclass implements ``_multiply`` and ``_divide``, and ``_ladj`` unless ``|det W| = 1``; it
    keeps nothing but its tensors.

    Example:
        >>> class Flip(transforms.AffineMap):  # y = loc - x
        ...     def __init__(self, dim):
        ...         super().__init__(dim, {})
        ...
        ...     def _multiply(self, x, tensors):
        ...         return -x
        ...
        ...     def _divide(self, y, tensors):
        ...         return -y
        >>> Flip(2).inv(torch.ones(2)).tolist()
        [-1.0, -1.0]
    """

    def __init__(
        self,
        dim: int,
        start: Mapping[str, Tensor],
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
        *,
        shift: bool = True,
    ) -> None:
        super().__init__(dim, context_dim)
        loc = {"loc": torch.zeros(dim)} if shift else {}
        self.tensors = Parameters(
            {**loc, **start},
            context_dim,
            hidden_dims,
            bounds=dict.fromkeys(start, CONTEXT_BOUND),
        )

    @abstractmethod
    def _multiply(self, x: Tensor, tensors: Tensors) -> Tensor:
        """``W x``, broadcast over the leading axes of ``x`` and of the tensors."""

    @abstractmethod
    def _divide(self, y: Tensor, tensors: Tensors) -> Tensor:
        """``W^-1 y``."""

    def _loc(self, tensors: Tensors) -> Tensor:
        """The location, of the tensors' leading axes."""
        return tensors["loc"] if "loc" in tensors else self._zero(tensors).unsqueeze(-1)

    def _ladj(self, tensors: Tensors) -> Tensor:
        """log|det W|, of the tensors' leading axes."""
        return self._zero(tensors)

    def _zero(self, tensors: Tensors) -> Tensor:
        """Zeros of the tensors' leading axes."""
        name, value = next(iter(tensors.items()))
        return value.new_zeros(value.shape[: value.dim() - len(self.tensors.shapes[name])])

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``loc + W x``."""
        self.check(x, context)
        tensors = self.tensors(context)
        y = self._loc(tensors) + self._multiply(x, tensors)
        return y, self._ladj(tensors).expand(y.shape[:-1])

    def forward_and_score(
        self, x: Tensor, score: Tensor, context: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``loc + W x``, and ``W^-T`` of the score."""
        if not self._is_as_written():
            return super().forward_and_score(x, score, context)
        self.check(x, context)
        tensors = self.tensors(context)
        product, pushed = self._multiply_and_push(x, score.detach(), tensors)
        y = self._loc(tensors) + product
        return y, self._ladj(tensors).detach().expand(y.shape[:-1]), pushed

    def _is_as_written(self) -> bool:
        """Whether the map is that of the tensors: a subclass may do more in its directions."""
        return type(self).forward_and_ladj is AffineMap.forward_and_ladj

    def _multiply_and_push(
        self, x: Tensor, score: Tensor, tensors: Tensors
    ) -> tuple[Tensor, Tensor]:
        """``W x``, and ``W^-T`` of the score as a constant."""
        product = self._multiply(x, tensors)
        fixed = {name: tensor.detach() for name, tensor in tensors.items()}
        return product, self._divide_transposed(score.expand(product.shape), fixed)

    def _divide_transposed(self, score: Tensor, tensors: Tensors) -> Tensor:
        """``W^-T`` of a vector: the gradient of its product with ``W^-1 y``."""
        return gradient_at(
            lambda y: (self._divide(y, tensors) * score).sum(), torch.zeros_like(score)
        )

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``W^-1 (y - loc)``."""
        self.check(y, context)
        tensors = self.tensors(context)
        x = self._divide(y - self._loc(tensors), tensors)
        return x, (-self._ladj(tensors)).expand(x.shape[:-1])
