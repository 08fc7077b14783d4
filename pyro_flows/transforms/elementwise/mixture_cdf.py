# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Distribution functions of mixtures, put back on the real line."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_flows.ops import linear_tails, logit_of_mixture, probit_of_mixture, soft_clamp
from pyro_flows.transforms.elementwise.options import require_within
from pyro_flows.transforms.elementwise.root_finding import Monotone, RootFinding

MAX_LOCATION = 5.0
MAX_LOG_SCALE = 2.0
SPREAD = 0.5
# Weight of the standard normal that every mixture of normals keeps, and where its tails go
# straight: between two narrow components a slope would be exp(-1000) otherwise.
KEPT = 1e-3
BOUND = 10.0


def spread_offsets(count: int, spread: float = SPREAD) -> list[float]:
    """Offsets of ``count`` components around 0, so that no two are taught the same."""
    return [spread * (2 * k + 1 - count) / count for k in range(count)]


def logistic_start(offsets: list[float]) -> float:
    """The slope with which spread-out logistic components make a map of slope 1 at 0."""
    return len(offsets) / sum(1 / math.cosh(b / 2) ** 2 for b in offsets)


def normal_start(offsets: list[float]) -> float:
    """The slope with which spread-out normal components make a map of slope 1 at 0."""
    return len(offsets) / sum(math.exp(-0.5 * b * b) for b in offsets)


@dataclass(frozen=True)
class MixtureCDF(RootFinding):
    """What mixtures of either kind have in common: weights, locations and scales.

    Args:
        components: number of components.
    """

    components: int = 8

    def __post_init__(self) -> None:
        require_within(self, components=(1, 1000))

    @property
    def num_parameters(self) -> int:
        """A weight, a location and a log-scale per component."""
        return 3 * self.components

    @abstractmethod
    def slope_at_start(self) -> float:
        """Slope of all components at zero parameters."""

    def parts(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights, locations and log-slopes, each ``(*, D, components)``."""
        logits, locations, log_slopes = params.chunk(3, -1)
        slope = self.slope_at_start()
        start = params.new_tensor([-b / slope for b in spread_offsets(self.components)])
        locations = start + soft_clamp(locations, MAX_LOCATION)
        log_slopes = math.log(slope) - soft_clamp(log_slopes, MAX_LOG_SCALE)
        return logits.log_softmax(-1), locations, log_slopes


class LogisticMixture(MixtureCDF):
    """The logit of the distribution function of a mixture of logistics.

    ``y = logit(sum_k w_k sigmoid((x - m_k) exp(-s_k)))``, ``|m_k| < 5``, ``|s_k| < 2``, computed
    on the scale of logarithms throughout: onto the real line, linear far out. Zero parameters
    are within 0.05 of the identity on ``|x| <= 3`` (components are spread a little, so that no
    two are taught the same); for locations that move further, ``Chain`` it with ``Affine``.

    Args:
        components: number of components.

    Parameters per element: ``3 components``: weights, locations and log-scales.

    Cost: a sum over the components forwards; a root (see :class:`RootFinding`) backwards.
    Backwards (``layer.inv``) it makes densities that are mixtures. Choose it for many modes.

    Reference: Ho et al., Flow++, 2019, https://arxiv.org/abs/1902.00275

    Example:
        >>> layer = transforms.Elementwise(2, transforms.LogisticMixture(components=4))
        >>> x = torch.tensor([[0.5, 1e6]])
        >>> layer(x).shape, torch.allclose(layer.inv(layer(x)), x)
        (torch.Size([1, 2]), True)
    """

    def slope_at_start(self) -> float:
        """Slope of all components at zero parameters."""
        return logistic_start(spread_offsets(self.components))

    def function(self, params: Tensor) -> Monotone:
        """The map at given parameters."""
        log_weights, locations, log_slopes = self.parts(params)
        slopes = log_slopes.exp()

        def mixture(x: Tensor) -> tuple[Tensor, Tensor]:
            z = (x.unsqueeze(-1) - locations) * slopes
            y, log_partials = logit_of_mixture(z, log_weights)
            return y, (log_partials + log_slopes).logsumexp(-1)

        return mixture


class Gaussianization(MixtureCDF):
    """The normal quantile of the distribution function of a mixture of normals.

    ``y = Phi^-1(sum_k w_k Phi((x - m_k) exp(-s_k)))``, ``|m_k| < 5``, ``|s_k| < 2``, computed on
    the scale of logarithms. The mixture keeps a thousandth of a standard normal, so that slopes
    between narrow components don't underflow; beyond ``|x| = 10`` the map goes on along its
    tangents. Zero parameters are within 0.05 of the identity on ``|x| <= 3``.

    Args:
        components: number of components besides the standard normal.

    Parameters per element: ``3 components``: weights, locations and log-scales.

    Cost: a sum over the components and one quantile forwards; a root (see :class:`RootFinding`)
    backwards. Backwards (``layer.inv``), with a normal base, a density is exactly the mixture.
    Choose it between rotations, as Gaussianization flows do; with heavier tails
    :class:`LogisticMixture`.

    Reference: Meng et al., Gaussianization Flows, 2020, https://arxiv.org/abs/2003.01941

    Example:
        >>> layer = transforms.Elementwise(2, transforms.Gaussianization(components=4))
        >>> x = torch.tensor([[0.5, 1e6]])
        >>> layer(x).shape, torch.allclose(layer.inv(layer(x)), x)
        (torch.Size([1, 2]), True)
    """

    def slope_at_start(self) -> float:
        """Slope of all components at zero parameters."""
        return normal_start(spread_offsets(self.components))

    def function(self, params: Tensor) -> Monotone:
        """The map at given parameters."""
        log_weights, locations, log_slopes = self.parts(params)
        kept = log_weights.new_tensor(math.log(KEPT)).expand(*log_weights.shape[:-1], 1)
        log_weights = torch.cat([log_weights + math.log1p(-KEPT), kept], -1)
        locations = F.pad(locations, (0, 1))
        log_slopes = F.pad(log_slopes, (0, 1))
        slopes = log_slopes.exp()

        def mixture(x: Tensor) -> tuple[Tensor, Tensor]:
            z = (x.unsqueeze(-1) - locations) * slopes
            y, log_partials = probit_of_mixture(z, log_weights)
            return y, (log_partials + log_slopes).logsumexp(-1)

        return lambda x: linear_tails(mixture, x, -BOUND, BOUND)
