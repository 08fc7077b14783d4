# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Flat priors along which no posterior exists, and such along which one does."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from pyro_flows import AutoFlow, FlowVI
from pyro_flows.guides import LogJoint
from pyro_flows.inference.flatness import flat_directions, flat_priors

SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]).double()
Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]).double()


def flat(support=constraints.real):
    return dist.ImproperUniform(support, (), ())


def schools(tau):
    """Centred; ``tau`` samples the groups' scale."""

    def model():
        mu = pyro.sample("mu", flat())
        scale = tau()
        with pyro.plate("school", 8):
            theta = pyro.sample("theta", dist.Normal(mu, scale))
            pyro.sample("y", dist.Normal(theta, SIGMA), obs=Y)

    return model


# Flat on log tau, all groups may be one: the density stays up as tau goes to zero.
improper = schools(lambda: pyro.sample("log_tau", flat()).exp())
proper = schools(lambda: pyro.sample("tau", flat(constraints.positive)))


def normal(count):
    def model():
        mu, log_sigma = pyro.sample("mu", flat()), pyro.sample("log_sigma", flat())
        with pyro.plate("data", count):
            pyro.sample("y", dist.Normal(mu, log_sigma.exp()), obs=Y[:count])

    return model


def student(df):
    def model():
        x = pyro.sample("x", flat())
        pyro.factor("y", -(df + 1) / 2 * torch.log1p(x**2))

    return model


def search(model):
    guide = AutoFlow(model, dtype=torch.float64).setup()
    log_joint = LogJoint(model, guide, through=guide.noncentring)
    torch.manual_seed(0)
    return log_joint, guide._init_loc() + torch.randn(50, guide.latent_dim).double()


@pytest.mark.parametrize(
    ("model", "sites"),
    [
        (improper, ["log_tau"]),
        (proper, []),
        (normal(4), []),
        (student(0.5), []),
        (student(0.0), ["x"]),
        (student(-0.5), ["x"]),
    ],
)
def test_where_the_density_stays_up(model, sites):
    log_joint, x = search(model)
    assert flat_directions(log_joint, x) == sites


def test_the_guide_is_left_as_it_was():
    log_joint, x = search(improper)
    before = log_joint(x[:4])
    degree = log_joint.through.centring.clone()
    flat_directions(log_joint, x)
    assert torch.equal(log_joint.through.centring, degree)
    assert torch.equal(log_joint(x[:4]), before)


def test_flat_priors_however_they_are_wrapped():
    def model():
        pyro.sample("a", dist.ImproperUniform(constraints.real, (3,), ()).to_event(1))
        pyro.sample("b", flat().mask(True))
        pyro.sample("c", dist.Normal(0.0, 1.0))

    guide = AutoFlow(model).setup()
    assert flat_priors(LogJoint(model, guide)) == ["a", "b"]


def test_the_verdict_names_the_site():
    posterior = FlowVI(improper, num_steps=2, progress=False).run()
    assert "improper: the prior of 'log_tau' is flat" in str(posterior.verdict)
    assert "improper:" not in str(FlowVI(proper, num_steps=2, progress=False).run().verdict)


def test_a_guide_that_is_much_too_narrow_makes_no_posterior_improper():
    log_joint, x = search(normal(4))
    few = x[:1] + 1e-4 * (x - x[:1])
    assert flat_directions(log_joint, few) == []
    assert flat_directions(log_joint, x[:1].expand(50, -1)) == []
