# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The log joint is what Pyro's objectives score, for every kind of model and in every mode."""

import math

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints, hmm
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.nn import PyroModule, PyroParam, PyroSample

from pyro_flows.errors import DataError
from pyro_flows.guides import AutoFlow, LogJoint
from pyro_flows.guides.log_einsum import products_in_pyro

DATA = torch.tensor([0.3, -0.4, 1.2, 2.0], dtype=torch.float64)
X = torch.linspace(-1.0, 1.0, 4, dtype=torch.float64)


def hierarchical(data=DATA):
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("group", len(data)):
        x = pyro.sample("x", dist.Normal(loc, scale))
        pyro.sample("obs", dist.Normal(x, 1.0), obs=data)


def nested_plates():
    with pyro.plate("rows", 2, dim=-2):
        a = pyro.sample("a", dist.Gamma(2.0, 1.0))
        with pyro.plate("columns", 4, dim=-1):
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("obs", dist.Normal(b, 1.0), obs=DATA.expand(2, 4))


def masked():
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4), poutine.mask(mask=DATA > 0):
        x = pyro.sample("x", dist.LogNormal(loc, 1.0))
        pyro.sample("obs", dist.Normal(x, 1.0), obs=DATA)


def partly_observed():
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=DATA, obs_mask=DATA > 0)


def scaled():
    with poutine.scale(scale=0.3):
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4), poutine.scale(scale=2.5):
        pyro.sample("obs", dist.Normal(x, 1.0), obs=DATA)


def dirichlet_categorical():
    p = pyro.sample("p", dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0], dtype=DATA.dtype)))
    with pyro.plate("data", 4):
        pyro.sample("obs", dist.Categorical(p), obs=torch.tensor([0, 2, 2, 1]))


def correlated():
    scale = pyro.sample("scale", dist.HalfCauchy(torch.ones(3, dtype=DATA.dtype)).to_event(1))
    corr = pyro.sample("corr", dist.LKJCholesky(3, torch.tensor(2.0, dtype=DATA.dtype)))
    tril = scale.unsqueeze(-1) * corr
    pyro.sample(
        "obs", dist.MultivariateNormal(torch.zeros_like(scale), scale_tril=tril), obs=DATA[:3]
    )


def gaussian_process():
    length = pyro.sample("length", dist.LogNormal(0.0, 0.5))
    square = (X.unsqueeze(-1) - X).pow(2)
    covariance = torch.exp(-square / (2 * length**2)) + 0.1 * torch.eye(4, dtype=X.dtype)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(X), covariance), obs=DATA)


def factors():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    y = pyro.deterministic("twice", 2 * x)
    pyro.factor("soft", -y.abs())
    with pyro.plate("data", 4):
        pyro.factor("each", -(DATA - x).pow(2))


def flat():
    loc = pyro.sample("loc", dist.ImproperUniform(constraints.real, (), ()))
    cut = pyro.sample("cut", dist.ImproperUniform(constraints.ordered_vector, (), (3,)))
    with pyro.plate("data", 4):
        pyro.sample("obs", dist.Normal(loc + cut.sum(), 1.0), obs=DATA)


def markov_chain():
    drift = pyro.sample("drift", dist.LogNormal(-1.0, 0.5))
    z = torch.zeros((), dtype=DATA.dtype)
    for t in pyro.markov(range(4)):
        z = pyro.sample(f"z_{t}", dist.Normal(z, drift))
        pyro.sample(f"y_{t}", dist.Normal(z, 1.0), obs=DATA[t])


def subsampled():
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 4, subsample_size=2) as index:
        pyro.sample("obs", dist.Normal(loc, 1.0), obs=DATA[index])


def sequential_data():
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", 4):
        pyro.sample(f"obs_{i}", dist.Normal(loc, 1.0), obs=DATA[i])


def sequential_subsample():
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    for i in pyro.plate("data", 4, subsample_size=2):
        pyro.sample(f"obs_{i}", dist.Normal(loc, 1.0), obs=DATA[i])


def gaps_in_data():
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    seen = torch.cat([DATA, DATA.new_full((1,), torch.nan)])
    for i, value in enumerate(seen):
        if not torch.isnan(value):
            pyro.sample(f"obs_{i}", dist.Normal(loc, 1.0), obs=value)


