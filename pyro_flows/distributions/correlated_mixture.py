# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The base of correlated Gaussians, for densities that no single Gaussian is near."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_flows.distributions.base import Base
from pyro_flows.errors import ShapeError
from pyro_flows.ops import Gaussians, fit_gaussians

# Numbers of matrices gathered at once in sampling.
MOST_NUMBERS = 1 << 24


class CorrelatedMixture(Base):
    """A mixture of Gaussians with full covariances, all trained.

    ``p(x) = sum_k w_k N(x; mean_k, (R_k R_k^T)^-1)``, ``R_k`` upper-triangular:
    ``R_k = (I + strict upper triangle) diag(exp(log_scale))``.

    Fitted to data (:meth:`initialize`, by expectation maximisation) it is a good density by
    itself, and a flow on top of it, the identity at first, starts where the mixture ends. It
    starts with all components at the standard normal.

    Args:
        dim: number of coordinates.
        components: number of Gaussians.
        seed: of the fit's start.

    Draws carry no gradient. Cost: ``components * dim^2`` both ways.

    When to choose it: to fit data of up to some tens of columns, the fewer the rows the more.
    :class:`GaussianMixture` has diagonal covariances, and takes a context.

    Example:
        >>> base = distributions.CorrelatedMixture(2, components=3)
        >>> base.initialize(torch.randn(100, 2))
        >>> base().sample((5,)).shape, base().log_prob(torch.zeros(7, 2)).shape
        (torch.Size([5, 2]), torch.Size([7]))
    """

    def __init__(self, dim: int, components: int = 8, *, seed: int = 0) -> None:
        super().__init__(dim)
        if components < 1:
            raise ShapeError(
                f"CorrelatedMixture expected components >= 1, but got {components}. 8 is the "
                "default."
            )
        self.components, self.seed = components, seed
        self.mean = nn.Parameter(torch.zeros(components, dim))
        self.log_scale = nn.Parameter(torch.zeros(components, dim))
        self.upper = nn.Parameter(torch.zeros(components, dim, dim))
        self.logit = nn.Parameter(torch.zeros(components))

    def gaussians(self) -> Gaussians:
        """The mixture as tensors."""
        unit = self.upper.triu(1) + torch.eye(
            self.dim, dtype=self.upper.dtype, device=self.upper.device
        )
        root = unit * self.log_scale.exp().unsqueeze(-2)
        return Gaussians(self.logit.log_softmax(-1), self.mean, root)

    @torch.no_grad()
    def set(self, gaussians: Gaussians) -> None:
        """Put the components where these are."""
        scale = gaussians.root.diagonal(dim1=-2, dim2=-1)
        self.mean.copy_(gaussians.mean)
        self.log_scale.copy_(scale.log())
        self.upper.copy_((gaussians.root / scale.unsqueeze(-2)).triu(1))
        self.logit.copy_(gaussians.log_weight)

    def initialize(self, value: Tensor, context: Tensor | None = None) -> None:
        """Fit to values ``(n, dim)``; the context is not used."""
        self.set(fit_gaussians(value, self.components, seed=self.seed))

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """Make the distribution."""
        return _Mixture(self.gaussians())

    def extra_repr(self) -> str:
        """Sizes in words, for ``print``."""
        return f"{super().extra_repr()}, components={self.components}"


class _Mixture(dist.TorchDistribution):
    """What ``CorrelatedMixture()`` returns; it scores by one product for all components."""

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    has_rsample = False

    def __init__(self, gaussians: Gaussians, batch_shape: torch.Size = torch.Size()) -> None:
        self.gaussians = gaussians
        super().__init__(batch_shape, gaussians.mean.shape[-1:], validate_args=False)

    def log_prob(self, value: Tensor) -> Tensor:
        log_prob = self.gaussians.log_prob(value)
        return log_prob.expand(torch.broadcast_shapes(log_prob.shape, self.batch_shape))

    @torch.no_grad()
    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:
        """Draw a component, then from it."""
        shape = torch.Size(sample_shape) + self.batch_shape
        g = self.gaussians
        chosen = torch.multinomial(
            g.log_weight.softmax(-1), max(1, shape.numel()), replacement=True
        )[: shape.numel()]
        noise = torch.randn(len(chosen), g.mean.shape[-1], dtype=g.mean.dtype).to(g.mean.device)
        # q = (x - mean) R  =>  x = mean + q R^-1
        inverse = torch.linalg.solve_triangular(
            g.root,
            torch.eye(g.mean.shape[-1], dtype=g.mean.dtype, device=g.mean.device),
            upper=True,
        )
        # A matrix for each draw: of wide ones few at once.
        chunk = max(1, MOST_NUMBERS // inverse[0].numel())
        parts = [
            g.mean[k] + (e.unsqueeze(-2) @ inverse[k]).squeeze(-2)
            for k, e in zip(chosen.split(chunk), noise.split(chunk), strict=True)
        ]
        return torch.cat(parts).reshape(*shape, g.mean.shape[-1])

    def expand(self, batch_shape: Any, _instance: Any = None) -> _Mixture:
        return _Mixture(self.gaussians, torch.Size(batch_shape))
