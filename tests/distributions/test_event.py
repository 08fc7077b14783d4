# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Events of several axes: the same flow, other shapes at the outside."""

import copy
import pickle
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch.distributions import biject_to, constraints, transform_to

from pyro_flows.distributions import Flow, FlowMixture
from pyro_flows.errors import ShapeError
from pyro_flows.transforms import ActNorm, AffineCoupling, Elementwise, Sigmoid

SHAPE = (1, 2, 3)


def make(context_dim=0, last=(), event_shape=SHAPE):
    layers = [AffineCoupling(6, context_dim=context_dim, hidden_dims=(8,)), ActNorm(6), *last]
    flow = Flow(layers, event_shape=event_shape)
    for p in flow.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return flow


def flat(flow):
    return Flow([flow.transform])


@pytest.mark.parametrize("sample_shape", [(), (2,), (4, 2)])
@pytest.mark.parametrize("batch_shape", [(), (3,), (3, 5)])
@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("event_shape", [SHAPE, (6, 1), (6,)])
def test_shapes(event_shape, context_dim, batch_shape, sample_shape):
    flow = make(context_dim, event_shape=event_shape)
    context = torch.randn(*batch_shape, context_dim) if context_dim else None
    d = flow(context).expand(batch_shape)
    assert (d.batch_shape, d.event_shape) == (batch_shape, event_shape)
    value, log_prob = d.rsample_and_log_prob(sample_shape)
    assert value.shape == (*sample_shape, *batch_shape, *event_shape)
    assert d.sample(sample_shape).shape == value.shape
    assert log_prob.shape == (*sample_shape, *batch_shape)
    assert torch.allclose(d.log_prob(value.clone()), log_prob)
    assert d.log_prob(torch.zeros(event_shape)).shape == batch_shape
    assert d.support.event_dim == len(event_shape)
    assert d.support.check(value).shape == log_prob.shape


def test_density_is_that_of_the_flattening():
    flow, value = make(), torch.randn(5, *SHAPE)
    assert torch.equal(flow.log_prob(value), flat(flow).log_prob(value.flatten(1)))
    torch.manual_seed(1)
    draws = flow().rsample((5,))
    torch.manual_seed(1)
    assert torch.equal(draws.flatten(1), flat(flow)().rsample((5,)))


def test_the_own_draw_is_scored_without_an_inverse(monkeypatch):
    d = make()()
    value = d.rsample((4,))
    monkeypatch.setattr(type(d.transform), "inverse_and_ladj", None)
    assert d.log_prob(value).shape == (4,)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
def test_copies(duplicate):
    d, value = make()(), torch.randn(4, *SHAPE)
    assert torch.equal(duplicate(d).log_prob(value), d.log_prob(value))
    assert duplicate(d).event_shape == SHAPE


def test_initialize_takes_events():
    flow, data = make(), 3 + 2 * torch.randn(100, *SHAPE)
    flow.initialize(data)
    x = flow.transform.layers[1].inv(data.flatten(1))
    assert torch.allclose(x.mean(0), torch.zeros(6), atol=1e-10)


def test_transforms_lead_from_base_to_event():
    d = make(context_dim=2)(torch.randn(3, 2))
    theirs = dist.TransformedDistribution(d.base, d.transforms)
    assert (theirs.batch_shape, theirs.event_shape) == (d.batch_shape, d.event_shape)
    value = d.sample((4,))
    assert torch.allclose(theirs.log_prob(value.clone()), d.log_prob(value))


def test_support_of_real_events():
    support = make()().support
    assert isinstance(support, constraints.independent)
    assert support.base_constraint is constraints.real
    assert biject_to(support)(torch.randn(4, *SHAPE)).shape == (4, *SHAPE)


def test_support_of_bounded_events():
    d = make(last=[Elementwise(6, Sigmoid())])()
    value = d.sample((4,))
    assert d.support.check(value).all()
    assert not d.support.check(value + 1).any()
    for register in (biject_to, transform_to):
        transform = register(d.support)
        inside = transform(torch.randn(4, 6))
        assert inside.shape == (4, *SHAPE)
        assert d.support.check(inside).all()
        assert torch.allclose(transform(transform.inv(inside)), inside)
    assert repr(d.support).endswith("(1, 2, 3))")


def test_mixtures_of_shaped_flows():
    flows = [make(), make()]
    mixture = FlowMixture(flows)
    value = torch.randn(4, 5, *SHAPE)
    expected = torch.stack([f.log_prob(value) for f in flows]).logsumexp(0) - torch.tensor(2).log()
    assert torch.allclose(mixture.log_prob(value), expected)
    d = mixture().expand([5])
    assert d.sample((4,)).shape == (4, 5, *SHAPE)
    assert d.support.event_dim == 3
    mixture.initialize(torch.randn(50, *SHAPE))
    with pytest.raises(ShapeError, match=r"one common event_shape .* got event_shapes \[\(1, 2"):
        FlowMixture([flows[0], flat(flows[0])])


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: make(event_shape=(2, 2)), "Flow expected an event_shape of 6 elements, as its "
         "layers have coordinates, but got (2, 2). Give for example (channels, height, width)."),
        (lambda: make(event_shape=()), "but got ()."),
        (lambda: make().log_prob(torch.zeros(2, 6)), "This flow expected values of shape (..., 1, "
         "2, 3), but got (2, 6). Its event_shape is (1, 2, 3)."),
        (lambda: make().initialize(torch.zeros(9, 6)), "expected values of shape (..., 1, 2, 3)"),
    ],
)  # fmt: skip
def test_wrong_shapes(call, text):
    with pytest.raises(ShapeError, match=re.escape(text)):
        call()


# In Pyro


@pytest.mark.parametrize("last", [(), (Elementwise(6, Sigmoid()),)], ids=["real", "bounded"])
def test_as_prior(last):
    flow = make(last=last)

    def model():
        z = pyro.sample("z", flow())
        pyro.sample("y", dist.Normal(z.sum((-3, -2, -1)), 0.5), obs=torch.tensor(1.0))

    mcmc = MCMC(NUTS(model), num_samples=5, warmup_steps=5, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["z"].shape == (5, *SHAPE)
    guide = AutoNormal(model)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    assert all(torch.tensor(svi.step()).isfinite() for _ in range(3))
    assert guide()["z"].shape == SHAPE


def test_as_guide_and_in_plates():
    flow = make()

    def model():
        with pyro.plate("images", 4):
            pyro.sample("z", dist.Normal(torch.zeros(SHAPE), 1.0).to_event(3))

    def guide():
        pyro.module("flow", flow)
        with pyro.plate("images", 4):
            return pyro.sample("z", flow())

    assert guide().shape == (4, *SHAPE)
    elbo = Trace_ELBO(8, vectorize_particles=True, max_plate_nesting=1)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    losses = [svi.step() for _ in range(30)]
    assert sum(losses[-5:]) < sum(losses[:5])