def with_params():
    loc = pyro.param("prior_loc", torch.tensor(0.5, dtype=DATA.dtype))
    scale = pyro.param(
        "prior_scale", torch.tensor(2.0, dtype=DATA.dtype), constraint=constraints.positive
    )
    x = pyro.sample("x", dist.Normal(loc, scale))
    with pyro.plate("data", 4):
        pyro.sample("obs", dist.Normal(x, 1.0), obs=DATA)


class Regression(PyroModule):
    """A sampled weight, a trained bias."""

    def __init__(self):
        super().__init__()
        self.linear = PyroModule[torch.nn.Linear](1, 1).double()
        prior = dist.Normal(torch.zeros(1, 1, dtype=DATA.dtype), 1.0).to_event(2)
        self.linear.weight = PyroSample(prior)
        self.sigma = PyroParam(torch.tensor(1.0, dtype=DATA.dtype), constraints.positive)

    def forward(self):
        mean = self.linear(X.unsqueeze(-1)).squeeze(-1)
        with pyro.plate("data", 4):
            pyro.sample("obs", dist.Normal(mean, self.sigma), obs=DATA)


def filled():
    """A tensor that is made blank, and filled."""
    drift = pyro.sample("drift", dist.LogNormal(-1.0, 0.5))
    noise = pyro.sample("noise", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    z = torch.zeros(4, dtype=DATA.dtype)
    z[0] = drift * noise[0]
    for t in range(1, 4):
        z[t] = 0.9 * z[t - 1].clone() + drift * noise[t]
    with pyro.plate("data", 4):
        pyro.sample("obs", dist.Normal(z, 1.0), obs=DATA)


def imputed():
    """Data of which some are latents."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    gaps = pyro.sample("gaps", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    data = DATA.clone()
    data[[0, 2]] = gaps
    data[1:].mul_(loc.exp())
    pyro.factor("obs", dist.Normal(loc, 1.0).log_prob(data).sum())


def ordered():
    """Pyro's OrderedLogistic fills a tensor."""
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    steps = dist.Normal(torch.zeros(2, dtype=DATA.dtype), 1.0).to_event(1)
    ordered = dist.transforms.OrderedTransform()
    cuts = pyro.sample("cuts", dist.TransformedDistribution(steps, [ordered]))
    with pyro.plate("data", 4):
        pyro.sample("obs", dist.OrderedLogistic(slope * X, cuts), obs=torch.tensor([0, 1, 1, 2]))


def counts():
    """torch's Multinomial and Geometric set what a mask marks."""
    p = pyro.sample("p", dist.Dirichlet(torch.ones(3, dtype=DATA.dtype)))
    pyro.sample("counts", dist.Multinomial(4, p), obs=torch.tensor([3.0, 0.0, 1.0]))
    pyro.sample("trials", dist.Geometric(p).to_event(1), obs=torch.tensor([0.0, 2.0, 1.0]))
    weights = torch.zeros(3, 2, dtype=DATA.dtype)
    weights[p > 0.3] = 1.0
    pyro.factor("large", weights.sum())


def discrete_chain():
    """Pyro's parallel-scan hidden Markov model."""
    stay = pyro.sample("stay", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    row = torch.stack([stay, -stay])
    chain = torch.stack([row, row.flip(0)]).log_softmax(-1)
    noise = dist.Normal(torch.tensor([-1.0, 1.0], dtype=DATA.dtype), scale)
    start = torch.zeros(2, dtype=DATA.dtype)
    pyro.sample("obs", dist.DiscreteHMM(start, chain, noise, duration=4), obs=DATA)


def missing_values():
    """NaN marks what is missing, as Pyro has it."""
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", 4):
        gaps = torch.where(DATA > 0, DATA, torch.nan)
        pyro.sample("obs", dist.NanMaskedNormal(loc, scale), obs=gaps)
    both = DATA.new_tensor([[torch.nan, 0.3], [0.1, 0.2]])
    cov = scale * torch.eye(2, dtype=DATA.dtype)
    with pyro.plate("rows", 2):
        fn = dist.NanMaskedMultivariateNormal(loc.expand(2), cov)
        pyro.sample("rows_obs", fn, obs=both)


def control_flow():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    scale = 1.0 if x.item() > 0 else 2.0
    pyro.sample("obs", dist.Normal(x, scale), obs=DATA[0])


CAPTURED = [
    hierarchical, nested_plates, masked, partly_observed, scaled, dirichlet_categorical,
    correlated, gaussian_process, factors, flat, markov_chain, subsampled,
    sequential_data, gaps_in_data, filled, imputed, ordered, counts, discrete_chain,
    missing_values,
]  # fmt: skip
# A sequential plate reads its indices as numbers: of a subsample, others on every call.
VECTORISED = [with_params, Regression, sequential_subsample]
SEQUENTIAL = [control_flow]


def build(model):
    return model() if isinstance(model, type) else model


def perturbed(guide, size=0.1):
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    return guide


def scored(model, guide, elbo_seed=7):
    """The packed vector of one draw and what Trace_ELBO scores for the model at it."""
    guide_trace = poutine.trace(guide).get_trace()
    (name,) = (n for n in guide_trace.nodes if n.endswith("_latent"))
    z = guide_trace.nodes[name]["value"].detach()
    torch.manual_seed(elbo_seed)
    model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace()
    guide_trace.compute_log_prob()
    jacobian = guide_trace.log_prob_sum() - guide_trace.nodes[name]["log_prob_sum"]
    return z, (model_trace.log_prob_sum() - jacobian).detach()


@pytest.mark.parametrize("model", CAPTURED + VECTORISED + SEQUENTIAL, ids=lambda m: m.__name__)
def test_equals_what_trace_elbo_scores(model):
    model = build(model)
    guide = perturbed(AutoFlow(model).setup())
    log_joint = LogJoint(model, guide)
    z, expected = scored(model, guide)
    for way in (log_joint, LogJoint(model, guide, mode="sequential")):
        torch.manual_seed(7)
        got = way(z[None])
        torch.testing.assert_close(got[0].detach(), expected, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(
    ("model", "mode"),
    [
        *((m, "captured") for m in CAPTURED),
        *((m, "vectorised") for m in VECTORISED),
        *((m, "sequential") for m in SEQUENTIAL),
    ],
    ids=lambda v: v if isinstance(v, str) else v.__name__,
)
def test_takes_the_fastest_way_that_is_right(model, mode):
    model = build(model)
    log_joint = LogJoint(model, AutoFlow(model).setup())
    assert log_joint.mode == mode, log_joint.why
    assert bool(log_joint.why) == (mode != "captured")
    assert log_joint.stochastic == (model in (subsampled, sequential_subsample))


@pytest.mark.parametrize("model", CAPTURED, ids=lambda m: m.__name__)
def test_forced_modes_agree(model):
    guide = perturbed(AutoFlow(model).setup())
    z = guide.get_posterior().sample((5,))
    values = []
    for mode in ("captured", "vectorised", "sequential"):
        log_joint = LogJoint(model, guide, mode=mode)
        rows = z[:1] if model is subsampled else z  # sequential draws a subsample per particle
        torch.manual_seed(3)
        values.append(log_joint(rows).detach())
    torch.testing.assert_close(values[0], values[2], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(values[1], values[2], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("mode", ["captured", "vectorised", "sequential"])
@pytest.mark.parametrize("model", [hierarchical, correlated, masked], ids=lambda m: m.__name__)
def test_value_and_grad_is_autograds(model, mode):
    guide = perturbed(AutoFlow(model).setup())
    log_joint = LogJoint(model, guide, mode=mode)
    z = guide.get_posterior().sample((4,)).requires_grad_()
    value, grad = log_joint.value_and_grad(z)
    assert not value.requires_grad
    assert not grad.requires_grad
    expected = LogJoint(model, guide, mode="sequential")(z)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(grad, torch.autograd.grad(expected.sum(), z)[0])


@pytest.mark.parametrize("mode", ["captured", "vectorised", "sequential"])
def test_calls_are_differentiable(mode):
    guide = AutoFlow(hierarchical).setup()
    z = guide.get_posterior().sample((3,)).requires_grad_()
    (grad,) = torch.autograd.grad(LogJoint(hierarchical, guide, mode=mode)(z).sum(), z)
    assert grad.abs().min() > 0


def test_gradients_of_the_models_own_parameters():
    guide = AutoFlow(with_params).setup()
    log_joint = LogJoint(with_params, guide)
    assert set(log_joint.parameters) == {"prior_loc", "prior_scale"}
    z = guide.get_posterior().sample((6,))
    log_joint.value_and_grad(z, accumulate=True)
    got = {name: leaf.grad.clone() for name, leaf in log_joint.parameters.items()}
    for leaf in log_joint.parameters.values():
        leaf.grad = None
    (-LogJoint(with_params, guide, mode="sequential")(z).mean()).backward()
    for name, leaf in log_joint.parameters.items():
        torch.testing.assert_close(got[name], leaf.grad)


def test_changed_parameters_change_the_answer():
    guide = AutoFlow(with_params).setup()
    log_joint = LogJoint(with_params, guide)
    z = torch.full((1, 1), 0.3)
    before = log_joint(z).detach()
    with torch.no_grad():
        log_joint.parameters["prior_loc"].add_(1.0)
    after = log_joint(z).detach()
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, LogJoint(with_params, guide, mode="sequential")(z).detach())


def test_particles_that_are_not_finite_do_not_spoil_the_rest():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("log", torch.log(x))  # nan at negative values

    guide = AutoFlow(model, init_loc_fn=lambda site: torch.tensor(1.0)).setup()
    log_joint = LogJoint(model, guide)
    value, grad = log_joint.value_and_grad(torch.tensor([[1.0], [-1.0], [2.0]]))
    assert torch.isnan(value[1])
    torch.testing.assert_close(grad[[0, 2], 0], torch.tensor([0.0, -1.5]))


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1500])
def test_chunks_are_filled_up(count):
    guide = AutoFlow(hierarchical).setup()
    log_joint = LogJoint(hierarchical, guide)
    z = guide.get_posterior().sample((count,))
    got = log_joint.in_chunks(z)
    assert got.shape == (count,)
    vectorised = LogJoint(hierarchical, guide, mode="vectorised")
    torch.testing.assert_close(got, vectorised(z).detach())


def test_a_captured_subsample_is_drawn_anew():
    guide = AutoFlow(subsampled).setup()
    log_joint = LogJoint(subsampled, guide)
    assert log_joint.stochastic
    z = torch.zeros(2, 1)
    values = {round(float(log_joint(z)[0]), 6) for _ in range(30)}
    assert 1 < len(values) <= 6  # pairs out of four
    value = log_joint(z)
    assert value[0] == value[1]  # one subsample for all particles


def test_choosing_leaves_the_random_state():
    guide = AutoFlow(subsampled).setup()
    state = torch.get_rng_state()
    LogJoint(subsampled, guide)
    assert torch.equal(torch.get_rng_state(), state)


def test_arguments_of_the_model():
    guide = AutoFlow(hierarchical).setup(DATA + 1)
    z = torch.zeros(1, guide.latent_dim)
    first = LogJoint(hierarchical, guide, (DATA + 1,))(z)
    second = LogJoint(hierarchical, guide, (), {"data": DATA + 1})(z)
    third = LogJoint(hierarchical, guide, (DATA,))(z)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_a_pyro_gaussian_process():
    kernel = gp.kernels.RBF(input_dim=1)
    kernel.lengthscale = PyroSample(dist.LogNormal(torch.tensor(0.0, dtype=DATA.dtype), 0.5))
    model = gp.models.GPRegression(X.unsqueeze(-1), DATA, kernel, noise=torch.tensor(0.5)).double()
    guide = perturbed(AutoFlow(model.model).setup())
    log_joint = LogJoint(model.model, guide)
    z, expected = scored(model.model, guide)
    torch.testing.assert_close(log_joint(z[None])[0].detach(), expected, atol=1e-8, rtol=1e-8)
    assert "kernel.variance" in " ".join(log_joint.parameters)


# Enumerated sites.


@config_enumerate
def enumerated_local():
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    low = pyro.sample("low", dist.Normal(-1.0, 1.0))
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Bernoulli(p))
        pyro.sample("obs", dist.Normal(low + 2 * z, 1.0), obs=DATA)


@config_enumerate
def enumerated_global():
    low = pyro.sample("low", dist.Normal(-1.0, 1.0))
    z = pyro.sample("z", dist.Bernoulli(0.3))
    with pyro.plate("data", 4):
        pyro.sample("obs", dist.Normal(low + 2 * z, 1.0), obs=DATA)


@config_enumerate
def enumerated_mixture():
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3, dtype=DATA.dtype)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    locs = torch.tensor([-1.0, 0.0, 1.0], dtype=DATA.dtype)
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[z], scale), obs=DATA)


