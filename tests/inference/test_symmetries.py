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


def found_at(model, z, *args):
    """What is found at given draws."""
    guide = AutoFlow(model).setup(*args)
    return find_symmetries(LogJoint(model, guide, args, through=guide.noncentring), z)


@pytest.mark.parametrize("model", [schools, ordered])
def test_none_in_float32(model):
    assert notes(model, Y.float()) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_none_in_a_regression(dtype):
    x = torch.randn(200, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))

    def model(y):
        weight = pyro.sample("weight", dist.Normal(x.new_zeros(3), 1.0).to_event(1))
        sigma = pyro.sample("sigma", dist.HalfNormal(x.new_tensor(1.0)))
        pyro.sample("y", dist.Normal(x @ weight, sigma).to_event(1), obs=y)

    assert notes(model, x @ x.new_tensor([1.0, 0.9, -0.5])) == []


@pytest.mark.parametrize("model", [mixture, factors])
def test_the_same_in_float32_and_with_many_data(model):
    y = torch.linspace(-3, 4, 48 if model is factors else 1000)
    assert len(notes(model, y)) == 1


def test_the_neck_of_a_funnel_is_no_symmetry():
    """There all elements are nearly equal, so that a permutation changes nothing."""
    noise = torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    mu, log_tau = 1 + 0.5 * noise[:, :1], -25 + noise[:, 1:2]
    z = torch.cat([mu, log_tau, mu + log_tau.exp() * noise], -1)
    y = torch.tensor([28.0, 8, -3, 7, -1, 1, 18, 12]) / 4
    assert found_at(schools, z, y) == []


@pytest.mark.parametrize("count", [3, 8])
def test_the_tail_of_an_improper_posterior_is_no_symmetry(count):
    """There the data's part is lost in rounding."""

    def model(y):
        flat = dist.ImproperUniform(dist.constraints.real, (), ())
        mu, log_sigma = pyro.sample("mu", flat), pyro.sample("log_sigma", flat)
        pyro.sample("y", dist.Normal(mu, log_sigma.exp()), obs=y)

    z = torch.tensor([[2e23, 54.0], [-5e23, 55.0], [1e23, 53.5]]).repeat(3, 1)[:count]
    assert found_at(model, z, torch.tensor(1.0)) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_large_constant_hides_no_difference(dtype):
    """Here the posterior means are 0.249 and -0.244."""

    def model(y):
        with pyro.plate("two", 2):
            t = pyro.sample("t", dist.Normal(y.new_tensor(0.0), 1.0))
            pyro.sample("y", dist.Normal(t, 1.75), obs=y)
        pyro.factor("constant", y.new_tensor(-5e7))

    z = torch.tensor([[0.8, -0.3], [-0.1, 0.6], [0.4, -1.2]], dtype=dtype)
    assert found_at(model, z, torch.tensor([1.01, -0.99], dtype=dtype)) == []


def test_a_density_that_says_nothing_resolves_nothing():
    def model():
        with pyro.plate("three", 3):
            pyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.LogNormal(torch.tensor(0.0), 1.0))

    assert found_at(model, torch.randn(3, 4)) == []


def two_means(y):
    a = pyro.sample("a", dist.Normal(y.new_tensor(0.0), 5.0))
    b = pyro.sample("b", dist.Normal(y.new_tensor(0.0), 5.0))
    sigma = pyro.sample("sigma", dist.HalfNormal(y.new_tensor(2.0)))
    each = [dist.Normal(loc, sigma).log_prob(y) for loc in (a, b)]
    pyro.factor("y", torch.logaddexp(*each).sum(-1))


def two_components(y):
    share = pyro.sample("share", dist.Beta(y.new_tensor(2.0), 2.0))
    locs = [pyro.sample(name, dist.Normal(y.new_tensor(0.0), 5.0)) for name in ("m1", "m2")]
    scales = [pyro.sample(name, dist.HalfNormal(y.new_tensor(2.0))) for name in ("s1", "s2")]
    each = [dist.Normal(*both).log_prob(y) for both in zip(locs, scales, strict=True)]
    total = torch.logaddexp(share.log() + each[0], torch.log1p(-share) + each[1])
    pyro.factor("y", total.sum(-1))


def three_components(y):
    weights = pyro.sample("weights", dist.Dirichlet(y.new_ones(3)))
    locs = [pyro.sample(f"m{i}", dist.Normal(y.new_tensor(0.0), 5.0)) for i in range(3)]
    each = dist.Normal(torch.stack(locs), 1.0).log_prob(y[..., None]) + weights.log()
    pyro.factor("y", each.logsumexp(-1).sum(-1))


