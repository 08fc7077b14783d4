# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Where a guide starts when the user doesn't say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.autoguide import init_to_median
from torch import Tensor
from torch.distributions import biject_to


def init_to_median_or_feasible(site: dict[str, Any]) -> Tensor:
    """Start at the prior median; where a prior can't sample (flat ones), at unconstrained zero.

    Pyro's ``init_to_median`` alone fails on ``ImproperUniform``, whose ``sample`` raises.

    Args:
        site: a Pyro trace site.

    Returns:
        A value of the site's shape inside its support.

    Example:
        >>> site = {"name": "x", "fn": dist.Exponential(torch.ones(2)), "infer": {}}
        >>> init_to_median_or_feasible(site).shape
        torch.Size([2])
    """
    try:
        return init_to_median(site)
    except NotImplementedError:
        fn = site["fn"]
        transform = biject_to(fn.support)
        value = transform(torch.zeros(transform.inverse_shape(fn.shape())))
        value._pyro_custom_init = False
        return value


class Start:
    """A start per site, in a given floating type and on a given device.

    Flat priors carry no floating type, and number-valued ones (``Normal(0., 5.)``) the default:
    where the data are wider, the model can only be run at values as wide as they.
    """

    def __init__(self, init_loc_fn: Callable[[dict[str, Any]], Tensor]) -> None:
        self.init_loc_fn = init_loc_fn
        self.dtype: torch.dtype | None = None
        self.device: torch.device | None = None

    def __call__(self, site: dict[str, Any]) -> Tensor:
        """The start of one site."""
        value = self.init_loc_fn(site)
        if (self.dtype is None and self.device is None) or not value.is_floating_point():
            return value
        custom = getattr(value, "_pyro_custom_init", None)
        cast: Any = value.to(dtype=self.dtype, device=self.device)
        if custom is not None:
            cast._pyro_custom_init = custom
        return cast
