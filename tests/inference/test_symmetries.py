# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Symmetries that make marginal means meaningless are named, and no others."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_flows import FlowVI
from pyro_flows.guides import AutoFlow, LogJoint
from pyro_flows.inference.randomness import seeded
from pyro_flows.inference.symmetries import find_symmetries

Y = torch.linspace(-3, 4, 12, dtype=torch.float64)


def notes(model, *args):
    guide = AutoFlow(model).setup(*args)
    log_joint = LogJoint(model, guide, args, through=guide.noncentring)
    with seeded(0):
        return find_symmetries(log_joint, guide.get_posterior().sample((3,)))


def mixture(y):
    weights = pyro.sample("weights", dist.Dirichlet(y.new_ones(3)))
    with pyro.plate("component", 3):
        mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
        sigma = pyro.sample("sigma", dist.HalfNormal(y.new_tensor(2.0)))
    each = dist.Normal(mu, sigma).log_prob(y[..., None]) + weights.log()
    pyro.factor("y", each.logsumexp(-1).sum(-1))


def factors(y):
    with pyro.plate("person", len(y)):
        score = pyro.sample("score", dist.Normal(y.new_tensor(0.0), 1.0))
        loading = pyro.sample("loading", dist.Normal(y.new_tensor(0.0), 1.0))
        pyro.sample("y", dist.Normal(score * loading, 1.0), obs=y)


def schools(y):
    mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(y.new_tensor(5.0)))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


def ordered(y):
    mu = pyro.sample(
        "mu",
        dist.TransformedDistribution(
            dist.Normal(y.new_zeros(2), 2.0).to_event(1), dist.transforms.OrderedTransform()
        ),
    )
    each = dist.Normal(mu, 1.0).log_prob(y[..., None])
    pyro.factor("y", each.logsumexp(-1).sum(-1))


def test_labels_of_a_mixture():
    (note,) = notes(mixture, Y)
    assert note.startswith("The 3 elements of 'weights', 'mu' and 'sigma' can be exchanged")


def test_signs_of_a_factor_model():
    (note,) = notes(factors, Y)
    assert note.startswith("The signs of 'score' and 'loading' can be turned")


@pytest.mark.parametrize("model", [schools, ordered])
def test_none(model):
    assert notes(model, Y) == []


def test_a_prior_without_data_keeps_its_own():
    def model():
        pyro.sample("x", dist.LogNormal(torch.zeros(4), 1.0).to_event(1))

    (note,) = notes(model)
    assert "4 elements of 'x'" in note


def test_the_verdict_has_them():
    def model(y):
        x = pyro.sample("x", dist.Normal(y.new_tensor(0.0), 3.0))
        pyro.sample("y", dist.Normal(x.abs(), 1.0), obs=y)

    posterior = FlowVI(model, num_steps=20, progress=False).run(torch.tensor(4.0))
    assert any("signs of 'x'" in reason for reason in posterior.verdict.reasons)
