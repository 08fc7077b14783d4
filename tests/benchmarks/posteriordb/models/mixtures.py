# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A mixture of two Gaussians, with its means in order and with both labellings."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ..target import Modes, Sites
from .common import Data, Entries, Port, Variables, vector

# Models


def ordered_mixture(y: Tensor) -> None:
    """The means are in order; as in Stan, their priors are not normalised anew for that."""
    mu = pyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    pyro.sample("mu_prior", dist.Normal(y.new_zeros(2), 2.0).to_event(1), obs=mu)
    _components(y, mu)


def two_mode_mixture(y: Tensor) -> None:
    """The means are free, so that the labels can be exchanged."""
    _components(y, pyro.sample("mu", dist.Normal(y.new_zeros(2), 2.0).to_event(1)))


def _components(y: Tensor, mu: Tensor) -> None:
    sigma = pyro.sample("sigma", dist.HalfNormal(2.0 * y.new_ones(2)).to_event(1))
    theta = pyro.sample("theta", dist.Beta(y.new_tensor(5.0), 5.0))
    which = dist.Categorical(torch.stack([theta, 1.0 - theta], -1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.MixtureSameFamily(which, dist.Normal(mu, sigma)), obs=y)


# The exchange of labels


def exchanged(sites: Sites, chosen: Tensor) -> Sites:
    """Exchanges the two labels where ``chosen``, of shape ``(P,)``, is true."""
    mu, sigma, theta = (torch.as_tensor(sites[name]) for name in ("mu", "sigma", "theta"))
    return {
        "mu": torch.where(chosen[..., None], mu.flip(-1), mu),
        "sigma": torch.where(chosen[..., None], sigma.flip(-1), sigma),
        "theta": torch.where(chosen, 1.0 - theta, theta),
    }


def in_order(sites: Sites) -> Sites:
    """Exchanges the labels where the means are out of order."""
    mu = torch.as_tensor(sites["mu"])
    return exchanged(sites, mu[..., 0] > mu[..., 1])


def _at_random(draws: Variables) -> Variables:
    chosen = np.random.default_rng(0).random(len(draws["theta"])) < 0.5
    sites = exchanged(draws, torch.from_numpy(chosen))
    return {name: value.numpy() for name, value in sites.items()}


# Builders


def _ordered(data: Data) -> Port:
    # The table counts the ordering as a half-prior, which this port leaves as it is.
    return Port(ordered_mixture, (vector(data["y"]),), log_z_shift=-math.log(2.0))


def _two_modes(data: Data) -> Port:
    # The whole mass is twice that in order: the table's count of half-priors has that log 2.
    half = torch.full((2,), 0.5, dtype=torch.float64)
    modes = Modes(assign=lambda z: (z[..., 0] > z[..., 1]).long(), shares=half)
    args = (vector(data["y"]),)
    return Port(two_mode_mixture, args, _at_random, modes=modes, canonical=in_order)


ENTRIES: Entries = {
    "low_dim_gauss_mix": ("low_dim_gauss_mix-low_dim_gauss_mix", _ordered),
    "low_dim_gauss_mix_two_modes": ("low_dim_gauss_mix-low_dim_gauss_mix", _two_modes),
}
