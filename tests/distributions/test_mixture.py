# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Mixtures of flows: density, samples, responsibilities, weights by context, starts."""

import copy
import math
import pickle
import re
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS

from pyro_flows.distributions import Flow, FlowMixture, GaussianMixture
from pyro_flows.distributions.stacked import Stacked
from pyro_flows.errors import ContextError, DataError, NoRsampleError, ShapeError
from pyro_flows.flows import ncsf
from pyro_flows.nn import MLP
from pyro_flows.transforms import (
    Affine,
    AffineCoupling,
    Cayley,
    CholeskyAffine,
    Coupling,
    SplineCoupling,
)


def randomise(module, scale=0.3):
    for p in module.parameters():
        p.data.add_(scale * torch.randn_like(p))
    return module


def at(*loc, scale=1.0):
    """A flow that is a Gaussian at a place."""
    layer = CholeskyAffine(len(loc))
    layer.set(loc=torch.tensor(loc), scale_tril=scale * torch.eye(len(loc)))
    return Flow([layer])


def make(context_dim=0, **options):
    parts = [
        Flow([SplineCoupling(2, context_dim=context_dim, hidden_dims=(8,)), CholeskyAffine(2)]),
        Flow([AffineCoupling(2, context_dim=context_dim, hidden_dims=(8,)), CholeskyAffine(2)]),
        at(2.0, -1.0),
    ]
    return randomise(FlowMixture(parts, [1.0, 2.0, 3.0], **options))


def test_a_mixture_of_gaussians():
    mixture = FlowMixture([at(-2.0, 0.0), at(2.0, 1.0, scale=0.5)], [0.3, 0.7])
    normal = torch.distributions.MultivariateNormal
    parts = [
        normal(torch.tensor([-2.0, 0.0]), torch.eye(2)),
        normal(torch.tensor([2.0, 1.0]), 0.25 * torch.eye(2)),
    ]
    x = torch.randn(10, 2)
    joint = torch.stack([0.3 * parts[0].log_prob(x).exp(), 0.7 * parts[1].log_prob(x).exp()], -1)
    assert torch.allclose(mixture.log_prob(x), joint.sum(-1).log())
    assert torch.allclose(mixture().responsibilities(x), joint / joint.sum(-1, keepdim=True))
    assert torch.allclose(mixture.weights, torch.tensor([0.3, 0.7]))


def test_integrates_to_one():
    d = make()()
    axis = torch.linspace(-12, 12, 401)
    grid = torch.cartesian_prod(axis, axis)
    total = d.log_prob(grid).exp().sum() * axis.diff()[0] ** 2
    assert abs(total - 1) < 1e-2


def test_samples_follow_the_weights_and_the_parts():
    mixture = FlowMixture([at(-10.0), at(10.0, scale=2.0)], [1.0, 3.0])
    x = mixture().sample((4000,))[:, 0]
    left, right = x[x < 0], x[x > 0]
    assert abs(len(right) / 4000 - 0.75) < 4 * (0.75 * 0.25 / 4000) ** 0.5
    assert abs(left.mean() + 10) < 0.15
    assert abs(right.std() - 2) < 0.15


@pytest.mark.parametrize("sample_shape", [(), (2,), (4, 2)])
@pytest.mark.parametrize("batch_shape", [(), (3,), (3, 5)])
@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("conditional_weights", [False, True])
def test_shapes(sample_shape, batch_shape, context_dim, conditional_weights):
    if conditional_weights and not context_dim:
        return
    mixture = make(context_dim, conditional_weights=conditional_weights)
    assert (mixture.dim, mixture.context_dim) == (2, context_dim)
    context = torch.randn(*batch_shape, context_dim) if context_dim else None
    d = mixture(context).expand(batch_shape)
    assert (d.batch_shape, d.event_shape) == (batch_shape, (2,))
    value = d.sample(sample_shape)
    assert value.shape == (*sample_shape, *batch_shape, 2)
    assert d.log_prob(value).shape == (*sample_shape, *batch_shape)
    assert d.responsibilities(value).shape == (*sample_shape, *batch_shape, 3)
    assert d.expand((7, *batch_shape)).sample().shape == (7, *batch_shape, 2)
    values, log_weights = d.rsample_components(sample_shape)
    assert values.shape == (3, *sample_shape, *batch_shape, 2)
    together = (log_weights.exp() * values.sum(-1)).sum(0)
    assert together.shape == (*sample_shape, *batch_shape)
    assert torch.allclose(log_weights.exp().sum(0), torch.tensor(1.0))
    assert d.support.check(value).all()


@pytest.mark.parametrize("conditional_weights", [False, True])
def test_a_batch_of_contexts_is_a_batch_of_mixtures(conditional_weights):
    mixture = make(2, conditional_weights=conditional_weights)
    context, value = torch.randn(4, 2), torch.randn(4, 2)
    apart = [mixture(c).log_prob(v) for c, v in zip(context, value, strict=True)]
    assert torch.allclose(mixture.log_prob(value, context), torch.stack(apart))
    moving = mixture(context).log_weights
    assert (moving[0] != moving[1]).any() == conditional_weights


