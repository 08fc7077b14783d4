# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Mixtures of Gaussians with full covariances: density, and the fit to points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_flows.errors import DataError
from pyro_flows.ops.clusters import kmeans

# Points taken at once: few enough for their products to stay near the processor; and of many
# columns fewer, so that the products never take more than this many numbers.
CHUNK = 2048
MOST_PRODUCTS = 1 << 24


@dataclass(frozen=True)
class Gaussians:
    """Weighted Gaussians, each by what makes it standard: ``q = (x - mean) R``.

    ``R`` is upper-triangular, ``R R^T`` the inverse of the covariance, so that a density costs a
    product and no solve.

    Attributes:
        log_weight: shape ``(K,)``; they need not sum to one.
        mean: shape ``(K, D)``.
        root: ``R``, shape ``(K, D, D)``.

    Example:
        >>> Gaussians(torch.zeros(3), torch.zeros(3, 2), torch.eye(2).expand(3, 2, 2)).mean.shape
        torch.Size([3, 2])
    """

    log_weight: Tensor
    mean: Tensor
    root: Tensor

    def log_prob(self, x: Tensor) -> Tensor:
        """Log density of points ``(*, D)``, shape ``(*)``.

        Cost: ``K D^2`` a point.

        Example:
            >>> one = Gaussians(torch.zeros(1), torch.zeros(1, 2), torch.eye(2).unsqueeze(0))
            >>> round(one.log_prob(torch.zeros(2)).item(), 4)
            -1.8379
        """
        return torch.logsumexp(self.joint(x), -1)

    def joint(self, x: Tensor) -> Tensor:
        """Log of weight times density, per component: shape ``(*, K)``."""
        count, dim = self.mean.shape
        # One product for all components: (*, D) x (D, K D).
        flat = self.root.permute(1, 0, 2).reshape(dim, count * dim)
        shift = torch.einsum("kd,kde->ke", self.mean, self.root)
        q = (x @ flat).unflatten(-1, (count, dim)) - shift
        log_det = self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = log_det + self.log_weight.log_softmax(-1) - 0.5 * dim * math.log(2 * math.pi)
        return constant - 0.5 * q.square().sum(-1)


@torch.no_grad()
def fit_gaussians(
    x: Tensor, count: int, *, seed: int = 0, ridge: float = 1e-3, most_passes: int = 100
) -> Gaussians:
    """Weighted Gaussians of high likelihood, by expectation maximisation from k-means.

    Args:
        x: points, shape ``(n, D)``, finite; ``n > D``.
        count: number of Gaussians.
        seed: of the k-means start.
        ridge: added to each covariance, as a share of the covariance of all points: no component
            can shrink onto one point or one plane.
        most_passes: passes if the likelihood still rises.

    Cost: ``n count D^2`` a pass. Reads values: for starts, not for training steps.

    Example:
        >>> x = torch.cat([torch.randn(200, 2) - 5, torch.randn(200, 2) + 5])
        >>> fit_gaussians(x, 2).mean.shape
        torch.Size([2, 2])
    """
    x = x.double()
    # All in coordinates where the whole has the identity as covariance: the ridge then means the
    # same whatever the scales and correlations.
    mean = x.mean(0)
    factor = factor_covariance(x)
    white = torch.linalg.solve_triangular(factor, (x - mean).T, upper=False).T
    labels = kmeans(white, count, seed=seed)[1]
    fitted, before = _maximise(*_of_groups(white, labels, count), ridge), -math.inf
    for _ in range(most_passes):
        now, sizes, sums, products = _expect(white, fitted)
        if now - before < 1e-3:
            break
        fitted, before = _maximise(sizes, sums, products, ridge), now
    eye = torch.eye(len(factor), dtype=x.dtype, device=x.device)
    back = torch.linalg.solve_triangular(factor, eye, upper=False)
    # q = (x - mean) factor^-T R, and both factors are upper-triangular.
    root = back.T @ fitted.root
    return Gaussians(fitted.log_weight, mean + fitted.mean @ factor.T, root)


