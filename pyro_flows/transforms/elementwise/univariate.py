# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Monotone maps of one number, as coupling and autoregressive schemes use them.

A univariate holds no parameters: it says how many it needs per element, and maps given them.
Zero parameters are the identity. A new one is one small class, and works in every scheme.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.distributions import constraints

from pyro_flows.errors import ShapeError
from pyro_flows.ops import rational_quadratic_spline, soft_clamp
from pyro_flows.transforms.elementwise.options import require_within


class Univariate(ABC):
    """An increasing map of the real line, given ``num_parameters`` numbers per element.

    A map of another space (the circle) or onto one (a squash) says so in ``domain`` and
    ``codomain``, constraints of one number. One with weights of its own, shared by all elements,
    is a torch module too.

    ``features`` is how conditioners see a number of this space: the number itself, or, on the
    circle, its cosine and sine.

    Example:
        >>> class Scale(transforms.Univariate):
        ...     num_parameters = 1
        ...     def forward_and_ladj(self, x, params):
        ...         log_scale = params[..., 0].tanh().expand(x.shape)
        ...         return x * log_scale.exp(), log_scale
        ...     def inverse_and_ladj(self, y, params):
        ...         log_scale = params[..., 0].tanh().expand(y.shape)
        ...         return y * (-log_scale).exp(), -log_scale
        >>> transforms.Autoregressive(3, Scale(), context_dim=2).depth
        3
    """

    domain: Any = constraints.real
    codomain: Any = constraints.real
    num_features: int = 1

    def features(self, x: Tensor) -> Tensor:
        """What a conditioner is shown of ``x`` of shape ``(*, D)``: ``(*, D, num_features)``."""
        return x.unsqueeze(-1)

    @property
    @abstractmethod
    def num_parameters(self) -> int:
        """Parameters per element."""

    @abstractmethod
    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map ``x`` of shape ``(*, D)`` given ``params`` of shape ``(*, D, num_parameters)``.

        Returns:
            ``(y, ladj)``, both ``(*, D)``: the log-derivative is per element.
        """

    @abstractmethod
    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of the map, with log|dx/dy| per element."""


@dataclass(frozen=True)
class Shift(Univariate):
    """``y = x + shift``: additive coupling, which keeps volume.

    Shapes: one parameter per element. Cost: an addition in both directions. Choose it to follow
    NICE, or in a :class:`Chain` behind a univariate that can't shift.

    Reference: Dinh et al., NICE, 2014, https://arxiv.org/abs/1410.8516

    Example:
        >>> layer = transforms.Coupling(2, transforms.Shift())
        >>> layer.forward_and_ladj(torch.ones(5, 2))[1].abs().max().item()
        0.0
    """

    num_parameters = 1

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Add the shift."""
        y = x + params[..., 0]
        return y, y.new_zeros(()).expand(y.shape)

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Subtract the shift."""
        x = y - params[..., 0]
        return x, x.new_zeros(()).expand(x.shape)


@dataclass(frozen=True)
class Affine(Univariate):
    """``y = x exp(s) + shift`` with the log-scale ``s`` softly bounded.

    Args:
        log_scale_bound: bound of ``|s|``. An unbounded exponential diverges in training.

    Shapes: two parameters per element. Cost: an exponential in both directions. Choose it first,
    and for posteriors that are close to normal in some parametrisation.

    Reference: Dinh et al., Density estimation using Real NVP, 2016,
    https://arxiv.org/abs/1605.08803

    Example:
        >>> univariate = transforms.Affine()
        >>> y, ladj = univariate.forward_and_ladj(torch.ones(3), torch.tensor([[2.0, 0.0]] * 3))
        >>> y.tolist(), ladj.tolist()
        ([3.0, 3.0, 3.0], [0.0, 0.0, 0.0])
    """

    log_scale_bound: float = 3.0

    num_parameters = 2

    def __post_init__(self) -> None:
        # exp(50) times a value is a float32 still.
        require_within(self, log_scale_bound=(1e-3, 50))

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Scale, then shift."""
        shift, raw = params.unbind(-1)
        log_scale = soft_clamp(raw, self.log_scale_bound)
        y = x * log_scale.exp() + shift
        return y, log_scale.expand(y.shape)

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Unshift, then unscale."""
        shift, raw = params.unbind(-1)
        log_scale = soft_clamp(raw, self.log_scale_bound)
        x = (y - shift) * (-log_scale).exp()
        return x, (-log_scale).expand(x.shape)


