# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Power-scaling sensitivity of fits."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_flows import AutoFlow, FlowVI, sensitivity
from pyro_flows.errors import ModelError, OptionError
from pyro_flows.transforms import CholeskyAffine


def quick(model, *args, **kwargs):
    """A short fit with an affine guide."""
    guide = AutoFlow(model, flow=lambda dim: [CholeskyAffine(dim)])
    return FlowVI(model, guide, seed=0, num_steps=40, progress=False).run(*args, **kwargs)


def mean_of(y, prior_sd=1.0):
    mean = pyro.sample("mean", dist.Normal(0.0, prior_sd))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def schools(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


@pytest.mark.parametrize(
    ("y", "prior_sd", "diagnosis"),
    [
        ([6.0], 1.0, "potential prior-data conflict"),
        ([0.3], 0.2, "potential strong prior / weak likelihood"),
        ([1.0] * 20, 10.0, "-"),
    ],
)
def test_a_normal_mean(y, prior_sd, diagnosis):
    table = sensitivity(quick(mean_of, torch.tensor(y), prior_sd))
    assert list(table.index) == ["mean"]
    assert table.loc["mean", "diagnosis"] == diagnosis


def test_it_is_the_slope_that_fits_with_other_powers_show():
    # The prior to the power a is a normal of variance 1 / a: fit at two powers, and compare.
    y = torch.tensor([6.0])
    found = sensitivity(quick(mean_of, y)).loc["mean", "prior"]
    at = torch.linspace(-3.0, 9.0, 20_001)

    def cdf(power):
        variance = 1 / (power + 1)
        return dist.Normal(variance * 6.0, math.sqrt(variance)).cdf(at)

    p = cdf(1.0)
    # Over the range of 4,000 exact draws, to which the distance is relative.
    inside = (p > 1 / 4000) & (p < 1 - 1 / 4000)
    slopes = []
    for power in (0.99, 1.01):
        distances = []
        for a, b in ((p, cdf(power)), (1 - p, 1 - cdf(power))):
            a, b = a[inside], b[inside]
            middle = (a + b) / 2
            terms = a * torch.log2(a / middle) + b * torch.log2(b / middle)
            distances.append(math.sqrt(terms.sum() / (a + b).sum()))
        slopes.append(max(distances) / abs(math.log2(power)))
    assert found == pytest.approx(sum(slopes) / 2, rel=0.1)


def test_in_a_hierarchy_the_top_is_scaled():
    posterior = quick(schools, torch.tensor([2.0, -1.0, 3.0, 0.5]))
    table = sensitivity(posterior, draws=2000)
    assert list(table.index) == ["mu", "tau", "theta[0]", "theta[1]", "theta[2]", "theta[3]"]
    top = sensitivity(posterior, draws=2000, prior=["mu", "tau"])
    assert table["prior"].equals(top["prior"])
    every = sensitivity(posterior, draws=2000, prior=["mu", "tau", "theta"])
    assert not table["prior"].equals(every["prior"])
    # Of mu alone: a prior of sd 5 says little about theta.
    only = sensitivity(posterior, draws=2000, prior="mu")
    assert only.loc["tau", "prior"] < 0.05


def test_the_same_again():
    posterior = quick(mean_of, torch.tensor([6.0]))
    assert sensitivity(posterior, draws=500).equals(sensitivity(posterior, draws=500))


def test_refusals():
    posterior = quick(mean_of, torch.tensor([6.0]))
    with pytest.raises(OptionError, match=r"latent sites among \['mean'\], but got \['sd'\]"):
        sensitivity(posterior, prior="sd")
    with pytest.raises(OptionError, match=r"observed sites among \['y'\], but got \['x'\]"):
        sensitivity(posterior, likelihood=["x"])

    def prior_only():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ModelError, match="no site is observed"):
        sensitivity(quick(prior_only))

    def scaled(y):
        with poutine.scale(scale=2.0):
            mean_of(y)

    with pytest.raises(ModelError, match="'mean' is scaled"):
        sensitivity(quick(scaled, torch.tensor([6.0])))
