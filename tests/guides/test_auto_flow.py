# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""AutoFlow inside Pyro's own inference, and by itself."""

import copy
import functools
import io
import pickle
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints, transforms
from pyro.infer import (
    MCMC,
    NUTS,
    SVI,
    JitTrace_ELBO,
    JitTraceEnum_ELBO,
    JitTraceGraph_ELBO,
    JitTraceMeanField_ELBO,
    Predictive,
    RenyiELBO,
    ReweightedWakeSleep,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
    config_enumerate,
)
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiscreteParallel,
    AutoGuideList,
    AutoNormal,
    init_to_feasible,
    init_to_mean,
    init_to_sample,
    init_to_value,
)
from pyro.infer.mcmc.util import initialize_model
from pyro.infer.reparam import NeuTraReparam
from pyro.nn import PyroModule, PyroSample
from pyro.optim import Adam, ClippedAdam
from torch.distributions import biject_to

from pyro_flows.errors import (
    ChangedModelError,
    DataError,
    DiscreteLatentError,
    GuideError,
    NoLatentsError,
    ShapeError,
    SubsampledLatentError,
    UnknownFlowError,
)
from pyro_flows.guides import AutoFlow
from pyro_flows.transforms import AffineCoupling, Compose, Permute

DATA = torch.tensor([0.3, -0.4, 1.2], dtype=torch.float64)
ELBOS = [
    Trace_ELBO,
    TraceGraph_ELBO,
    TraceEnum_ELBO,
    TraceMeanField_ELBO,
    RenyiELBO,
    JitTrace_ELBO,
    JitTraceGraph_ELBO,
    JitTraceEnum_ELBO,
    JitTraceMeanField_ELBO,
    TraceTailAdaptive_ELBO,
]


def funnel(data=DATA):
    """A number, a positive number, and a plate of latents."""
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("group", len(data)):
        x = pyro.sample("x", dist.Normal(loc, scale))
        pyro.sample("obs", dist.Normal(x, 1.0), obs=data)


def every_support():
    """Latents of every kind of support, with plates and events."""
    pyro.sample("real", dist.Normal(0.0, 1.0))
    pyro.sample("positive", dist.Gamma(2.0, 1.0))
    pyro.sample("interval", dist.Beta(2.0, 3.0))
    pyro.sample("simplex", dist.Dirichlet(torch.ones(3)))
    pyro.sample("corr", dist.LKJCholesky(3, torch.tensor(2.0)))
    normal = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    pyro.sample("ordered", dist.TransformedDistribution(normal, [transforms.OrderedTransform()]))
    with pyro.plate("outer", 2, dim=-2), pyro.plate("inner", 4, dim=-1):
        pyro.sample("plated", dist.Dirichlet(torch.ones(3)))


SHAPES = {
    "real": (),
    "positive": (),
    "interval": (),
    "simplex": (3,),
    "corr": (3, 3),
    "ordered": (3,),
    "plated": (2, 4, 3),
}