def enumerated_scaled():
    with poutine.scale(scale=2.5):
        enumerated_local()


def enumerated_scaled_plate():
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("data", 4), poutine.scale(scale=0.4):
        z = pyro.sample("z", dist.Bernoulli(p), infer={"enumerate": "parallel"})
        pyro.sample("obs", dist.Normal(2 * z, 1.0), obs=DATA)


def enumerated_masked():
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("data", 4), poutine.mask(mask=DATA > 0):
        z = pyro.sample("z", dist.Bernoulli(p), infer={"enumerate": "parallel"})
        pyro.sample("obs", dist.Normal(2 * z, 1.0), obs=DATA)


def enumerated_subsampled():
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("data", 4, subsample_size=2) as index:
        z = pyro.sample("z", dist.Bernoulli(p), infer={"enumerate": "parallel"})
        pyro.sample("obs", dist.Normal(2 * z, 1.0), obs=DATA[index])


@config_enumerate
def hidden_markov():
    stay = pyro.sample("stay", dist.Beta(5.0, 2.0))
    loc = pyro.sample("loc", dist.Normal(1.0, 1.0))
    z = torch.tensor(0)
    for t in pyro.markov(range(4)):
        p = torch.where(z == 1, stay, 1 - stay)
        z = pyro.sample(f"z_{t}", dist.Bernoulli(p)).long()
        pyro.sample(f"y_{t}", dist.Normal(loc * z, 1.0), obs=DATA[t])


