# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Models whose posteriors are known, and one short fit of each, made once."""

from __future__ import annotations

import functools
import math

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from pyro_flows import AutoFlow, FlowVI
from pyro_flows.transforms import CholeskyAffine

Y = torch.tensor([1.0, 2.0, 3.0, 2.5], dtype=torch.float64)
X = torch.linspace(-1, 2, 12, dtype=torch.float64)
LINE = 1.0 + 2.0 * X + torch.tensor([0.3, -0.2, 0.1, -0.4] * 3, dtype=torch.float64)


def flat(name, shape=()):
    """A flat prior over the reals."""
    return pyro.sample(name, dist.ImproperUniform(constraints.real, (), shape))


def normal_mean(y):
    """A normal mean with known unit noise and a normal prior."""
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def normal_mean_exact(y):
    """Posterior mean, sd, and log evidence of ``normal_mean``."""
    n = len(y)
    variance = 1 / (1 / 100 + n)
    mean = variance * float(y.sum())
    cov = torch.eye(n, dtype=y.dtype) + 100.0
    evidence = torch.distributions.MultivariateNormal(torch.zeros(n, dtype=y.dtype), cov)
    return mean, math.sqrt(variance), float(evidence.log_prob(y))


def gamma_rate(y):
    """Exponential data with a gamma prior: a skewed posterior, Gamma(2 + n, 1 + sum y)."""
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    pyro.deterministic("scale", 1 / rate)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Exponential(rate), obs=y)


def wide_tails():
    """Two elements with tails wider than an affine guide's, but not too wide to correct."""
    pyro.sample("x", dist.StudentT(torch.tensor(12.0, dtype=torch.float64), 0.0, 2.0))
    with pyro.plate("two", 2):
        pyro.sample("v", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0))


def groups(y):
    """Eight-schools-like: effects around a common mean, with plates and a vector."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    weight = pyro.sample("weight", dist.Dirichlet(torch.ones(3, dtype=torch.float64)))
    total = pyro.deterministic("total", weight[..., 0] + mu)
    with pyro.plate("school", y.shape[-1]):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        with pyro.plate("pupil", y.shape[-2]):
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)
    return total


SCORES = torch.tensor([[1.0, 3.0, -2.0], [0.5, 2.0, -1.0]], dtype=torch.float64)


@functools.cache
def fitted(name):
    """A short fit of a model by name; tests share it and must not change it."""
    fits = {
        "normal": (normal_mean, (Y,)),
        "gamma": (gamma_rate, (Y,)),
        "groups": (groups, (SCORES,)),
    }
    model, args = fits[name]
    return FlowVI(model, seed=0, num_steps=80, progress=False).run(*args)


@functools.cache
def fitted_tails():
    """A fit whose draws are corrected: a Gaussian guide on Student tails."""
    guide = AutoFlow(wide_tails, flow=lambda dim: [CholeskyAffine(dim)])
    return FlowVI(wide_tails, guide, seed=0, num_steps=100, progress=False).run()