def regression(x, y=None):
    weight = pyro.sample("weight", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    sigma = pyro.sample("sigma", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        return pyro.sample("obs", dist.Normal(x @ weight, sigma), obs=y)


def perturb(guide, size=0.1):
    """Move every parameter off its start."""
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return guide


def one_by_one(guide, z):
    """Values, and log density by an inverse pass, of packed vectors: a plain recomputation."""
    log_q = guide._flow.log_prob(z.detach().clone() if not z.requires_grad else z + 0.0)
    values = guide.unpack(z)
    ladj = 0.0
    for name, site in guide.prototype_trace.iter_stochastic_nodes():
        transform = biject_to(site["fn"].support)
        u = transform.inv(values[name])
        ladj = ladj + transform.log_abs_det_jacobian(u, values[name]).reshape(len(z), -1).sum(-1)
    return values, log_q - ladj


def log_joint(model, values, *args):
    """Sum of log densities of a model at each row of values."""
    rows = []
    for i in range(len(next(iter(values.values())))):
        data = {name: value[i] for name, value in values.items()}
        rows.append(poutine.trace(poutine.condition(model, data)).get_trace(*args).log_prob_sum())
    return torch.stack(rows)


@contextmanager
def counted_inverses(monkeypatch) -> Iterator[list[int]]:
    calls = []
    inverse = Compose.inverse_and_ladj
    monkeypatch.setattr(
        Compose, "inverse_and_ladj", lambda *args: (calls.append(1), inverse(*args))[1]
    )
    yield calls


# Pyro's objectives.


@pytest.mark.parametrize("particles", [2, 4])
@pytest.mark.parametrize("Elbo", ELBOS)
def test_every_elbo_makes_a_step_without_an_inverse(Elbo, particles, monkeypatch):
    vectorised = particles > 2 or Elbo is TraceTailAdaptive_ELBO
    options = {"num_particles": particles, "vectorize_particles": vectorised}
    if Elbo.__name__.startswith("Jit"):
        options["ignore_jit_warnings"] = True
    elbo = Elbo(strict_enumeration_warning=False, max_plate_nesting=1, **options)
    guide = AutoFlow(funnel).setup()
    before = {name: p.detach().clone() for name, p in guide.named_parameters()}
    svi = SVI(funnel, guide, Adam({"lr": 1e-3}), elbo)
    with counted_inverses(monkeypatch) as calls:
        for _ in range(3):
            loss = torch.tensor(svi.step())
            # Pyro's tail-adaptive objective has a gradient only: its value is inf for every guide.
            assert torch.isfinite(loss) or Elbo is TraceTailAdaptive_ELBO
    assert not calls
    changed = [n for n, p in guide.named_parameters() if not torch.equal(p, before[n])]
    assert len(changed) >= 0.5 * len(before)  # a zeroed last layer hides the ones before it


def test_elbos_agree_on_the_value():
    guide = perturb(AutoFlow(funnel).setup())
    losses = []
    for Elbo in (Trace_ELBO, TraceGraph_ELBO, TraceEnum_ELBO):
        pyro.set_rng_seed(3)
        elbo = Elbo(
            num_particles=7,
            vectorize_particles=True,
            max_plate_nesting=1,
            strict_enumeration_warning=False,
        )
        losses.append(elbo.loss(funnel, guide))
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-10)


def test_elbo_equals_a_plain_recomputation():
    guide = perturb(AutoFlow(funnel).setup())
    elbo = Trace_ELBO(num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    pyro.set_rng_seed(1)
    loss = elbo.loss(funnel, guide)
    pyro.set_rng_seed(1)
    z = guide.get_posterior().expand([5, 1]).sample()[:, 0]
    with torch.no_grad():
        values, log_q = one_by_one(guide, z)
    expected = -(log_joint(funnel, values) - log_q).mean()
    assert loss == pytest.approx(float(expected), abs=1e-9)


def gradients(guide):
    return {n: p.grad.clone() for n, p in guide.named_parameters() if p.grad is not None}


def assert_same_gradients(first, second):
    assert first.keys() == second.keys()
    for name, grad in first.items():
        torch.testing.assert_close(grad, second[name], atol=1e-9, rtol=1e-7, msg=name)


@pytest.mark.parametrize("vectorised", [True, False])
def test_wake_phase_gradient_equals_a_plain_recomputation(vectorised):
    guide = perturb(AutoFlow(funnel).setup())
    elbo = ReweightedWakeSleep(
        num_particles=6,
        vectorize_particles=vectorised,
        max_plate_nesting=1,
        model_has_params=False,
    )
    pyro.set_rng_seed(2)
    with torch.no_grad():
        draws = [
            guide.get_posterior().expand([6, 1]).sample()[:, 0]
            if vectorised
            else torch.stack([guide.get_posterior().sample() for _ in range(6)])
        ]
    pyro.set_rng_seed(2)
    elbo.loss_and_grads(funnel, guide)
    got = gradients(guide)
    guide.zero_grad()

    values, log_q = one_by_one(guide, draws[0])
    values = {name: value.detach() for name, value in values.items()}
    weight = torch.softmax(log_joint(funnel, values) - log_q, 0).detach()
    # The Jacobian to the supports is a constant at given values.
    (-(weight * guide._flow.log_prob(draws[0])).sum()).backward()
    assert_same_gradients(got, gradients(guide))


def test_importance_weighted_gradient_equals_a_plain_recomputation():
    guide = perturb(AutoFlow(funnel).setup())
    elbo = RenyiELBO(alpha=0, num_particles=6, vectorize_particles=True, max_plate_nesting=1)
    pyro.set_rng_seed(2)
    elbo.loss_and_grads(funnel, guide)
    got = gradients(guide)
    guide.zero_grad()

    pyro.set_rng_seed(2)
    z = guide.get_posterior().expand([6, 1]).rsample()[:, 0]
    values, log_q = one_by_one(guide, z)
    (-torch.logsumexp(log_joint(funnel, values) - log_q, 0)).backward()
    assert_same_gradients(got, gradients(guide))


def test_exact_posterior_of_a_normal_model():
    data = torch.tensor([1.0, 2.0, 0.5])

    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            pyro.sample("obs", dist.Normal(loc, 1.0), obs=data)

    guide = AutoFlow(model).setup()
    elbo = JitTrace_ELBO(num_particles=64, vectorize_particles=True, ignore_jit_warnings=True)
    svi = SVI(model, guide, ClippedAdam({"lr": 0.03, "lrd": 0.1 ** (1 / 300)}), elbo)
    for _ in range(300):
        svi.step()
    draws = guide.sample_posterior(20_000)["loc"]
    assert float(draws.mean()) == pytest.approx(3.5 / 4, abs=0.03)
    assert float(draws.std()) == pytest.approx(0.5, rel=0.05)
    covariance = torch.eye(3) + 1.0
    evidence = dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(data)
    assert Trace_ELBO(2000, vectorize_particles=True).loss(model, guide) == pytest.approx(
        -float(evidence), abs=0.02
    )


# Discrete latents.


@config_enumerate
def mixture(data=DATA):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("component", 2):
        locs = pyro.sample("locs", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample(
            "obs",
            dist.Normal(locs[..., z] if locs.dim() == 1 else locs.gather(-1, z), 1.0),
            obs=data,
        )


@config_enumerate
def coin_mixture(data=DATA):
    """Also right with vectorised particles."""
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    low = pyro.sample("low", dist.Normal(-1.0, 1.0))
    high = pyro.sample("high", dist.Normal(1.0, 1.0))
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Bernoulli(p))
        pyro.sample("obs", dist.Normal(z * high + (1 - z) * low, 1.0), obs=data)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("Elbo", [TraceEnum_ELBO, JitTraceEnum_ELBO])
@pytest.mark.parametrize("particles", [1, 5])
def test_enumerated_sites_are_left_to_the_elbo(Elbo, hidden, particles):
    guided = poutine.block(coin_mixture, hide=["z"]) if hidden else coin_mixture
    guide = AutoFlow(guided).setup()
    assert guide.latent_dim == 3
    options = {"ignore_jit_warnings": True} if Elbo is JitTraceEnum_ELBO else {}
    elbo = Elbo(particles, vectorize_particles=particles > 1, max_plate_nesting=1, **options)
    svi = SVI(coin_mixture, guide, Adam({"lr": 1e-3}), elbo)
    losses = [svi.step() for _ in range(3)]
    assert torch.isfinite(torch.tensor(losses)).all()
    assert set(guide()) == {"p", "low", "high"}


def test_enumerated_elbo_equals_the_hand_computed_sum():
    guide = perturb(AutoFlow(coin_mixture).setup())
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    pyro.set_rng_seed(5)
    loss = elbo.loss(coin_mixture, guide)
    pyro.set_rng_seed(5)
    z = guide.get_posterior().sample()[None]
    with torch.no_grad():
        values, log_q = one_by_one(guide, z)
    p, low, high = (values[name][0] for name in ("p", "low", "high"))
    prior = (
        dist.Beta(2.0, 2.0).log_prob(p)
        + dist.Normal(-1.0, 1.0).log_prob(low)
        + dist.Normal(1.0, 1.0).log_prob(high)
    )
    either = torch.stack(
        [
            p.log() + dist.Normal(high, 1.0).log_prob(DATA),
            (1 - p).log() + dist.Normal(low, 1.0).log_prob(DATA),
        ]
    )
    expected = prior + either.logsumexp(0).sum() - log_q[0]
    assert loss == pytest.approx(-float(expected), abs=1e-9)


def test_discrete_latents_in_a_guide_list():
    guide = AutoGuideList(mixture)
    guide.append(AutoFlow(poutine.block(mixture, hide=["z"])))
    guide.append(AutoDiscreteParallel(poutine.block(mixture, expose=["z"])))
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss_and_grads(mixture, guide)
    assert torch.isfinite(torch.tensor(loss))


# Together with other guides and handlers.


@pytest.mark.parametrize("Elbo", [Trace_ELBO, TraceGraph_ELBO, JitTrace_ELBO])
def test_two_flows_and_another_guide_in_a_list(Elbo):
    guide = AutoGuideList(funnel)
    guide.append(AutoFlow(poutine.block(funnel, expose=["loc"])))
    guide.append(AutoDelta(poutine.block(funnel, expose=["scale"])))
    guide.rest = AutoFlow(poutine.block(funnel, expose=["x"]))
    guide()
    options = {"ignore_jit_warnings": True} if Elbo is JitTrace_ELBO else {}
    svi = SVI(funnel, guide, Adam({"lr": 1e-2}), Elbo(**options))
    before = {n: p.detach().clone() for n, p in guide.named_parameters()}
    for _ in range(2):
        svi.step()
    for part in ("0.flow", "1.", "rest.flow"):
        assert any(
            not torch.equal(p, before[n]) for n, p in guide.named_parameters() if part in n
        ), part
    assert guide.median()["x"].shape == (3,)
    names = set(poutine.trace(guide).get_trace().nodes)
    assert "_AutoGuideList.0_latent" in names
    assert "_AutoGuideList.rest_latent" in names


def test_nested_lists_keep_their_names():
    inner_model = poutine.block(funnel, expose=["x"])
    guide = AutoGuideList(funnel)
    guide.append(AutoNormal(poutine.block(funnel, hide=["x"])))
    inner = AutoGuideList(inner_model)
    inner.flow_part = AutoFlow(inner_model)
    guide.append(inner)
    SVI(funnel, guide, Adam({"lr": 1e-2}), Trace_ELBO()).step()
    trace = poutine.trace(guide).get_trace()
    assert "_AutoGuideList.1.flow_part_latent" in trace.nodes
    assert all(
        name.startswith(("AutoGuideList.0", "AutoGuideList.1.flow_part"))
        for name in trace.param_nodes
    )


@pytest.mark.parametrize("sample_shape", [(), (6,), (5, 4)])
def test_replay_under_outer_plates(sample_shape):
    guide = AutoFlow(every_support)
    with pyro.plate_stack("particles", sample_shape, rightmost_dim=-3):
        trace = poutine.trace(guide).get_trace()
        poutine.replay(every_support, trace)()
    for name, shape in SHAPES.items():
        plates = (1, 1) if sample_shape and name != "plated" else ()
        assert trace.nodes[name]["value"].shape == (*sample_shape, *plates, *shape)
    trace.compute_log_prob()


def test_predictive_and_plates_of_draws():
    x = torch.randn(7, 2)
    guide = AutoFlow(regression).setup(x, torch.randn(7))
    draws = Predictive(regression, guide=guide, num_samples=5)(x)
    assert draws["obs"].shape == (5, 7)
    with pyro.plate("draws", 11, dim=-2):
        assert guide(x)["weight"].shape == (11, 1, 2)


@pytest.mark.parametrize("jit", [False, True])
def test_neutra(jit):
    guide = AutoFlow(funnel).setup()
    svi = SVI(funnel, guide, Adam({"lr": 1e-3}), Trace_ELBO())
    for _ in range(5):
        svi.step()
    neutra = NeuTraReparam(guide.requires_grad_(False))
    kernel = NUTS(
        neutra.reparam(funnel), jit_compile=jit, ignore_jit_warnings=True, max_tree_depth=3
    )
    mcmc = MCMC(kernel, num_samples=4, warmup_steps=4, disable_progbar=True)
    mcmc.run()
    latent = mcmc.get_samples()["loc_shared_latent"]
    draws = neutra.transform_sample(latent.unsqueeze(-2))
    assert set(draws) == {"loc", "scale", "x"}
    assert draws["x"].shape == (4, 3)


def test_neutra_has_the_right_jacobian():
    guide = perturb(AutoFlow(every_support).setup(), 0.02)
    neutra = NeuTraReparam(guide)
    reparametrised = neutra.reparam(every_support)
    _, potential, to_unconstrained, _ = initialize_model(every_support)
    start, neutra_potential, _, _ = initialize_model(reparametrised)
    (z,) = start.values()
    values = neutra.transform_sample(z)
    plain = potential({name: to_unconstrained[name](v) for name, v in values.items()})
    _, ladj = guide.get_transform().forward_and_ladj(z)
    torch.testing.assert_close(neutra_potential(start), plain - ladj)


def test_posterior_offers_pyros_transforms():
    guide = perturb(AutoFlow(funnel).setup())
    posterior = guide.get_posterior()
    plain = dist.TransformedDistribution(guide.get_base_dist(), posterior.transforms)
    z = posterior.sample((4,))
    torch.testing.assert_close(posterior.log_prob(z), plain.log_prob(z))


# Where it starts.


def test_init_loc_fn_is_the_start():
    start = {"loc": torch.tensor(0.7), "scale": torch.tensor(2.5), "x": torch.randn(3)}
    guide = AutoFlow(funnel, init_loc_fn=init_to_value(values=start), init_scale=0.01).setup()
    median = guide.median()
    for name, value in start.items():
        torch.testing.assert_close(median[name], value, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("init_loc_fn", [init_to_feasible, init_to_mean, init_to_sample])
def test_pyros_init_functions(init_loc_fn):
    guide = AutoFlow(funnel, init_loc_fn=init_loc_fn)
    assert torch.isfinite(torch.tensor(Trace_ELBO().loss(funnel, guide)))


@pytest.mark.parametrize("init_scale", [1e-1, 1e-4, 1e-8, 3])
def test_init_scale_is_the_standard_deviation_at_the_start(init_scale):
    guide = AutoFlow(every_support, init_scale=init_scale).setup()
    z = guide.get_posterior().sample((4000,))
    torch.testing.assert_close(
        z.std(0), torch.full((guide.latent_dim,), float(init_scale)), rtol=0.1, atol=0
    )
    _, scale = guide._loc_scale()
    assert float(scale.mean()) == pytest.approx(init_scale, rel=0.1)


def test_default_start_is_the_prior_median():
    def model():
        pyro.sample("x", dist.Normal(3.0, 1.0))
        pyro.sample("y", dist.LogNormal(1.0, 0.3))

    median = AutoFlow(model).setup().median()
    assert float(median["x"]) == pytest.approx(3.0, abs=0.5)
    assert float(median["y"]) == pytest.approx(torch.tensor(1.0).exp().item(), rel=0.3)


def test_flat_priors():
    data = torch.randn(50)

    def model():
        loc = pyro.sample("loc", dist.ImproperUniform(constraints.real, (), ()))
        scale = pyro.sample("scale", dist.ImproperUniform(constraints.positive, (), ()))
        cut = pyro.sample("cut", dist.ImproperUniform(constraints.ordered_vector, (), (3,)))
        pyro.factor("prior", -0.5 * cut.pow(2).sum(-1))
        with pyro.plate("data", 50):
            pyro.sample("obs", dist.Normal(loc, scale), obs=data)

    guide = AutoFlow(model)
    assert torch.isfinite(torch.tensor(Trace_ELBO().loss(model, guide)))
    draws = guide.sample_posterior(20)
    assert (draws["scale"] > 0).all()
    assert (draws["cut"].diff(dim=-1) > 0).all()


# The shapes of what it gives back.


@pytest.mark.parametrize("flow", ["default", "nice", "realnvp", "nsf"])
def test_draws_lie_in_every_support(flow):
    guide = perturb(AutoFlow(every_support, flow=flow).setup())
    draws = guide.sample_posterior(9)
    for name, site in guide.prototype_trace.iter_stochastic_nodes():
        assert draws[name].shape == (9, *SHAPES[name])
        assert site["fn"].support.check(draws[name]).all(), name
    assert guide.latent_dim == 1 + 1 + 1 + 2 + 3 + 3 + 16


def test_one_dimensional_model():
    def model():
        pyro.sample("x", dist.LogNormal(0.0, 1.0))

    guide = perturb(AutoFlow(model).setup())
    x = torch.linspace(1e-3, 60.0, 200_001)
    with torch.no_grad():
        area = torch.trapezoid(guide.log_prob({"x": x}).exp(), x)
    assert float(area) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("batch", [(), (4,), (2, 3)])
def test_log_prob_of_given_values(batch):
    guide = perturb(AutoFlow(every_support).setup(), 0.02)
    z = guide.get_posterior().sample((6,))
    values, expected = one_by_one(guide, z)
    count = torch.Size(batch).numel()
    chosen = {n: v[:count].reshape(batch + v.shape[1:]) for n, v in values.items()}
    got = guide.log_prob(chosen)
    assert got.shape == batch
    torch.testing.assert_close(got.reshape(-1), expected[:count])


def test_log_prob_is_the_guides_own_trace():
    guide = perturb(AutoFlow(every_support).setup(), 0.02)
    trace = poutine.trace(guide).get_trace()
    values = {name: trace.nodes[name]["value"] for name in SHAPES}
    torch.testing.assert_close(guide.log_prob(values), trace.log_prob_sum())


def test_log_prob_wants_every_site_once():
    guide = AutoFlow(funnel).setup()
    with pytest.raises(GuideError, match="expected values for the sites.*'loc'.*Give every"):
        guide.log_prob({"loc": torch.tensor(0.0)})


def test_median_and_quantiles():
    guide = AutoFlow(every_support, init_scale=0.5).setup()
    state = torch.get_rng_state()
    quantiles, median = guide.quantiles([0.1, 0.5, 0.9]), guide.median()
    assert torch.equal(torch.get_rng_state(), state)
    for name, shape in SHAPES.items():
        assert quantiles[name].shape == (3, *shape)
        assert median[name].shape == shape
        assert not median[name].requires_grad
        torch.testing.assert_close(median[name], quantiles[name][1])
    expected = guide.affine.loc[0] + 0.5 * dist.Normal(0.0, 1.0).icdf(torch.tensor([0.1, 0.9]))
    torch.testing.assert_close(quantiles["real"][[0, 2]], expected.detach(), atol=0.02, rtol=0)
    assert torch.equal(guide.quantiles(torch.tensor([0.5]))["simplex"][0], median["simplex"])
    assert (quantiles["positive"].diff() > 0).all()


def test_quantiles_are_those_of_draws():
    guide = perturb(AutoFlow(funnel, init_scale=0.5).setup())
    draws = guide.sample_posterior(40_000)
    for q, name in ((0.05, "scale"), (0.5, "loc"), (0.95, "loc")):
        got = guide.quantiles([q])[name][0]
        assert float((draws[name] <= got).double().mean()) == pytest.approx(q, abs=0.01)


# Masks.


def masked_model(mask):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4), poutine.mask(mask=mask):
        x = pyro.sample("x", dist.LogNormal(loc, 1.0))
        pyro.sample("obs", dist.Normal(x, 1.0), obs=torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_masked_elements_are_not_packed_and_the_elbo_is_the_hand_computed_one():
    mask = torch.tensor([True, False, True, False])
    guide = perturb(AutoFlow(masked_model).setup(mask))
    assert guide.latent_dim == 3
    pyro.set_rng_seed(4)
    loss = Trace_ELBO().loss(masked_model, guide, mask)
    pyro.set_rng_seed(4)
    posterior = guide.get_posterior()
    z = posterior.sample()
    loc, x = z[0], z[1:].exp()
    expected = (
        dist.Normal(0.0, 1.0).log_prob(loc)
        + dist.LogNormal(loc, 1.0).log_prob(x).sum()
        + dist.Normal(x, 1.0).log_prob(torch.tensor([1.0, 3.0])).sum()
        - (guide._flow.log_prob(z).detach() - z[1:].sum())
    )
    assert loss == pytest.approx(-float(expected), abs=1e-9)
    draws = guide.sample_posterior(5)["x"]
    assert draws.shape == (5, 4)
    assert (draws[:, [1, 3]] == draws[0, [1, 3]]).all()
    assert draws[:, 0].unique().numel() == 5


@pytest.mark.parametrize("particles", [1, 3])
def test_masks_inside_a_distribution(particles):
    def model():
        pyro.sample("a", dist.Normal(0.0, 1.0).expand([2]).mask(torch.arange(2) > 0).to_event(1))
        with pyro.plate("p", 3):
            pyro.sample("b", dist.Dirichlet(torch.ones(4)).mask(torch.tensor([True, False, True])))

    guide = AutoFlow(model)
    elbo = Trace_ELBO(particles, vectorize_particles=True, max_plate_nesting=1)
    assert torch.isfinite(torch.tensor(elbo.loss(model, guide)))
    assert guide.latent_dim == 1 + 2 * 3
    values = guide.sample_posterior(5)
    torch.testing.assert_close(values["b"].sum(-1), torch.ones(5, 3))
    torch.testing.assert_close(guide.log_prob(values).shape, torch.Size((5,)))


def missing(data):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample(
            "y", dist.Normal(loc, 1.0), obs=data, obs_mask=torch.tensor([True, False, True])
        )


def test_missing_observations():
    data = torch.tensor([1.0, 0.0, 3.0])
    guide = perturb(AutoFlow(missing).setup(data))
    assert guide.latent_dim == 2  # loc and the one missing value
    pyro.set_rng_seed(4)
    loss = Trace_ELBO().loss(missing, guide, data)
    pyro.set_rng_seed(4)
    z = guide.get_posterior().sample()
    y = torch.stack([data[0], z[1], data[2]])
    expected = dist.Normal(0.0, 1.0).log_prob(z[0]) + dist.Normal(z[0], 1.0).log_prob(y).sum()
    with torch.no_grad():
        expected = expected - guide._flow.log_prob(z)
    assert loss == pytest.approx(-float(expected), abs=1e-9)


def test_missing_values_are_not_nan():
    # A masked-out NaN makes the gradient NaN: 0 * NaN.
    with pytest.raises(
        DataError, match="'y_observed'.*1 of 3 values are NaN.*put any number there"
    ):
        AutoFlow(missing).setup(torch.tensor([1.0, float("nan"), 3.0]))


def test_everything_masked_out():
    def model():
        with poutine.mask(mask=torch.tensor(False)):
            pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(NoLatentsError, match="isn't masked out. Check the masks"):
        AutoFlow(model).setup()


# Floating types and devices.


@contextmanager
def default_dtype(dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    ("prior", "data", "dtype", "expected"),
    [
        (torch.float32, torch.float64, None, torch.float64),
        (torch.float64, torch.float32, None, torch.float64),
        (torch.float32, torch.float32, None, torch.float32),
        (None, torch.float64, None, torch.float64),  # numbers: the default, float32 here
        (None, torch.float32, torch.float64, torch.float64),
    ],
)
def test_the_widest_floating_type_is_taken(prior, data, dtype, expected):
    y = torch.ones(3, dtype=data)

    def model():
        zero = 0.0 if prior is None else torch.zeros((), dtype=prior)
        x = pyro.sample("x", dist.Normal(zero, 5.0))
        with pyro.plate("data", 3):
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    with default_dtype(torch.float32):
        guide = AutoFlow(model, dtype=dtype).setup()
        assert {p.dtype for p in guide.parameters()} == {expected}
        assert guide.sample_posterior(2)["x"].dtype == expected
        SVI(model, guide, Adam({"lr": 1e-3}), Trace_ELBO()).step()


def test_a_factor_says_what_floating_type_a_flat_prior_has():
    """A flat site has no type of its own; its guide must not round what the factor computes."""

    def model():
        z = pyro.sample("z", dist.ImproperUniform(constraints.real, (), (2,)))
        pyro.factor("density", -0.5 * z.double().square().sum(-1))

    assert {p.dtype for p in AutoFlow(model).setup().parameters()} == {torch.float64}


def test_flat_priors_take_the_datas_type():
    y = torch.randn(4, 2, dtype=torch.float64)

    def model():
        weight = pyro.sample("w", dist.ImproperUniform(constraints.real_vector, (), (2,)))
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(y @ weight, 1.0), obs=y[:, 0])

    with default_dtype(torch.float32):
        guide = AutoFlow(model).setup()
        assert {p.dtype for p in guide.parameters()} == {torch.float64}
        SVI(model, guide, Adam({"lr": 1e-3}), Trace_ELBO()).step()


def test_no_implicit_device():
    zero, one, data = torch.zeros(()), torch.ones(()), torch.tensor([0.5, 1.5])
    concentration = torch.ones(3)
    mask = torch.tensor([True, False])

    def model():
        loc = pyro.sample("loc", dist.Normal(zero, one))
        pyro.sample("w", dist.Dirichlet(concentration))
        scale = pyro.sample("scale", dist.LogNormal(zero, one))
        with pyro.plate("data", 2, device="cpu"), poutine.mask(mask=mask):
            x = pyro.sample("x", dist.Normal(loc, scale))
            pyro.sample("y", dist.Normal(x, one), obs=data)

    guide = perturb(AutoFlow(model).setup())
    values = guide.sample_posterior(3)

    def everything():
        # A generator and noise of torch's own land on the default device: hence the same values.
        return [
            guide.log_prob(values),
            guide._flow.transform(torch.zeros(2, guide.latent_dim, device="cpu")),
            *(v for _, v in sorted(guide.unpack(z).items())),
        ]

    z = torch.zeros(2, guide.latent_dim)
    expected = everything()
    torch.set_default_device("meta")
    try:
        got = everything()
    finally:
        torch.set_default_device(None)
    for a, b in zip(got, expected, strict=True):
        assert a.device.type == "cpu"
        torch.testing.assert_close(a, b)


# Setting up, saving, copying.


def test_eager_setup_makes_the_parameters():
    guide = AutoFlow(funnel)
    assert not list(guide.parameters())
    assert guide.setup() is guide
    count = len(list(guide.parameters()))
    guide()
    assert len(list(guide.parameters())) == count
    assert guide.get_transform().dim == guide.latent_dim == 5


@pytest.mark.parametrize(
    "use",
    [
        lambda guide: guide.get_transform(),
        lambda guide: guide.get_posterior(),
        lambda guide: guide.load_state_dict({}),
        lambda guide: guide.affine,
    ],
)
def test_use_before_setup_says_what_to_do(use):
    with pytest.raises(GuideError, match=r"Call guide.setup\(\*args, \*\*kwargs\) first"):
        use(AutoFlow(funnel))


def trained():
    guide = AutoFlow(funnel).setup()
    svi = SVI(funnel, guide, Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(3):
        svi.step()
    return guide


def assert_same_density(first, second):
    values = first.sample_posterior(4)
    torch.testing.assert_close(first.log_prob(values), second.log_prob(values))


def test_state_dict_onto_a_fresh_guide():
    guide = trained()
    file = io.BytesIO()
    torch.save(guide.state_dict(), file)
    file.seek(0)
    pyro.clear_param_store()
    fresh = AutoFlow(funnel).setup()
    fresh.load_state_dict(torch.load(file))
    assert_same_density(guide, fresh)


@pytest.mark.parametrize("how", ["pickle", "torch", "deepcopy"])
def test_copies_after_use(how):
    guide = trained()
    if how == "pickle":
        other = pickle.loads(pickle.dumps(guide))
    elif how == "torch":
        file = io.BytesIO()
        torch.save(guide, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = copy.deepcopy(guide)
        assert other.model is guide.model
    assert guide.model is not None  # the live guide keeps its model
    assert_same_density(guide, other)
    assert set(other()) == {"loc", "scale", "x"}
    before = guide.affine.loc.detach().clone()
    with torch.no_grad():
        other.affine.loc.add_(1.0)
    assert torch.equal(guide.affine.loc, before)
    assert torch.isfinite(
        torch.tensor(SVI(funnel, guide, Adam({"lr": 1e-3}), Trace_ELBO()).step())
    )


def test_a_loaded_guide_takes_new_data():
    x = torch.randn(7, 2)
    guide = AutoFlow(regression).setup(x, torch.randn(7))
    other = pickle.loads(pickle.dumps(guide))
    draws = Predictive(regression, guide=other, num_samples=3)(torch.randn(4, 2))
    assert draws["obs"].shape == (3, 4)


def test_a_second_guide_trains_its_own_parameters():
    first = trained()
    before = {n: p.detach().clone() for n, p in first.named_parameters()}
    second = AutoFlow(funnel).setup()
    start = second.affine.loc.detach().clone()
    svi = SVI(funnel, second, Adam({"lr": 1e-2}), Trace_ELBO())
    for _ in range(3):
        svi.step()
    assert not torch.equal(second.affine.loc, start)
    for name, parameter in first.named_parameters():
        assert torch.equal(parameter, before[name])
    assert len(pyro.get_param_store()) == 2 * len(before)


def test_parameter_store_restores_a_fresh_guide(tmp_path):
    guide = trained()
    pyro.get_param_store().save(tmp_path / "store")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store")
    fresh = AutoFlow(funnel)
    fresh()
    assert_same_density(guide, fresh)
    SVI(funnel, fresh, Adam({"lr": 1e-2}), Trace_ELBO()).step()
    stored = pyro.get_param_store()._params[
        "AutoFlow.flow." + next(fresh.flow.named_parameters())[0]
    ]
    assert stored is next(fresh.flow.parameters())


def test_a_store_of_another_model_is_refused(tmp_path):
    trained()
    pyro.get_param_store().save(tmp_path / "store")
    pyro.clear_param_store()
    pyro.get_param_store().load(tmp_path / "store")
    with pytest.raises(GuideError, match="saved from another model or flow: call pyro.clear"):
        AutoFlow(every_support)()


def test_local_parameters():
    # Without the store, Pyro's objectives are trained by torch's optimisers.
    with pyro.settings.context(module_local_params=True):
        guide = AutoFlow(funnel).setup()
        elbo = Trace_ELBO()(funnel, guide)
        optimiser = torch.optim.Adam(elbo.parameters(), lr=1e-2)
        before = guide.affine.loc.detach().clone()
        elbo().backward()
        optimiser.step()
        assert not torch.equal(guide.affine.loc, before)
        assert len(pyro.get_param_store()) == 0


def test_frozen_guide_announces_nothing():
    guide = AutoFlow(funnel).setup().requires_grad_(False)
    assert not poutine.trace(guide).get_trace().param_nodes


# Flows of other kinds.


def test_flow_from_a_function():
    def layers(dim):
        return [AffineCoupling(dim), Permute(dim), AffineCoupling(dim)]

    guide = AutoFlow(funnel, flow=layers).setup()
    names = [type(layer).__name__ for layer in guide.get_transform().layers]
    assert names[:4] == ["AffineCoupling", "Permute", "AffineCoupling", "CholeskyAffine"]
    assert torch.isfinite(torch.tensor(Trace_ELBO().loss(funnel, guide)))


def test_pyro_module_model():
    class Model(PyroModule):
        def __init__(self):
            super().__init__()
            self.linear = PyroModule[torch.nn.Linear](2, 1)
            self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))

        def forward(self, x, y=None):
            mean = self.linear(x).squeeze(-1)
            with pyro.plate("data", len(x)):
                return pyro.sample("obs", dist.Normal(mean, 1.0), obs=y)

    x, y = torch.randn(5, 2), torch.randn(5)
    model = Model()
    guide = AutoFlow(model)
    bias = model.linear.bias.detach().clone()
    SVI(model, guide, Adam({"lr": 1e-2}), Trace_ELBO()).step(x, y)
    assert set(guide(x, y)) == {"linear.weight"}
    assert not torch.equal(model.linear.bias, bias)  # trained along


# What it refuses, and how.


def subsampled(data, batch):
    with pyro.plate("data", len(data), subsample_size=batch):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("obs", dist.Normal(x, 1.0), obs=torch.zeros(batch))


def sequential():
    for i in pyro.plate("steps", 2):
        pyro.sample(f"x_{i}", dist.Normal(0.0, 1.0))


def discrete():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.sample("switch", dist.Bernoulli(0.5))
    pyro.sample("obs", dist.Normal(x, 1.0), obs=torch.tensor(0.0))


def nothing(y=None):
    pyro.sample("obs", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0) if y is None else y)


def with_nan():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 3):
        pyro.sample("obs", dist.Normal(x, 1.0), obs=torch.tensor([0.0, float("nan"), 1.0]))


