# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The real line onto an interval or a half-line, as univariates: the last layer of a flow.

They change the space, and so go into :class:`Elementwise`, not into couplings. Log-densities are
exact far in the tails: draws stay strictly inside; a value outside has log-density -inf.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.distributions import constraints

from pyro_flows.ops import elu_squash, sigmoid_squash, softplus_squash, tanh_squash
from pyro_flows.transforms.elementwise.univariate import Univariate


@dataclass(frozen=True)
class Tanh(Univariate):
    """``y = tanh(x)``, onto (-1, 1), with the log-slope ``2 (log 2 - x - softplus(-2x))``.

    For data or actions in a symmetric interval. Slopes vanish like ``4 exp(-2|x|)``.

    Shapes: no parameters. Cost: two exponentials forwards, three logarithms backwards.

    Reference: Haarnoja et al., Soft Actor-Critic, 2018, appendix C, https://arxiv.org/abs/1801.01290

    Example:
        >>> layer = transforms.Elementwise(2, transforms.Tanh())
        >>> y, ladj = layer.forward_and_ladj(torch.full((2,), 1e3))
        >>> layer.codomain.check(y).item(), ladj.isfinite().item()
        (True, True)
        >>> layer.inverse_and_ladj(torch.tensor([0.0, 2.0]))[1].item()
        -inf
    """

    num_parameters = 0
    codomain = constraints.interval(-1.0, 1.0)

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Squash."""
        return tanh_squash(x)

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Unsquash."""
        return tanh_squash(y, inverse=True)


@dataclass(frozen=True)
class Sigmoid(Univariate):
    """``y = 1 / (1 + exp(-x))``, onto (0, 1).

    For probabilities and rates. Its log-slope is ``-softplus(x) - softplus(-x)``.

    Shapes: no parameters. Cost: three exponentials forwards, two logarithms backwards.

    Reference: Dinh et al. 2016, section 4.1, https://arxiv.org/abs/1605.08803

    Example:
        >>> layer = transforms.Elementwise(2, transforms.Sigmoid())
        >>> normal = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        >>> flow = dist.TransformedDistribution(normal, layer)
        >>> flow.log_prob(flow.sample((5,))).shape, flow.support.check(torch.ones(2) / 2).item()
        (torch.Size([5]), True)
    """

    num_parameters = 0
    codomain = constraints.unit_interval

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Squash."""
        return sigmoid_squash(x)

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Unsquash."""
        return sigmoid_squash(y, inverse=True)


@dataclass(frozen=True)
class Softplus(Univariate):
    """``y = log(1 + exp(x))``, onto the positive numbers.

    For scales and durations: like ``exp`` below zero, and like the identity above, where ``exp``
    would make the tail heavy.

    Shapes: no parameters. Cost: two exponentials in both directions.

    Reference: Dugas et al., Incorporating Second-Order Functional Knowledge, 2000,
    https://papers.nips.cc/paper/1920

    Example:
        >>> layer = transforms.Elementwise(3, transforms.Softplus())
        >>> x = torch.tensor([-50.0, 0.0, 1e3])
        >>> torch.allclose(layer.inv(layer(x)), x)
        True
    """

    num_parameters = 0
    codomain = constraints.positive

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Squash."""
        return softplus_squash(x)

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Unsquash."""
        return softplus_squash(y, inverse=True)


@dataclass(frozen=True)
class ELU(Univariate):
    """``y = x`` above zero, ``exp(x) - 1`` below: onto numbers above -1.

    Smooth in value and slope. For quantities bounded below, such as relative changes.

    Shapes: no parameters. Cost: one exponential or logarithm.

    Reference: Clevert et al., Fast and Accurate Deep Network Learning by Exponential Linear Units,
    2015, https://arxiv.org/abs/1511.07289

    Example:
        >>> layer = transforms.Elementwise(2, transforms.ELU())
        >>> layer.codomain.check(layer(torch.tensor([-1e3, 1e3]))).item()
        True
    """

    num_parameters = 0
    codomain = constraints.greater_than(-1.0)

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Squash."""
        return elu_squash(x)

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Unsquash."""
        return elu_squash(y, inverse=True)
