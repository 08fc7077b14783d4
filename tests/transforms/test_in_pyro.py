# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Our layers in unmodified Pyro's own classes."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions.conditional import ConditionalComposeTransformModule
from pyro.distributions.transforms import iterated
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormalizingFlow
from pyro.infer.reparam import NeuTraReparam, TransformReparam

from pyro_flows.transforms import AffineCoupling, CholeskyAffine, Permute, SplineCoupling

LAYERS = {
    "affine": AffineCoupling,
    "spline": partial(SplineCoupling, bins=4),
    "cholesky": CholeskyAffine,
    "permute": Permute,
}


def standard(dim):
    return dist.Normal(torch.zeros(dim), torch.ones(dim)).to_event(1)


def randomise(module):
    for p in module.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    return module


def model():
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("group", 3):
        x = pyro.sample("x", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal(x, 1.0), obs=torch.tensor([0.0, 1.0, 2.0]))


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_transformed_distribution(make):
    flow = dist.TransformedDistribution(standard(3), [randomise(make(3)), Permute([2, 0, 1])])
    value = flow.rsample((5,))
    assert value.shape == (5, 3)
    assert flow.log_prob(value).shape == (5,)
    assert flow.expand([4]).sample((5,)).shape == (5, 4, 3)
    assert flow.support.event_dim == 1
    inverse = dist.TransformedDistribution(flow, [make(3).inv])
    assert inverse.log_prob(value).shape == (5,)


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_iterated(make):
    module = randomise(iterated(2, make, 3))
    assert sum(1 for _ in module.parameters()) == 2 * sum(1 for _ in make(3).parameters())
    x = torch.randn(5, 3)
    assert torch.allclose(module.inv(module(x)), x)
    flow = dist.TransformedDistribution(standard(3), [module])
    before = flow.log_prob(x)
    new = iterated(2, make, 3)
    new.load_state_dict(module.state_dict())
    assert torch.equal(dist.TransformedDistribution(standard(3), [new]).log_prob(x), before)


def test_conditional_transformed_distribution():
    layers = [randomise(AffineCoupling(3, context_dim=2)), Permute(3), CholeskyAffine(3)]
    conditional = dist.ConditionalTransformedDistribution(standard(3), layers)
    context = torch.randn(4, 2)
    flow = conditional.condition(context)
    assert (flow.batch_shape, flow.event_shape) == ((4,), (3,))
    value = flow.rsample((5,))
    assert value.shape == (5, 4, 3)
    apart = [conditional.condition(c).log_prob(value[:, i]) for i, c in enumerate(context)]
    assert torch.allclose(flow.log_prob(value), torch.stack(apart, -1))


def test_conditional_composition():
    stack = ConditionalComposeTransformModule(
        [randomise(AffineCoupling(3, context_dim=2)), Permute(3), SplineCoupling(3, context_dim=2)]
    )
    flow = dist.ConditionalTransformedDistribution(standard(3), [stack]).condition(
        torch.randn(4, 2)
    )
    value = flow.rsample((5,))
    assert value.shape == (5, 4, 3)
    assert flow.log_prob(value).shape == (5, 4)


@pytest.mark.parametrize("make", [AffineCoupling, LAYERS["spline"]], ids=["affine", "spline"])
def test_auto_normalizing_flow(make):
    guide = AutoNormalizingFlow(model, partial(iterated, 2, make))
    guide()
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step() for _ in range(30)]
    assert torch.tensor(losses).isfinite().all()
    start = [p.clone() for p in guide.parameters()]
    assert start
    svi.step()
    assert any((a != b).any() for a, b in zip(start, guide.parameters(), strict=True))
    draws = Predictive(model, guide=guide, num_samples=7)()
    assert draws["x"].shape == (7, 3)


def test_neutra():
    guide = AutoNormalizingFlow(model, partial(iterated, 2, AffineCoupling))
    guide()
    neutra = NeuTraReparam(guide)
    mcmc = MCMC(NUTS(neutra.reparam(model)), num_samples=4, warmup_steps=4, disable_progbar=True)
    mcmc.run()
    (latent,) = (v for k, v in mcmc.get_samples().items() if k.endswith("_shared_latent"))
    assert neutra.transform_sample(latent[0])["x"].shape == (3,)


def test_transform_reparam():
    layer = randomise(AffineCoupling(2))

    def inner():
        return pyro.sample("z", dist.TransformedDistribution(standard(2), [layer]))

    with pyro.poutine.trace() as traced, pyro.poutine.reparam(config={"z": TransformReparam()}):
        z = inner()
    assert torch.allclose(z, layer(traced.trace.nodes["z_base"]["value"]))