@pytest.mark.parametrize(
    ("model", "args", "error", "text"),
    [
        (
            subsampled,
            (torch.zeros(10), 4),
            SubsampledLatentError,
            "'x' is local to the plate 'data'.*4 of 10.*AutoGuideList",
        ),
        (sequential, (), SubsampledLatentError, "'x_0'.*sequential plate 'steps'.*vectorised"),
        (
            discrete,
            (),
            DiscreteLatentError,
            "'switch' is discrete.*infer={'enumerate': 'parallel'}.*enumeration.html",
        ),
        (nothing, (), NoLatentsError, "found no latent variables. Check that"),
        (with_nan, (), DataError, "'obs'.*1 of 3 values are NaN. Drop those rows"),
    ],
)
def test_refusals_of_models(model, args, error, text):
    with pytest.raises(error, match=text):
        AutoFlow(model).setup(*args)
    with pytest.raises(error, match=text):
        AutoFlow(model)(*args)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"init_scale": 0.0}, GuideError, "expected init_scale > 0, but got 0.0"),
        ({"init_scale": -1}, GuideError, "expected init_scale > 0, but got -1"),
        ({"init_scale": float("nan")}, GuideError, "expected init_scale > 0, but got nan"),
        ({"init_scale": "big"}, GuideError, "expected init_scale > 0, but got 'big'"),
        ({"flow": "nfs"}, UnknownFlowError, "got 'nfs'.*Did you mean 'nsf'"),
    ],
)
def test_refusals_of_arguments(arguments, error, text):
    with pytest.raises(error, match=text):
        AutoFlow(funnel, **arguments)


