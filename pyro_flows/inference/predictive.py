# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""New data from draws of a model's latents, wherever the draws come from."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from pyro_flows.errors import DataError
from pyro_flows.inference.per_draw import Model, PerDraw
from pyro_flows.inference.randomness import seeded


def predictive(
    model: Model,
    samples: Mapping[str, Tensor],
    /,
    *args: Any,
    seed: int | None = None,
    **kwargs: Any,
) -> dict[str, Tensor]:
    """What a model says next, at each draw of its latents: ``Predictive``, vectorised.

    The sites have clean shapes, ``(S, *site_shape)``, and a model needs no plate for draws.

    Args:
        model: a Pyro model.
        samples: latent site to draws ``(S, *site_shape)``, from a guide, from MCMC, from a file.
            A site that isn't given is drawn from its prior; a deterministic one is computed anew.
        *args: the model's arguments. An observed site is drawn anew, also if data are passed.
        seed: of the random numbers; by default torch's global state is used, and moves on.
        **kwargs: the model's arguments by name.

    Returns:
        Every site that isn't given, observed or deterministic, as a tensor ``(S, *site_shape)``.

    Raises:
        ChangedModelError: draws of another shape than the model's site has.
        DataError: no draws, differing numbers of them, or draws that aren't tensors.

    Cost: one run of the model for each draw; ``torch.vmap`` runs up to 1,000 at once. Models that
    it refuses (a value read out of a tensor, a von Mises or LKJ site drawn anew) run draw by draw.

    Example:
        >>> def model(x, y=None):
        ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
        >>> predictive(model, {"slope": torch.randn(100)}, torch.arange(3.0))["y"].shape
        torch.Size([100, 3])
    """
    if not isinstance(samples, Mapping) or not all(
        isinstance(value, Tensor) for value in samples.values()
    ):
        raise DataError(
            "predictive expected draws as a dict of site name to tensor (S, *site_shape), but got "
            f"{_kinds(samples)}. Convert the values by torch.as_tensor."
        )
    values = dict(samples)
    sizes = {name: tuple(value.shape[:1]) for name, value in values.items()}
    if len(set(sizes.values())) != 1 or () in sizes.values() or (0,) in sizes.values():
        raise DataError(
            "predictive expected draws (S, *site_shape) of at least one site, S > 0 and the same "
            f"for all, but got leading sizes {sizes}. Stack the draws along the first axis."
        )
    with seeded(seed) if seed is not None else nullcontext(), torch.no_grad():
        return PerDraw(model, args, kwargs, values).new_data()


def _kinds(samples: Any) -> str:
    if not isinstance(samples, Mapping):
        return type(samples).__name__
    return ", ".join(f"'{name}' as {type(value).__name__}" for name, value in samples.items())
