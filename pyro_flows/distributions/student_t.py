# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The Student-t base, for heavy tails."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_flows.distributions.base import Base
from pyro_flows.errors import OptionError
from pyro_flows.nn import Parameters


class StudentT(Base):
    r"""Independent Student-t coordinates, each with its own, trained weight of tails.

    ``p(x) = prod_i t(x_i; df_i)``, location 0 and scale 1, with ``log df`` held between the logs
    of two bounds by a sigmoid: below 1 not even a mean exists, above 100 nobody can tell the
    tails from a normal's.

    Layers whose slope is bounded far out, as those here are, can't make heavy tails from a
    normal; with this base they needn't.

    Args:
        dim: number of coordinates.
        df: degrees of freedom at the start.
        learnable: whether they are trained.
        bounds: the least and the most degrees of freedom; ``df`` lies between.
        context_dim: with a context, the degrees of freedom come from a network of it.
        hidden_dims: widths of that network.

    Draws carry gradients, also by the degrees of freedom. Cost: O(dim).

    Reference: Alexanderson and Henter, Robust model training and generalisation with Studentising
    flows, 2020, arXiv:2006.06599; Jaini et al., Tails of Lipschitz triangular flows, 2020,
    arXiv:1907.04481.

    Example:
        >>> base = distributions.StudentT(3, df=4.0)
        >>> base().rsample((5,)).shape, torch.allclose(base.df, torch.tensor(4.0))
        (torch.Size([5, 3]), True)
    """

    def __init__(
        self,
        dim: int,
        df: float = 5.0,
        *,
        learnable: bool = True,
        bounds: tuple[float, float] = (1.0, 100.0),
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(dim, context_dim)
        low, high = bounds
        if not 0 < low < df < high:
            raise OptionError(
                f"StudentT expected 0 < bounds[0] < df < bounds[1], but got df={df} and "
                f"bounds={bounds}. Widen the bounds, or choose df between them."
            )
        self.low, self.high = math.log(low), math.log(high)
        share = (math.log(df) - self.low) / (self.high - self.low)
        start = {"share": torch.full((dim,), math.log(share / (1 - share)))}
        self.tensors = Parameters(start, context_dim, hidden_dims)
        self.tensors.requires_grad_(learnable)

    @property
    def df(self) -> Tensor:
        """Degrees of freedom without a context, shape ``(dim,)``."""
        return self._df(None)

    def _df(self, context: Tensor | None) -> Tensor:
        share = torch.sigmoid(self.tensors(context)["share"])
        return (self.low + (self.high - self.low) * share).exp()

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """Make the distribution."""
        df = self._df(self.own_context(context))
        return _StudentT(df, validate_args=False).to_event(1)


class _StudentT(dist.StudentT):
    """Student-t whose score stays finite where the square of the value overflows."""

    def log_prob(self, value: Tensor) -> Tensor:
        # log(1 + z^2 / df) = 2 log hypot(1, z / sqrt(df)).
        z = (value - self.loc) / (self.scale * self.df.sqrt())
        log_one_plus = 2 * torch.hypot(z, torch.ones_like(z)).log()
        half = 0.5 * self.df
        norm = self.scale.log() + 0.5 * (math.pi * self.df).log()
        norm = norm + torch.lgamma(half) - torch.lgamma(half + 0.5)
        return -(half + 0.5) * log_one_plus - norm