def test_refuses_what_is_not_a_model():
    with pytest.raises(GuideError, match="a callable, but got int. Pass the function itself"):
        AutoFlow(3)


def test_refuses_a_flow_of_another_size():
    with pytest.raises(ShapeError, match="5 latent coordinates.*but got dim=3.*function of dim"):
        AutoFlow(funnel, flow=lambda dim: [AffineCoupling(3)]).setup()


def test_refuses_data_of_another_size():
    guide = AutoFlow(funnel).setup(DATA)
    with pytest.raises(ChangedModelError, match=re.escape("'x' of shape (3,)") + ".*new AutoFlow"):
        guide(torch.zeros(4))
    assert set(guide(DATA)) == {"loc", "scale", "x"}


def test_new_data_of_another_size_is_fine_where_no_latent_changes():
    guide = AutoFlow(regression).setup(torch.randn(7, 2), torch.randn(7))
    assert guide(torch.randn(3, 2), torch.randn(3))["weight"].shape == (2,)


def test_refuses_a_latent_that_became_data():
    def model(x=None):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        pyro.sample("y", dist.Normal(0.0, 1.0))

    guide = AutoFlow(model).setup()
    with pytest.raises(ChangedModelError, match="'x' is not a latent"):
        guide(torch.tensor(1.0))