@dataclass(frozen=True)
class RationalQuadraticSpline(Univariate):
    """Monotone rational-quadratic spline on ``[-bound, bound]``, the identity outside.

    In each bin the quotient of two quadratics with given values and slopes at its ends. The
    default among splines: free slopes, continuous density, an inverse in closed form. Choose it
    for densities that affine maps don't bend to: several modes, edges, skewness.

    Args:
        bins: number of bins.
        bound: half-width of the box; values are best whitened first.

    Shapes: ``3 * bins - 1`` parameters per element. Cost: one softmax and a gather; the inverse
    adds a square root.

    Reference: Durkan et al., Neural Spline Flows, 2019, https://arxiv.org/abs/1906.04032

    Example:
        >>> univariate = transforms.RationalQuadraticSpline(bins=4, bound=3.0)
        >>> x, params = torch.linspace(-4, 4, 9), torch.randn(9, univariate.num_parameters)
        >>> y, ladj = univariate.forward_and_ladj(x, params)
        >>> torch.allclose(univariate.inverse_and_ladj(y, params)[0], x, atol=1e-4)
        True
    """

    bins: int = 8
    bound: float = 5.0

    def __post_init__(self) -> None:
        # Bins have a smallest share of the box, a thousandth.
        require_within(self, bins=(1, 500), bound=(1e-3, 1e6))

    @property
    def num_parameters(self) -> int:
        """Widths, heights and inner slopes: ``3 bins - 1``."""
        return 3 * self.bins - 1

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluate the spline."""
        return rational_quadratic_spline(x, params, self.bound)

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Solve a quadratic per element."""
        return rational_quadratic_spline(y, params, self.bound, inverse=True)


@dataclass(frozen=True)
class Chain(Univariate):
    """Several univariates in order, each with its share of the parameters.

    ``Chain((RationalQuadraticSpline(), Affine()))`` is a spline whose box is shifted and scaled
    by the conditioner too, so that tails outside the box still move. Choose it to join what two
    univariates can do without a second conditioner.

    Args:
        parts: the univariates, first to last; each maps onto the space that the next one takes.

    Shapes: the sum of the parts' parameters per element. Cost: that of the parts.

    Raises:
        ShapeError: no parts, or a part takes another space than the one before it leads to.

    Example:
        >>> univariate = transforms.Chain((transforms.LeakyReLU(), transforms.Affine()))
        >>> univariate.num_parameters
        2
        >>> layer = transforms.Coupling(2, univariate)
        >>> layer(torch.zeros(5, 2)).shape
        torch.Size([5, 2])
    """

    parts: tuple[Univariate, ...]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ShapeError(
                "Chain expected at least one univariate, but got none. Leave the chain out."
            )
        for first, second in pairwise(self.parts):
            if first.codomain is not second.domain:
                raise ShapeError(
                    f"Chain expected each part to take what the one before it gives, but {first} "
                    f"leads to {first.codomain} and {second} takes {second.domain}. Change their "
                    "order, or put a layer between."
                )

    @property
    def domain(self) -> Any:
        """The first part's domain."""
        return self.parts[0].domain

    @property
    def codomain(self) -> Any:
        """The last part's codomain."""
        return self.parts[-1].codomain

    @property
    def num_features(self) -> int:  # type: ignore[override]
        """As the first part's."""
        return self.parts[0].num_features

    def features(self, x: Tensor) -> Tensor:
        """As the first part's."""
        return self.parts[0].features(x)

    @property
    def num_parameters(self) -> int:
        """The sum over the parts."""
        return sum(part.num_parameters for part in self.parts)

    def _split(self, params: Tensor) -> tuple[Tensor, ...]:
        return params.split([part.num_parameters for part in self.parts], dim=-1)

    def forward_and_ladj(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """First part first."""
        total: Tensor | float = 0.0
        for part, share in zip(self.parts, self._split(params), strict=True):
            x, ladj = part.forward_and_ladj(x, share)
            total = total + ladj
        return x, total + x.new_zeros(())

    def inverse_and_ladj(self, y: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Last part first."""
        total: Tensor | float = 0.0
        shares = self._split(params)
        for part, share in zip(reversed(self.parts), reversed(shares), strict=True):
            y, ladj = part.inverse_and_ladj(y, share)
            total = total + ladj
        return y, total + y.new_zeros(())