@pytest.mark.parametrize(
    ("model", "start"),
    [
        (two_means, "'a' and 'b' can be exchanged: all have the same marginals."),
        (
            two_components,
            "'m1' and 'm2', together with 's1' and 's2', and with 'share' and 1 - 'share', can",
        ),
        (
            three_components,
            "The 3 elements of 'weights', together with 'm0', 'm1' and 'm2', can be exchanged",
        ),
    ],
)
def test_labels_of_sites(model, start):
    (note,) = notes(model, Y)
    assert note.startswith(start)


def test_sites_that_differ_are_not_exchanged():
    def model(y):
        a = pyro.sample("a", dist.Normal(y.new_tensor(0.0), 1.0))
        b = pyro.sample("b", dist.Normal(y.new_tensor(0.0), 1.001))
        pyro.factor("y", torch.logaddexp(*[dist.Normal(s, 1.0).log_prob(y) for s in (a, b)]).sum())

    assert notes(model, Y) == []


def test_the_sign_of_an_element():
    def model(y):
        b = pyro.sample("b", dist.Normal(y.new_zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(b[0] ** 2 + b[1], 1.0), obs=y)

    (note,) = notes(model, torch.tensor(1.5))
    assert note.startswith("The sign of 'b[0]' can be turned: its mean is zero")


def test_the_sign_of_an_element_between_two_ends():
    def model(y):
        b = pyro.sample("b", dist.Uniform(-3 * y.new_ones(3), 3.0).to_event(1))
        pyro.sample("share", dist.Beta(y.new_tensor(2.0), 2.0))
        pyro.sample("y", dist.Normal(b[0], 0.1 + b[1] ** 2 + b[2].exp()), obs=y)

    (note,) = notes(model, torch.tensor(1.5))
    assert note.startswith("The sign of 'b[1]' can be turned")


def test_elements_that_cannot_be_exchanged():
    """An order, and rows of a triangular matrix, where all candidates leave the support."""

    def model(y):
        root = pyro.sample("root", dist.LKJCholesky(3, y.new_tensor(1.0)))
        low = pyro.sample(
            "low",
            dist.TransformedDistribution(
                dist.Normal(y.new_zeros(3), 2.0).to_event(1), dist.transforms.OrderedTransform()
            ),
        )
        pyro.sample("y", dist.MultivariateNormal(low, scale_tril=root), obs=y)

    assert notes(model, Y[:3]) == []


@pytest.mark.parametrize("alone", [True, False])
def test_signs_among_many_sites(alone):
    """Of one of them, or of all together."""

    def model(y):
        x = [pyro.sample(f"x{i}", dist.Normal(y.new_tensor(0.0), 1 + 0.1 * i)) for i in range(10)]
        others = sum(x[1:])
        loc = x[0].abs() + others if alone else x[0] * others
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    (note,) = notes(model, torch.tensor(1.5))
    assert note.startswith("The signs of 'x0' can" if alone else "The signs of 'x0', 'x1', 'x2'")


def test_the_worlds_random_state_is_left_alone():
    guide = AutoFlow(mixture).setup(Y)
    log_joint = LogJoint(mixture, guide, (Y,), through=guide.noncentring)
    z = guide.get_posterior().sample((8,))
    log_joint.in_chunks(z)  # recorded now, under a random state of its own
    before = torch.get_rng_state()
    find_symmetries(log_joint, z)
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_that_fails_at_odd_points():
    def model():
        pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    guide = AutoFlow(model).setup()
    log_joint = LogJoint(model, guide)

    def fails(z):
        raise torch.linalg.LinAlgError("not positive-definite")

    log_joint.in_chunks = fails
    assert find_symmetries(log_joint, torch.randn(3, 2)) == []


def test_the_default_device_is_left_alone():
    guide = AutoFlow(mixture).setup(Y)
    log_joint = LogJoint(mixture, guide, (Y,), through=guide.noncentring)
    z = guide.get_posterior().sample((8,))
    log_joint.in_chunks(z)
    torch.set_default_device("meta")
    assert len(find_symmetries(log_joint, z)) == 1


def test_few_calls():
    guide = AutoFlow(mixture).setup(Y)
    log_joint = LogJoint(mixture, guide, (Y,), through=guide.noncentring)
    calls = []
    in_chunks = log_joint.in_chunks
    log_joint.in_chunks = lambda z: calls.append(len(z)) or in_chunks(z)
    assert len(find_symmetries(log_joint, guide.get_posterior().sample((8,)))) == 1
    assert len(calls) <= 6  # each beside its neighbours
    assert max(calls) <= 256


def test_the_verdict_has_them():
    def model(y):
        x = pyro.sample("x", dist.Normal(y.new_tensor(0.0), 3.0))
        pyro.sample("y", dist.Normal(x.abs(), 1.0), obs=y)

    posterior = FlowVI(model, num_steps=20, progress=False).run(torch.tensor(4.0))
    assert any("signs of 'x'" in reason for reason in posterior.verdict.reasons)