def test_data_plate_may_be_subsampled():
    data = torch.randn(20)

    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 20, subsample_size=5) as index:
            pyro.sample("obs", dist.Normal(x, 1.0), obs=data[index])

    guide = AutoFlow(model)
    svi = SVI(model, guide, Adam({"lr": 1e-3}), Trace_ELBO())
    assert all(torch.isfinite(torch.tensor(svi.step())) for _ in range(3))
    assert guide.latent_dim == 1


def test_partials_of_the_class_serve_as_guide_factories():
    factory = functools.partial(AutoFlow, init_loc_fn=init_to_mean, flow="nsf")
    assert torch.isfinite(torch.tensor(Trace_ELBO().loss(funnel, factory(funnel))))


@pytest.mark.parametrize("parallel", [True, False])
def test_inference_mode(parallel):
    """Predictions from a trained guide need no gradients."""

    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(loc, scale), obs=torch.ones(4))

    guide = AutoFlow(model)
    SVI(model, guide, ClippedAdam({"lr": 1e-3}), Trace_ELBO()).step()
    with torch.inference_mode():
        one, many = guide(), guide.sample_posterior(5)
        predicted = Predictive(model, guide=guide, num_samples=3, parallel=parallel)()
    assert one["scale"] > 0
    assert many["loc"].shape == (5,)
    assert predicted["loc"].flatten().shape == (3,)
    assert one["loc"].is_inference()
    SVI(model, guide, ClippedAdam({"lr": 1e-3}), Trace_ELBO()).step()