@config_enumerate
def local_latents_and_switches():
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("data", 4):
        x = pyro.sample("x", dist.LogNormal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(p))
        pyro.sample("obs", dist.Normal(x * z, 1.0), obs=DATA)


@config_enumerate
def indexed_markov():
    """Plain indexing, as for one particle: a plate of particles would be in its way."""
    leave = pyro.sample("leave", dist.Dirichlet(torch.ones(2, 2, dtype=DATA.dtype)).to_event(1))
    locs = pyro.sample("locs", dist.Normal(torch.zeros(2, dtype=DATA.dtype), 3.0).to_event(1))
    z = 0
    for t in pyro.markov(range(4)):
        z = pyro.sample(f"z_{t}", dist.Categorical(leave[z]))
        pyro.sample(f"y_{t}", dist.Normal(locs[z], 1.0), obs=DATA[t])


@config_enumerate
def looks_at_values():
    """vmap refuses to look; a plate of particles is a tensor like any other."""
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    assert bool((p <= 1).all())
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Bernoulli(p))
        pyro.sample("obs", dist.Normal(2 * z, 1.0), obs=DATA)


@config_enumerate
def enumerated_in_place():
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    both = torch.zeros((*p.shape, 1), dtype=DATA.dtype)
    both[..., 0] = p
    with pyro.plate("data", 4):
        z = pyro.sample("z", dist.Bernoulli(both[..., 0]))
        pyro.sample("obs", dist.Normal(2 * z, 1.0), obs=DATA)


