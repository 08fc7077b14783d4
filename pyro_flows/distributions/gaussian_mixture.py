# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The Gaussian-mixture base, for densities of several modes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_flows.distributions.base import Base
from pyro_flows.errors import OptionError
from pyro_flows.nn import Parameters
from pyro_flows.ops import kmeans, soft_clamp

# Scales between exp(-7) and exp(7): no component can shrink onto one point of the data.
LOG_SCALE_BOUND = 7.0


class GaussianMixture(Base):
    """A mixture of diagonal Gaussians with trained means, scales and weights.

    ``p(x) = sum_k w_k prod_i N(x_i; mean_ki, scale_ki)``.

    A flow is continuous: from one mode it makes several only with thin bridges between. This base
    has several from the start. The means start apart, drawn with standard deviation ``spread``,
    the scales at ``sqrt(1 - spread^2)``, so that mean and variance are about those of the
    standard normal; :meth:`initialize` (or ``Flow.initialize``) puts them where data are.

    Args:
        dim: number of coordinates.
        components: number of Gaussians.
        spread: standard deviation of the means at the start, between 0 and 1.
        seed: of those means.
        context_dim: with a context, everything moves with a network of it.
        hidden_dims: widths of that network.

    Draws carry no gradient (``has_rsample`` is False): which component was drawn is a jump. In an
    ELBO, ``Trace_ELBO`` then uses the score function; for data it makes no difference.
    Cost: ``components * dim`` both ways.

    Reference: Izmailov et al., Semi-supervised learning with normalizing flows, 2020,
    arXiv:1912.13025; Stimper et al. 2022, arXiv:2110.15828, on the bridges.

    Example:
        >>> base = distributions.GaussianMixture(2, components=3)
        >>> base().sample((5,)).shape, base.weights.shape, base().has_rsample
        (torch.Size([5, 2]), torch.Size([3]), False)
    """

    def __init__(
        self,
        dim: int,
        components: int = 8,
        *,
        spread: float = 0.7,
        seed: int = 0,
        context_dim: int = 0,
        hidden_dims: Sequence[int] = (64, 64),
    ) -> None:
        super().__init__(dim, context_dim)
        if components < 1 or not 0 < spread < 1:
            raise OptionError(
                f"GaussianMixture expected components >= 1 and 0 < spread < 1, but got "
                f"components={components} and spread={spread}. 8 and 0.7 are the defaults."
            )
        self.components, self.seed = components, seed
        generator = torch.Generator(device="cpu").manual_seed(seed)
        means = spread * torch.randn(components, dim, generator=generator, device="cpu")
        scale = torch.full((components, dim), math.sqrt(1 - spread**2))
        start = {
            "mean": (means - means.mean(0)).to(scale),
            "raw_scale": _raw(scale),
            "logit": torch.zeros(components),
        }
        self.tensors = Parameters(start, context_dim, hidden_dims)

    @property
    def means(self) -> Tensor:
        """Means without a context, shape ``(components, dim)``."""
        return self.tensors()["mean"]

    @property
    def scales(self) -> Tensor:
        """Standard deviations without a context, shape ``(components, dim)``."""
        return soft_clamp(self.tensors()["raw_scale"], LOG_SCALE_BOUND).exp()

    @property
    def weights(self) -> Tensor:
        """Weights without a context, shape ``(components,)``; they sum to 1."""
        return self.tensors()["logit"].softmax(-1)

    def forward(self, context: Tensor | None = None) -> dist.TorchDistribution:
        """Make the distribution."""
        p = self.tensors(self.own_context(context))
        scale = soft_clamp(p["raw_scale"], LOG_SCALE_BOUND).exp()
        parts = dist.Normal(p["mean"], scale, validate_args=False).to_event(1)
        choice = dist.Categorical(logits=p["logit"], validate_args=False)
        return dist.MixtureSameFamily(choice, parts, validate_args=False)

    @torch.no_grad()
    def initialize(self, value: Tensor, context: Tensor | None = None) -> None:
        """Put the components on groups of the values, ``(n, dim)``; the context is not used.

        Groups by k-means; each gives its component mean, standard deviation and weight.

        Raises:
            DataError: fewer values than components, or values that are not finite.
        """
        means, labels = kmeans(value, self.components, seed=self.seed)
        belongs = torch.nn.functional.one_hot(labels, self.components).to(value)
        sizes = belongs.sum(0)
        variance = belongs.T @ (value - means[labels]) ** 2 / sizes.clamp_min(1).unsqueeze(-1)
        # A group of one or two says little of its width: a tenth of the whole, at least.
        scale = torch.maximum(variance.sqrt(), 0.1 * value.std(0, correction=0)).clamp_min(1e-2)
        start = self.tensors.start
        start["mean"].copy_(means)
        start["raw_scale"].copy_(_raw(scale))
        start["logit"].copy_((sizes + 1).log() - (sizes + 1).sum().log())


def _raw(scale: Tensor) -> Tensor:
    """What :func:`soft_clamp` turns into the log of ``scale``."""
    share = (scale.log() / LOG_SCALE_BOUND).clamp(-0.99, 0.99)
    return LOG_SCALE_BOUND * share.atanh()