def test_conditional_weights_start_at_the_given_ones():
    parts = [Flow([AffineCoupling(2, context_dim=1)]), Flow([AffineCoupling(2, context_dim=1)])]
    mixture = FlowMixture(parts, [1.0, 4.0], conditional_weights=True)
    d = mixture(torch.randn(3, 1))
    assert torch.allclose(d.log_weights.exp(), torch.tensor([0.2, 0.8]))


def test_gradients_reach_everything():
    mixture = make(2, conditional_weights=True)
    mixture.log_prob(torch.randn(20, 2), torch.randn(20, 2)).sum().backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in mixture.parameters())


def test_no_rsample():
    d = make()()
    assert not d.has_rsample
    assert not d.sample().requires_grad
    with pytest.raises(NotImplementedError):
        d.rsample()
    with pytest.raises(NoRsampleError):
        FlowMixture([Flow([CholeskyAffine(2)], GaussianMixture(2))])().rsample_components()


def test_summed_over_components_the_elbo_has_the_right_gradient():
    """Against the gradient of an ELBO by quadrature, weights included."""
    mixture = FlowMixture([at(-1.0), at(1.5, scale=0.7)], [0.4, 0.6])
    target = torch.distributions.Normal(0.3, 1.2)

    def gap(x, d):
        return target.log_prob(x[..., 0]) - d.log_prob(x)

    torch.manual_seed(0)
    d = mixture()
    values, log_weights = d.rsample_components((40000,))
    got = torch.autograd.grad(
        (log_weights.exp() * gap(values, d)).sum(0).mean(), list(mixture.parameters())
    )
    axis, d = torch.linspace(-12, 12, 8001).unsqueeze(-1), mixture()
    exact = torch.trapezoid(d.log_prob(axis).exp() * gap(axis, d), axis[:, 0])
    expected = torch.autograd.grad(exact, list(mixture.parameters()))
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, atol=0.03)
    assert max(g.abs().max() for g in expected if g.numel()) > 0.1


def test_extreme_values_have_no_nan():
    mixture = make()
    score = mixture.log_prob(torch.full((1, 2), 1e6))
    score.sum().backward()
    assert score.isfinite()
    assert all(p.grad.isfinite().all() for p in mixture.parameters() if p.grad is not None)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_faithful(duplicate):
    mixture, value = make(2, conditional_weights=True), torch.randn(4, 2)
    context = torch.randn(4, 2)
    expected = mixture.log_prob(value, context)
    new = duplicate(mixture)
    assert torch.equal(new.log_prob(value, context), expected)
    randomise(new)
    assert not torch.equal(new.log_prob(value, context), expected)
    mixture.load_state_dict(new.state_dict())
    assert torch.equal(new.log_prob(value, context), mixture.log_prob(value, context))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_mixture(dtype):
    mixture = make().to(dtype)
    value = mixture().sample()
    assert value.dtype == mixture.log_prob(value).dtype == dtype


def test_no_implicit_device():
    mixture, value = make(), torch.randn(4, 2)
    expected = mixture.log_prob(value)
    torch.set_default_device("meta")
    assert torch.equal(mixture.log_prob(value), expected)
    assert mixture().sample((2,)).device.type == "cpu"


def test_vmap():
    mixture, value, context = (
        make(2, conditional_weights=True),
        torch.randn(4, 2),
        torch.randn(4, 2),
    )
    assert torch.allclose(
        torch.func.vmap(mixture.log_prob)(value, context), mixture.log_prob(value, context)
    )


@pytest.mark.slow
def test_compile():
    mixture, value = make(), torch.randn(4, 2)
    compiled = torch.compile(mixture.log_prob, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(value), mixture.log_prob(value))