ENUMERATED = [
    enumerated_local, enumerated_global, enumerated_mixture, enumerated_scaled,
    enumerated_scaled_plate, enumerated_masked, enumerated_subsampled, hidden_markov,
    local_latents_and_switches, indexed_markov, looks_at_values, enumerated_in_place,
]  # fmt: skip


@pytest.mark.parametrize("model", ENUMERATED, ids=lambda m: m.__name__)
def test_enumerated_equals_what_traceenum_elbo_scores(model):
    guide = perturbed(AutoFlow(model).setup())
    log_joint = LogJoint(model, guide)
    z = guide.get_posterior().sample()
    values = guide.unpack(z[None])

    def fixed():
        """A guide that says z and has log density 0: the loss is minus the model's score."""
        for name, stack in guide._cond_indep_stacks.items():
            value, site = values[name][0], guide.prototype_trace.nodes[name]
            plates = [pyro.plate(f.name, f.size, dim=f.dim) for f in stack]
            with poutine.block(hide_types=["plate"]):
                fn = dist.Delta(value, event_dim=site["fn"].event_dim)
                if plates:
                    with plates[0]:
                        pyro.sample(name, fn)
                else:
                    pyro.sample(name, fn)

    torch.manual_seed(7)
    with torch.no_grad():
        score = -TraceEnum_ELBO(max_plate_nesting=1).loss(model, fixed)
        jacobian = guide._flow.log_prob(z) - guide.log_prob({n: v[0] for n, v in values.items()})
        torch.manual_seed(7)
        got = log_joint(z[None])[0]
    assert float(got) == pytest.approx(score + float(jacobian), abs=1e-8)


