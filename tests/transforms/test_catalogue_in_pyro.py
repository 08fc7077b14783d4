# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Every layer of the catalogue in unmodified Pyro: distributions, guides, NeuTra, likelihoods."""

import sys
from functools import partial
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.transforms import iterated
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import NeuTraReparam

from pyro_flows.testing import Case
from pyro_flows.transforms import Compose

sys.path.insert(0, str(Path(__file__).parents[1]))
from catalogue import CATALOGUE  # noqa: E402

DIM, CONTEXT = 5, 2


def _fits(entry):
    return DIM in entry.dims and Case(entry.make, DIM).is_real()


REAL = [id for id, entry in CATALOGUE.items() if _fits(entry)]
CONDITIONAL = [id for id in REAL if CATALOGUE[id].conditional]
# Stacks of many layers: what holds for their layers holds for them, at a multiple of the time.
SINGLE = [
    id
    for id in REAL
    if sum(isinstance(m, Compose) for m in CATALOGUE[id].make(DIM, 0).modules()) == 0
]


def make(id, dim, context_dim=0):
    return Case(CATALOGUE[id].make, dim, context_dim).fresh()


def standard(dim):
    return dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1)


def model():
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("group", DIM - 1):
        x = pyro.sample("x", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.linspace(-1.0, 1.0, DIM - 1))


@pytest.mark.parametrize("id", REAL)
def test_maximum_likelihood(id):
    """Data are scored and their likelihood is climbed, by Pyro's class and torch's optimiser."""
    layer = make(id, DIM)
    data = torch.randn(16, DIM) * torch.linspace(0.5, 1.5, DIM) + 0.3
    flow = dist.TransformedDistribution(standard(DIM), [layer])
    parameters = [p for p in layer.parameters() if p.numel()]
    before = flow.log_prob(data).mean().detach()
    assert before.isfinite()
    if not parameters:
        return
    optimiser = torch.optim.Adam(parameters, lr=1e-3)
    for _ in range(3):
        optimiser.zero_grad()
        (-flow.log_prob(data).mean()).backward()  # the same tensor each time: a cache would fail
        optimiser.step()
    assert flow.log_prob(data).mean() > before - 1e-9


@pytest.mark.parametrize("id", SINGLE)
def test_auto_normalizing_flow_and_neutra(id):
    """Pyro's flow guide made of the layer trains by ELBO, and NeuTra samples in its base."""
    guide = AutoNormalizingFlow(model, partial(iterated, 2, partial(make, id)))
    guide()
    if any(p.numel() for p in guide.parameters()):
        svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 1e-3}), Trace_ELBO())
        assert torch.tensor([svi.step() for _ in range(2)]).isfinite().all()
    guide.requires_grad_(False)
    neutra = NeuTraReparam(guide)
    # What NUTS differentiates and steps along.
    start, potential, _, _ = initialize_model(neutra.reparam(model))
    ((name, z),) = start.items()
    z = z.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(potential({name: z}), z)
    assert gradient.isfinite().all()
    assert neutra.transform_sample(z)["x"].shape == (DIM - 1,)


@pytest.mark.parametrize("id", CONDITIONAL)
def test_conditional_transformed_distribution(id):
    """A batch of contexts gives a batch of distributions, through Pyro's own class."""
    layer = Case(CATALOGUE[id].make, DIM, CONTEXT, perturb=CATALOGUE[id].perturbation(DIM)).layer()
    context = torch.randn(4, CONTEXT)
    flow = dist.ConditionalTransformedDistribution(standard(DIM), [layer]).condition(context)
    assert (flow.batch_shape, flow.event_shape) == ((4,), (DIM,))
    value = flow.rsample((3,)).detach()
    assert value.shape == (3, 4, DIM)
    one = dist.ConditionalTransformedDistribution(standard(DIM), [layer]).condition(context[1])
    expected = one.log_prob(value[:, 1])
    assert torch.allclose(flow.log_prob(value)[:, 1], expected, rtol=1e-7, atol=1e-7)
