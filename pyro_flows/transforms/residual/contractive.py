# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The contractive residual layer: any network small enough to be undone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows.errors import OptionError
from pyro_flows.nn.lipschitz import Affine, LipschitzMLP, push
from pyro_flows.ops import (
    contraction_inverse,
    log_det,
    log_det_estimate,
    near_identity_inverse,
    rademacher,
)
from pyro_flows.transforms.base import Layer

MODES = ("exact", "stochastic")


class ContractiveResidual(Layer):
    """``y = x + g(x)``, ``g`` a network with Lipschitz constant below 1.

    Args:
        dim: number of coordinates.
        context_dim: with a context ``g`` depends on it too; the bound is one in ``x``.
        hidden_dims: widths of the hidden layers of ``g``.
        lipschitz: bound of the Lipschitz constant, below 1. Log-derivatives along any direction
            lie in ``log(1 - lipschitz)`` ... ``log(1 + lipschitz)``: stack several layers.
        log_det: ``"exact"``: the determinant of the Jacobian, found by pushing ``dim`` tangents
            through the network. ``"stochastic"``: an unbiased estimate by Hutchinson's trace and
            Russian roulette, for hundreds of dimensions.
        exact_terms: terms of the series that the estimate always takes.

    Raises:
        OptionError: the bound is not in (0, 1), or there is no such mode.
        NotConvergedError: by the inverse, if NaN or infinite weights make ``g`` no contraction.
        DerivativeError: by a second derivative in stochastic mode.

    Cost: exact: ``1 + dim`` passes forward (one batched) and O(dim^3); the inverse is Newton's
    method guarded by the fixed-point iteration, usually 4 to 8 such evaluations. Stochastic: about
    ``exact_terms + 10`` passes forward; the inverse iterates ``x = y - g(x)``, whose error shrinks
    by ``lipschitz`` or more a pass, and its gradient by as many passes more. Gradients of the
    inverse are those of the implicit function theorem; in exact mode they can be differentiated
    again, in stochastic mode that is refused in both directions.

    The stochastic mode draws from torch's global generator in every call, whether in ``train()``
    or ``eval()``: two calls differ, and so do Pyro's log densities. Their mean, and that of their
    gradients, is right for every sample's weight. Evaluate in exact mode: set
    ``layer.log_det = "exact"``.

    When: for maps without any preferred order or split of coordinates. Couplings are cheaper.

    Reference: Behrmann et al., Invertible residual networks, 2018,
    https://arxiv.org/abs/1811.00995; Chen et al., Residual flows, 2019,
    https://arxiv.org/abs/1906.02735

    Example:
        >>> layer = transforms.ContractiveResidual(3, hidden_dims=(16,))
        >>> x = torch.randn(5, 3)
        >>> y, ladj = layer.forward_and_ladj(x)
        >>> torch.equal(y, x), torch.allclose(layer.inv(y), x), ladj.shape
        (True, True, torch.Size([5]))
    """

    def __init__(
        self,
        dim: int,
        context_dim: int = 0,
        *,
        hidden_dims: Sequence[int] = (64, 64),
        lipschitz: float = 0.9,
        log_det: str = "exact",
        exact_terms: int = 10,
    ) -> None:
        super().__init__(dim, context_dim)
        if not 0 < lipschitz < 1:
            raise OptionError(
                f"ContractiveResidual expected 0 < lipschitz < 1, but got {lipschitz}. From 1 on "
                "the layer would not be invertible; stack several for more."
            )
        if log_det not in MODES:
            raise OptionError(
                f"ContractiveResidual expected log_det to be one of {MODES}, but got {log_det!r}. "
                "The exact one is right up to hundreds of dimensions."
            )
        self.net = LipschitzMLP(dim, context_dim, hidden_dims=hidden_dims, lipschitz=lipschitz)
        self.lipschitz, self.log_det, self.exact_terms = lipschitz, log_det, exact_terms

    def extra_repr(self) -> str:
        """Sizes and mode, for ``print``."""
        return f"{super().extra_repr()}, log_det={self.log_det!r}"

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Add the network."""
        self.check(x, context)
        affines = self.net.affines(context)
        if self.log_det == "exact":
            y, jacobian = _with_jacobian(affines, x)
            return y, log_det(jacobian)
        y = x + push(affines, x)[0]
        return y, self._estimate(affines, x.expand(y.shape))

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Solve ``x + g(x) = y``."""
        self.check(y, context)
        affines = self.net.affines(context)
        batch = torch.broadcast_shapes(y.shape[:-1], () if context is None else context.shape[:-1])
        y = y.expand(*batch, self.dim)
        if self.log_det == "exact":
            return near_identity_inverse(lambda x: _with_jacobian(affines, x), y)
        x = self._fixed_point(affines, y)
        return x, -self._estimate(affines, x)

    def _estimate(self, affines: list[Affine], x: Tensor) -> Tensor:
        return log_det_estimate(
            lambda v: _along(affines, x, v),
            rademacher(x),
            lipschitz=self.lipschitz,
            exact_terms=self.exact_terms,
        )

    def _fixed_point(self, affines: list[Affine], y: Tensor) -> Tensor:
        return contraction_inverse(
            lambda x: push(affines, x)[0],
            lambda x, v: _along([(w.detach(), b.detach()) for w, b in affines], x, v),
            y,
            y,
            self.lipschitz,
        )


def _with_jacobian(affines: list[Affine], x: Tensor) -> tuple[Tensor, Tensor]:
    """``x + g(x)``, and its transposed Jacobian: a tangent along each axis, a row each."""
    eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    value, rows = push(affines, x, eye)
    return x + value, eye + rows


def _along(affines: list[Affine], x: Tensor, v: Tensor) -> Tensor:
    return push(affines, x, v.unsqueeze(-2))[1].squeeze(-2)