def factor_covariance(x: Tensor) -> Tensor:
    """Lower-triangular ``L`` with ``L L^T`` the covariance of points ``(n, D)``.

    Where they don't span the space (columns that are sums of others, or too few points) there is
    no such ``L`` that can be inverted: a share of the columns' mean variance is added then, next
    to nothing for columns that depend on one another, all of it for too few points.

    Example:
        >>> x = torch.randn(100, 1).expand(100, 2)
        >>> bool((factor_covariance(x).diagonal() > 0).all())
        True
    """
    count, dim = x.shape
    covariance = torch.cov(x.T, correction=0).reshape(dim, dim)
    factor, failed = torch.linalg.cholesky_ex(covariance)
    if not bool(failed):
        return factor
    spread = float(covariance.diagonal().mean())
    if not 0 < spread < math.inf:
        raise DataError(
            f"factor_covariance expected finite points that differ, but got {count} of mean "
            f"variance {spread}. Drop points that aren't finite; of equal ones there is no shape."
        )
    share = 1e-6 if count > dim + 1 else 1.0
    ridge = share * spread * torch.eye(dim, dtype=x.dtype, device=x.device)
    return torch.linalg.cholesky(covariance + ridge)


def _pairs(x: Tensor) -> Tensor:
    """All products of two coordinates, ``(n, D^2)``: both steps are matrix products with them."""
    return (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(1)


def _of_groups(x: Tensor, labels: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes, sums and sums of products of groups of points."""
    sizes, sums, products = _zeros(x, count)
    chunk = _chunk(x)
    for part, label in zip(x.split(chunk), labels.split(chunk), strict=True):
        belongs = torch.nn.functional.one_hot(label, count).to(x)
        sizes += belongs.sum(0)
        sums += belongs.T @ part
        products += belongs.T @ _pairs(part)
    return sizes, sums, products


def _expect(x: Tensor, g: Gaussians) -> tuple[float, Tensor, Tensor, Tensor]:
    """Mean log density; and sizes, sums and sums of products, by shares of the components."""
    sizes, sums, products = _zeros(x, len(g.mean))
    precision = g.root @ g.root.mT
    linear = torch.einsum("kde,ke->kd", precision, g.mean)
    constant = g.joint(torch.zeros_like(x[0]))
    total = x.new_zeros(())
    for part in x.split(_chunk(x)):
        pairs = _pairs(part)
        joint = constant + part @ linear.T - 0.5 * pairs @ precision.flatten(1).T
        log_prob = torch.logsumexp(joint, -1, keepdim=True)
        share = (joint - log_prob).exp()
        total = total + log_prob.sum()
        sizes += share.sum(0)
        sums += share.T @ part
        products += share.T @ pairs
    return float(total) / len(x), sizes, sums, products


def _chunk(x: Tensor) -> int:
    return max(1, min(CHUNK, MOST_PRODUCTS // x.shape[1] ** 2))


def _zeros(x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    dim = x.shape[1]
    return x.new_zeros(count), x.new_zeros(count, dim), x.new_zeros(count, dim * dim)


def _maximise(sizes: Tensor, sums: Tensor, products: Tensor, ridge: float) -> Gaussians:
    """The Gaussians of those sums."""
    sizes = sizes.clamp_min(1e-6)
    means = sums / sizes.unsqueeze(-1)
    dim = means.shape[-1]
    eye = torch.eye(dim, dtype=sums.dtype, device=sums.device)
    second = products.reshape(-1, dim, dim) / sizes.reshape(-1, 1, 1)
    covariance = second - means.unsqueeze(-1) * means.unsqueeze(-2) + ridge * eye
    factor = torch.linalg.cholesky(covariance)
    root = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False).mT
    return Gaussians(sizes.log() - sizes.sum().log(), means, root)
