# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Groups of points, for the starts of mixtures."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_flows.errors import DataError


def kmeans(
    x: Tensor, count: int, *, seed: int = 0, most_passes: int = 50
) -> tuple[Tensor, Tensor]:
    """Centres of ``count`` groups of points, and the group of each point.

    Lloyd's passes from centres drawn far apart (k-means++). A group that loses all its points
    keeps its centre.

    Args:
        x: points, shape ``(n, dim)``, finite.
        count: number of groups, at most ``n``.
        seed: of the first centres.
        most_passes: passes if the groups don't settle before.

    Returns:
        Centres ``(count, dim)`` and labels ``(n,)`` from 0 to ``count - 1``.

    Cost: ``n * count * dim`` a pass. Reads values: for starts, not for training steps.
    Reference: Arthur and Vassilvitskii, k-means++: the advantages of careful seeding, 2007.

    Example:
        >>> centres, labels = kmeans(torch.tensor([[0.0], [0.1], [5.0], [5.1]]), 2)
        >>> centres.sort(0)[0].flatten().tolist(), bool(labels[0] == labels[1] != labels[2])
        ([0.05000000074505806, 5.050000190734863], True)
    """
    if x.dim() != 2 or not 1 <= count <= len(x) or not bool(x.isfinite().all()):
        raise DataError(
            f"kmeans expected finite points of shape (n, dim) with n >= {count}, one at least for "
            f"each group, but got shape {tuple(x.shape)}. Give more points, or drop those that "
            "are not finite."
        )
    x = x.detach()
    centres = _far_apart(x, count, torch.Generator(device="cpu").manual_seed(seed))
    labels = _nearest(x, centres)
    for _ in range(most_passes):
        belongs = torch.nn.functional.one_hot(labels, count).to(x)
        sizes = belongs.sum(0).unsqueeze(-1)
        centres = torch.where(sizes > 0, belongs.T @ x / sizes.clamp_min(1), centres)
        new = _nearest(x, centres)
        if torch.equal(new, labels):
            break
        labels = new
    return centres, labels


def _nearest(x: Tensor, centres: Tensor) -> Tensor:
    return torch.cdist(x, centres).argmin(-1)


def _far_apart(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Rows drawn one by one, each with probability its squared distance to those drawn before."""
    u = torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")
    chosen = [int(u[0] * len(x))]
    distance = torch.full_like(x[:, 0], torch.inf)
    for k in range(1, count):
        distance = torch.minimum(distance, ((x - x[chosen[-1]]) ** 2).sum(-1))
        cumulative = distance.double().cumsum(0)
        draw = u[k].to(cumulative.device) * cumulative[-1]
        chosen.append(min(int(torch.searchsorted(cumulative, draw)), len(x) - 1))
    return x[chosen]
