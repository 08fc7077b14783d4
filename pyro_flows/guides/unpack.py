# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""One vector to the model's sites, with the Jacobian that goes with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions.util import sum_rightmost
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor
from torch.distributions import biject_to


def constrain(guide: AutoContinuous, latent: Tensor) -> Iterator[tuple[str, Any, Tensor, Tensor]]:
    """Walk the sites of a guide's packed vector.

    Args:
        guide: an ``AutoContinuous`` that has been set up.
        latent: packed unconstrained values, shape ``(*, latent_dim)``.

    Yields:
        ``(name, site, value, ladj)``: the constrained value in the model's shape (with particle
        axes in front) and log|d value / d unconstrained| summed over event axes only.

    Example:
        >>> def model():
        ...     pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        >>> guide = AutoFlow(model).setup()
        >>> [(name, value.shape) for name, _, value, _ in constrain(guide, torch.zeros(5, 1))]
        [('scale', torch.Size([5]))]
    """
    active: dict[str, Tensor] = getattr(guide, "_active", {})
    for site, unconstrained in guide._unpack_latent(latent):
        name = site["name"]
        transform = biject_to(site["fn"].support)
        value = transform(unconstrained)
        ladj = transform.log_abs_det_jacobian(unconstrained, value)
        if name in active:
            # Elements that the model masks out are filled with a constant, not inferred.
            mask = active[name].reshape(guide._unconstrained_shapes[name])
            extra = mask.dim() - (ladj.dim() - (unconstrained.dim() - mask.dim()))
            ladj = torch.where(
                mask.flatten(mask.dim() - extra)[..., 0] if extra else mask, ladj, 0
            )
        yield (
            name,
            site,
            value,
            sum_rightmost(ladj, ladj.dim() - value.dim() + site["fn"].event_dim),
        )


def named_sites(guide: AutoContinuous) -> list[tuple[str, Any]]:
    """Name and prototype site of every latent, in packing order.

    Example:
        >>> def model():
        ...     pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        >>> [name for name, _ in named_sites(AutoFlow(model).setup())]
        ['scale']
    """
    trace: Any = guide.prototype_trace
    return list(trace.iter_stochastic_nodes())


def coordinate_sites(guide: AutoContinuous) -> list[str]:
    """The site that each packed coordinate belongs to, one name a coordinate."""
    names: list[str] = []
    for name, shape in guide._unconstrained_shapes.items():
        active = getattr(guide, "_active", {}).get(name)
        names += [name] * (shape.numel() if active is None else int(active.sum()))
    return names


def unconstrain(guide: AutoContinuous, values: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Pack constrained values into the guide's vector.

    Args:
        guide: an ``AutoContinuous`` that has been set up.
        values: site name to values of shape ``(*batch, *site_shape)``, one batch for all.

    Returns:
        ``(latent, ladj)`` of shapes ``(*batch, latent_dim)`` and ``(*batch)``; ``ladj`` is
        log|d value / d unconstrained| over all sites.

    Example:
        >>> def model():
        ...     pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        >>> latent, ladj = unconstrain(AutoFlow(model).setup(), {"scale": torch.ones(5)})
        >>> latent.shape, ladj.shape
        (torch.Size([5, 1]), torch.Size([5]))
    """
    active: dict[str, Tensor] = getattr(guide, "_active", {})
    parts = []
    prototype: Any = guide.prototype_trace
    for name, site in prototype.iter_stochastic_nodes():
        value = values[name]
        shape = guide._unconstrained_shapes[name]
        transform = biject_to(site["fn"].support)
        u = transform.inv(value)
        batch = u.shape[: u.dim() - len(shape)]
        flat = u.reshape(*batch, -1)
        if name in active:
            flat = flat[..., active[name]]
        parts.append(flat)
    latent = torch.cat(parts, -1)
    # The Jacobian of the packed vector, so that masked elements are left out the same way.
    rows = latent.reshape(-1, latent.shape[-1])
    total = torch.vmap(lambda row: log_jacobian(guide, row))(rows) if len(rows) else rows.sum(-1)
    return latent, total.reshape(latent.shape[:-1])


def log_jacobian(guide: AutoContinuous, latent: Tensor) -> Tensor:
    """log|d values / d latent| over all sites for one vector of shape ``(latent_dim,)``."""
    total = latent.new_zeros(())
    for _, _, _, ladj in constrain(guide, latent):
        total = total + ladj.sum()
    return total


def filling(
    active: Tensor, start: Tensor, device: torch.device | str, dtype: torch.dtype
) -> tuple[int, Tensor, Tensor]:
    """How to make a site of its active elements: their number, an index, and the fixed start.

    The index is into active elements followed by the start: active element i is number i of the
    former, the others are at their own place in the latter.
    """
    size = int(active.sum())
    fixed = size + torch.arange(len(active), device=active.device)
    index = torch.where(active, active.cumsum(0) - 1, fixed)
    return size, index.to(device), start.to(device=device, dtype=dtype)


def aligned(mask: Tensor, site: dict[str, Any], shape: torch.Size) -> Tensor:
    """A site's mask as a flat bool vector over its unconstrained elements."""
    value_dim, event_dim = site["value"].dim(), site["fn"].event_dim
    batch_dim = value_dim - event_dim
    if mask.dim() <= batch_dim and not (event_dim and mask.dim() == value_dim):
        batch = shape[:batch_dim]
        mask = mask.expand(batch).reshape((*batch, *(1,) * (len(shape) - batch_dim)))
    return mask.expand(shape).reshape(-1)
