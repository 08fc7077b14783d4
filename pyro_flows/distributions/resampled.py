# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The resampled base: a normal whose draws a trained network accepts or rejects."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from pyro_flows.distributions.base import Base
from pyro_flows.errors import OptionError
from pyro_flows.nn import MLP
from pyro_flows.ops import is_recording, soft_clamp

# Acceptance between 5e-5 and 1 - 5e-5: neither it nor its complement can vanish.
LOGIT_BOUND = 10.0


class ResampledBase(Base):
    r"""Learned accept/reject sampling of a standard normal (LARS).

    Draw from ``N(0, I)``, keep the draw with probability ``a(x)``, else draw again; the
    ``truncation``-th draw is kept whatever it is. The density of what is kept is

    ``p(x) = N(x; 0, I) ((1 - alpha) a(x) / Z + alpha)``, with ``Z = E[a]`` under the normal and
    ``alpha = (1 - Z)^(truncation - 1)``.

    It starts as the standard normal. It can cut holes and modes out of it, which a flow alone
    makes only with thin bridges between; in many dimensions less, as ``Z`` gets small.

    **log p is exact up to the estimate of Z.** That is the mean of ``a`` over ``draws`` fixed
    points of the normal (scrambled Sobol points, a buffer), so it is a function of the
    parameters: it has a gradient, changes with them, and two calls agree. Its error moves all
    log densities by one constant. :meth:`normalizer` gives it with any number of fresh points and
    a standard error; :meth:`redraw` takes fresh points for good, for example between epochs if
    ``a`` is large and data are few.

    Args:
        dim: number of coordinates.
        hidden_dims: widths of the acceptance network's hidden layers.
        truncation: the most draws a sample takes, at least 2.
        draws: number of points that ``Z`` is estimated with.
        seed: of those points.

    Draws carry no gradient (``has_rsample`` is False). Cost: ``log_prob`` takes one network pass
    over the values and one over ``draws`` points; sampling about ``log(n) / Z`` passes for ``n``
    samples, at most ``truncation``.

    Reference: Bauer and Mnih, Resampled priors for variational autoencoders, 2019,
    arXiv:1810.11428; Stimper et al., Resampling base distributions of normalizing flows, 2022,
    arXiv:2110.15828.

    Example:
        >>> base = distributions.ResampledBase(2, hidden_dims=(16,))
        >>> normal = distributions.StandardNormal(2)()
        >>> x = base().sample((5,))
        >>> torch.allclose(base().log_prob(x), normal.log_prob(x), atol=1e-5)
        True
    """

    points: Tensor

    def __init__(
        self,
        dim: int,
        hidden_dims: Sequence[int] = (64, 64),
        *,
        truncation: int = 100,
        draws: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__(dim)
        if truncation < 2 or draws < 2:
            raise OptionError(
                f"ResampledBase expected truncation >= 2 and draws >= 2, but got "
                f"truncation={truncation} and draws={draws}. 100 and 1024 are the defaults."
            )
        self.truncation = truncation
        self.acceptance = MLP(dim, 1, hidden_dims)
        self.register_buffer("points", _normal_points(draws, dim, seed).to(torch.empty(0)))

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """Make the distribution; the context is not used."""
        return Resampled(self)

    def logit(self, x: Tensor) -> Tensor:
        """Log-odds of keeping a draw, ``(*, dim) -> (*)``."""
        return soft_clamp(self.acceptance(x).squeeze(-1), LOGIT_BOUND)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of values ``(*, dim)``, given the estimate of ``Z``."""
        z = torch.sigmoid(self.logit(self.points)).mean()
        log_alpha = (self.truncation - 1) * torch.log1p(-z)
        log_kept = torch.log(-torch.expm1(log_alpha)) - z.log()
        normal = -0.5 * (x * x).sum(-1) - 0.5 * self.dim * _LOG_TWO_PI
        accept = torch.nn.functional.logsigmoid(self.logit(x))
        return normal + torch.logaddexp(log_kept + accept, log_alpha)

    @torch.no_grad()
    def draw(self, shape: torch.Size) -> Tensor:
        """Samples ``(*shape, dim)``, without gradient."""
        shape = torch.Size((*shape, self.dim))
        x = torch.randn(shape, dtype=self.points.dtype, device=self.points.device)
        keep = self._accepts(x)
        for _ in range(self.truncation - 1):
            if not is_recording() and bool(keep.all()):
                break
            new = torch.randn_like(x)
            x = torch.where(keep.unsqueeze(-1), x, new)
            keep = keep | self._accepts(new)
        return x

    def _accepts(self, x: Tensor) -> Tensor:
        logit = self.logit(x)
        return torch.rand_like(logit) < torch.sigmoid(logit)

    @torch.no_grad()
    def normalizer(self, draws: int = 100_000) -> tuple[Tensor, Tensor]:
        """``Z`` from fresh draws of the global random state, and its standard error."""
        x = torch.randn(draws, self.dim, dtype=self.points.dtype, device=self.points.device)
        accept = torch.sigmoid(self.logit(x))
        return accept.mean(), accept.std() / draws**0.5

    @torch.no_grad()
    def redraw(self, seed: int, draws: int | None = None) -> None:
        """Estimate ``Z`` with other points from now on, given their seed and number."""
        count = len(self.points) if draws is None else draws
        self.points = _normal_points(count, self.dim, seed).to(self.points)

    def extra_repr(self) -> str:
        """Sizes in words, for ``print``."""
        return f"{super().extra_repr()}, truncation={self.truncation}, draws={len(self.points)}"


class Resampled(dist.TorchDistribution):
    """What ``ResampledBase()()`` returns: shares its module's parameters."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, base: ResampledBase, batch_shape: torch.Size | None = None) -> None:
        self.base = base
        batch_shape = torch.Size() if batch_shape is None else batch_shape
        super().__init__(batch_shape, torch.Size((base.dim,)), validate_args=False)

    def sample(self, sample_shape: torch.Size | Sequence[int] = torch.Size()) -> Tensor:
        """Draw, shape ``(*sample_shape, *batch_shape, dim)``."""
        return self.base.draw(torch.Size((*sample_shape, *self.batch_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, exact up to the estimate of the normalizer."""
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        return self.base.log_prob(value).expand(shape)

    def expand(self, batch_shape: torch.Size | Sequence[int], _instance: Any = None) -> Resampled:
        """The same distribution with a larger batch shape."""
        return Resampled(self.base, torch.Size(batch_shape))


_LOG_TWO_PI = 1.8378770664093453


def _normal_points(count: int, dim: int, seed: int) -> Tensor:
    """Scrambled Sobol points, pushed through the normal's quantile function."""
    with torch.device("cpu"):
        engine = torch.quasirandom.SobolEngine(dim, scramble=True, seed=seed)
        u = engine.draw(count, dtype=torch.float64)
        # Off the edges, where the quantiles are infinite.
        return torch.special.ndtri(u.clamp(0.5 / 2**31, 1 - 0.5 / 2**31))
