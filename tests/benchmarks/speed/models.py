# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The Pyro models, and their arguments as tensors."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import targets
import torch
from torch import Tensor


def eight_schools(y: Tensor, sigma: Tensor) -> None:
    """Centred eight schools, 10 latents."""
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(y.new_tensor(5.0)))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def hierarchy(y: Tensor, sigma: Tensor) -> None:
    """88 effects around a mean, 90 latents, centred."""
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 2.0))
    tau = pyro.sample("tau", dist.HalfNormal(y.new_tensor(2.0)))
    with pyro.plate("group", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def gaussian(scale_tril: Tensor) -> None:
    """A correlated Gaussian, one site."""
    loc = scale_tril.new_zeros(len(scale_tril))
    pyro.sample("x", dist.MultivariateNormal(loc, scale_tril=scale_tril))


def logistic(x: Tensor, y: Tensor) -> None:
    """Logistic regression."""
    zeros = x.new_zeros(x.shape[-1])
    weights = pyro.sample("weights", dist.Normal(zeros, 1.0).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=(weights * x).sum(-1)), obs=y)


def model_and_args(spec: dict[str, Any], dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """The model that a spec names, with its arguments."""
    name = spec["model"]
    if name == "gaussian":
        # Correlation 0.9 to the power of the distance, whose factor is known.
        index = torch.arange(spec["dim"], dtype=torch.float64)
        factor = (0.9 ** (index[:, None] - index).clamp_min(0)).tril()
        factor[:, 1:] *= (1 - 0.9**2) ** 0.5
        return gaussian, (factor.to(dtype),)
    if name == "logistic":
        return logistic, tuple(
            torch.as_tensor(a, dtype=dtype) for a in targets.logistic(spec["rows"])
        )
    args = tuple(torch.as_tensor(a, dtype=dtype) for a in targets.observations(name))
    return (eight_schools if name == "eight schools" else hierarchy), args