@pytest.mark.parametrize(
    "model", [m for m in ENUMERATED if m is not enumerated_subsampled], ids=lambda m: m.__name__
)
def test_enumerated_particles_are_kept_apart(model):
    guide = perturbed(AutoFlow(model).setup())
    log_joint = LogJoint(model, guide)
    z = guide.get_posterior().sample((5,))
    rows = torch.cat([log_joint(row[None]) for row in z])
    torch.testing.assert_close(log_joint(z), rows)
    sequential = LogJoint(model, guide, mode="sequential")
    torch.testing.assert_close(sequential(z), rows)
    value, grad = log_joint.value_and_grad(z)
    torch.testing.assert_close(value, rows.detach())
    z.requires_grad_()
    torch.testing.assert_close(grad, torch.autograd.grad(sequential(z).sum(), z)[0])


@pytest.mark.parametrize(
    ("model", "mode"),
    [
        (enumerated_mixture, "captured"),
        (hidden_markov, "captured"),
        (indexed_markov, "captured"),
        (enumerated_subsampled, "captured"),
        (enumerated_in_place, "captured"),
        (looks_at_values, "enumerated"),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_how_enumerated_models_are_computed(model, mode):
    guide = perturbed(AutoFlow(model).setup())
    log_joint = LogJoint(model, guide)
    assert log_joint.mode == mode, log_joint.why
    if mode != "enumerated" and model is not indexed_markov:
        z = guide.get_posterior().sample((5,))
        plate = LogJoint(model, guide, mode="enumerated")
        torch.manual_seed(0)
        got = log_joint(z)
        torch.manual_seed(0)
        torch.testing.assert_close(plate(z), got)


def test_threads_leave_pyros_product_where_it_was():
    before = hmm._logmatmulexp
    first, second = products_in_pyro(), products_in_pyro()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert hmm._logmatmulexp is not before
    second.__exit__(None, None, None)
    assert hmm._logmatmulexp is before


def test_nan_is_refused_where_a_transform_would_take_it():
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        normal = dist.NanMaskedNormal(loc.expand(2), 1.0)
        exp = dist.TransformedDistribution(normal, [dist.transforms.ExpTransform()])
        pyro.sample("obs", exp.to_event(1), obs=torch.tensor([1.0, torch.nan]))

    with pytest.raises(DataError, match="1 of 2 values are NaN"):
        AutoFlow(model).setup()


def test_a_density_that_is_flat_has_a_gradient_of_zero():
    def model():
        x = pyro.sample("x", dist.ImproperUniform(constraints.real, (), ()))
        pyro.factor("box", torch.where((x > 0) & (x < 1), 0.0, -math.inf))

    for mode in ("captured", "vectorised", "sequential"):
        log_joint = LogJoint(model, AutoFlow(model).setup(), mode=mode)
        value, gradient = log_joint.value_and_grad(torch.tensor([[0.5], [2.0]]))
        assert value.tolist() == [0.0, -math.inf]
        assert gradient.tolist() == [[0.0], [0.0]]


def test_a_failure_without_a_word_means_go_slower():
    def model():
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        if torch._C._functorch.is_batchedtensor(x):
            raise AssertionError

    log_joint = LogJoint(model, AutoFlow(model).setup())
    assert (log_joint.mode, log_joint.why) == (
        "sequential",
        "vectorised: AssertionError: (it says no more)",
    )


def test_elbo_through_the_log_joint_is_trace_elbos():
    guide = perturbed(AutoFlow(hierarchical).setup())
    elbo = Trace_ELBO(num_particles=16, vectorize_particles=True, max_plate_nesting=1)
    pyro.set_rng_seed(1)
    loss = elbo.loss(hierarchical, guide)
    pyro.set_rng_seed(1)
    with torch.no_grad():
        z, log_q = guide.get_posterior().expand([16, 1]).rsample_and_log_prob()
        expected = -(LogJoint(hierarchical, guide)(z[:, 0]) - log_q[:, 0]).mean()
    assert loss == pytest.approx(float(expected), abs=1e-9)