def test_as_prior_under_nuts():
    mixture = FlowMixture([at(-1.0, 0.0), at(1.0, 0.0)])

    def model():
        z = pyro.sample("z", mixture())
        pyro.sample("y", dist.Normal(z.sum(-1), 0.5), obs=torch.tensor(1.0))

    mcmc = MCMC(NUTS(model, max_tree_depth=3), num_samples=8, warmup_steps=8, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["z"].shape == (8, 2)


class Recentres(CholeskyAffine):
    """Sets its location from data, as ActNorm does."""

    def initialize(self, y, context=None):
        self.set(loc=y.mean(0))


def test_initialize_gives_each_flow_its_part():
    data = torch.cat([torch.randn(100, 2) - 9, torch.randn(300, 2) + 9])
    mixture = FlowMixture([Flow([Recentres(2)]), Flow([Recentres(2)])])
    mixture.initialize(data)
    order = mixture.weights.argsort()
    assert torch.allclose(mixture.weights[order], torch.tensor([0.25, 0.75]), atol=0.01)
    locs = torch.stack([flow.transform.layers[0].loc for flow in mixture.flows])[order]
    assert torch.allclose(locs, torch.tensor([[-9.0, -9.0], [9.0, 9.0]]), atol=0.4)


def test_trained_on_data_with_two_parts():
    data = torch.cat([0.5 * torch.randn(200, 2) - 3, 0.5 * torch.randn(200, 2) + 3])
    mixture = FlowMixture([Flow([Recentres(2)]), Flow([Recentres(2)])])
    mixture.initialize(data)
    optimiser = torch.optim.Adam(mixture.parameters(), lr=0.05)
    for _ in range(100):
        optimiser.zero_grad()
        (-mixture.log_prob(data).mean()).backward()
        optimiser.step()
    halves = mixture().responsibilities(data).argmax(-1)
    assert halves[:200].unique().numel() == halves[200:].unique().numel() == 1
    assert halves[0] != halves[-1]


def test_printed():
    text = "FlowMixtureDistribution(3 flows, batch_shape: (), event_shape: (2,))"
    assert repr(make()()) == text


def test_no_draws():
    assert make()().sample((0, 4)).shape == (0, 4, 2)
    parts = [Flow([CholeskyAffine(2)], GaussianMixture(2, components=3)) for _ in range(2)]
    d = FlowMixture(parts)()
    assert d.sample((0,)).shape == (0, 2)
    assert d.log_prob(d.sample((0,))).shape == (0,)


def test_errors():
    text = r"one common event_shape .* got event_shapes \[\(1,\), \(2,\)\]"
    with pytest.raises(ShapeError, match=text):
        FlowMixture([at(0.0), at(0.0, 0.0)])
    with pytest.raises(ShapeError, match="FlowMixture expected at least one flow"):
        FlowMixture([])
    text = "FlowMixture expected 2 positive weights, one for each flow, but got [1.0]. They"
    with pytest.raises(ShapeError, match=re.escape(text)):
        FlowMixture([at(0.0), at(1.0)], [1.0])
    with pytest.raises(ShapeError, match="positive weights"):
        FlowMixture([at(0.0), at(1.0)], [1.0, 0.0])
    with pytest.raises(ShapeError, match="expected flows of values of one space, but got .*Inter"):
        FlowMixture([at(0.0), ncsf(1)])
    with pytest.raises(ContextError, match="since conditional_weights=True, but got plain ones"):
        FlowMixture([at(0.0), at(1.0)], conditional_weights=True)
    with pytest.raises(ContextError, match="This mixture expected a context of shape"):
        make(2)()
    text = "This mixture takes no context, but got one of shape (4, 2). Build its flows with"
    with pytest.raises(ContextError, match=re.escape(text)):
        make()(torch.zeros(4, 2))
    with pytest.raises(DataError, match="one at least for each group"):
        FlowMixture([at(0.0), at(1.0)]).initialize(torch.zeros(1, 1))


@pytest.mark.parametrize("alike", [True, False])
def test_inference_mode(alike):
    mixture = FlowMixture([at(2.0, -1.0), at(0.0, 1.0)]) if alike else make()
    with torch.inference_mode():
        value = mixture().sample((5,))
        log_prob = mixture().log_prob(value)
        values, _ = mixture().rsample_components((5,))
        site = pyro.sample("z", mixture())
    assert value.is_inference()
    assert site.shape == (2,)
    assert values.shape[1:] == (5, 2)
    assert torch.allclose(log_prob, mixture.log_prob(value.clone()))


def _mlp(**options):
    return partial(MLP, hidden_dims=(4,), **options)


@pytest.mark.parametrize(
    "pair",
    [
        lambda: (Cayley(2), Cayley(2, rate=0.1)),
        lambda: [
            Coupling(2, Affine(), [True, False], conditioner=_mlp(reach=reach))
            for reach in (0.5, 10.0)
        ],
        lambda: [
            Coupling(2, Affine(), [True, False], conditioner=_mlp(activation=activation))
            for activation in (torch.tanh, torch.relu)
        ],
        lambda: [AffineCoupling(2, log_scale_bound=bound) for bound in (0.1, 3.0)],
    ],
)
def test_flows_that_differ_in_an_option_are_not_stacked(pair):
    parts = [randomise(Flow([layer])) for layer in pair()]
    mixture = FlowMixture(parts)
    x = 3 * torch.randn(5, 2)
    log_prob = torch.stack([part.log_prob(x) for part in parts])
    expected = torch.logsumexp(log_prob, 0) - math.log(2)
    torch.testing.assert_close(mixture.log_prob(x), expected)


def test_flows_whose_locations_are_counted_in_other_units_are_still_stacked():
    made = [Flow([CholeskyAffine(2)]) for _ in range(2)]
    for scale, flow in zip((0.1, 30.0), made, strict=True):
        affine = flow.transform.layers[0]
        affine.set(loc=torch.tensor([1.0, -2.0]) * scale, scale_tril=scale * torch.eye(2))
        affine.measure_in_scales()
    assert Stacked.alike(made)
    x = torch.randn(5, 2)
    expected = torch.stack([flow.log_prob(x) for flow in made])
    torch.testing.assert_close(Stacked(made).log_prob(x), expected)
