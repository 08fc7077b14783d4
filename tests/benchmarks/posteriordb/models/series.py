# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Series in discrete time: an autoregression and a hidden Markov model."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from .common import Data, Entries, Port, linear, vector

# Models


def ar_k(lags: Tensor, y: Tensor) -> None:
    """Autoregression of order K, given its first K observations.

    Args:
        lags: The K values before each observation, the latest first, of shape ``(T - K, K)``.
        y: The observations from K + 1 on, of shape ``(T - K,)``.
    """
    alpha = pyro.sample("alpha", dist.Normal(y.new_tensor(0.0), 10.0))
    prior = dist.Normal(y.new_tensor(0.0), 10.0).expand([lags.shape[-1]]).to_event(1)
    beta = pyro.sample("beta", prior)
    sigma = pyro.sample("sigma", dist.HalfCauchy(y.new_tensor(2.5)))
    with pyro.plate("time", len(y)):
        pyro.sample("y", dist.Normal(alpha + linear(lags, beta), sigma), obs=y)


def hmm_drive(u: Tensor, v: Tensor, concentration: Tensor, tau: float, rho: float) -> None:
    """Drives to the basket: two hidden states, each with normal speeds and distances.

    Both means rise with the state. The first state has no distribution of its own: the recursion
    starts from the emissions alone.

    Args:
        u: The inverse speeds, with sd ``tau``.
        v: The distances to the hoop, with sd ``rho``.
        concentration: The prior of each row of the transition matrix.
        tau: See ``u``.
        rho: See ``v``.
    """
    theta1 = pyro.sample("theta1", dist.Dirichlet(concentration[0]))
    theta2 = pyro.sample("theta2", dist.Dirichlet(concentration[1]))
    phi, lambda_ = _ordered_normal("phi", u), _ordered_normal("lambda", u)
    emission = dist.Normal(phi.unsqueeze(-1), tau).log_prob(u)
    emission = emission + dist.Normal(lambda_.unsqueeze(-1), rho).log_prob(v)
    transition = torch.stack([theta1, theta2], -2).log()
    pyro.factor("series", forward_algorithm(emission, transition))


def _ordered_normal(name: str, like: Tensor) -> Tensor:
    """Two means in order, with priors N(0, 1) and N(3, 1); as in Stan, not normalised anew."""
    value = pyro.sample(name, dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    prior = dist.Normal(like.new_tensor([0.0, 3.0]), 1.0).to_event(1)
    pyro.sample(f"{name}_prior", prior, obs=value)
    return value


def forward_algorithm(emission: Tensor, transition: Tensor) -> Tensor:
    """The log likelihood of a hidden Markov model whose first state has weight 1 in each place.

    Args:
        emission: The log density of each observation in each state, ``(..., K, T)``.
        transition: The log probability from state (row) to state, ``(..., K, K)``.
    """
    steps = transition.unsqueeze(-1) + emission[..., 1:].unsqueeze(-3)
    # Neighbours are multiplied in pairs: some log2(T) operations instead of T.
    while (count := steps.shape[-1]) > 1:
        even, odd = steps[..., : count - 1 : 2], steps[..., 1::2]
        pairs = (even.unsqueeze(-2) + odd.unsqueeze(-4)).logsumexp(-3)
        steps = torch.cat([pairs, steps[..., count - count % 2 :]], -1)
    return (emission[..., 0].unsqueeze(-1) + steps.squeeze(-1)).logsumexp((-2, -1))


# Builders


def _ar_k(data: Data) -> Port:
    y, order = vector(data["y"]), int(data["K"])
    lags = torch.stack([y[order - k : len(y) - k] for k in range(1, order + 1)], -1)
    return Port(ar_k, (lags, y[order:]))


def _hmm_drive(data: Data) -> Port:
    u, v, concentration = (vector(data[name]) for name in ("u", "v", "alpha"))
    return Port(hmm_drive, (u, v, concentration, float(data["tau"]), float(data["rho"])))


ENTRIES: Entries = {
    "arK": ("arK-arK", _ar_k),
    "hmm_drive_1": ("bball_drive_event_1-hmm_drive_1", _hmm_drive),
}
