# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Flow as a Pyro distribution: shapes, one-pass scoring, prior, guide and likelihood."""

import copy
import pickle
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC, NUTS, SVI, RenyiELBO, Trace_ELBO
from pyro.infer.autoguide import AutoNormal

from pyro_flows.distributions import (
    Flow,
    GaussianMixture,
    ResampledBase,
    StandardNormal,
    StudentT,
    UniformBox,
)
from pyro_flows.errors import ContextError, DtypeError, ShapeError
from pyro_flows.transforms import (
    AffineCoupling,
    CholeskyAffine,
    CircularSpline,
    Coupling,
    Elementwise,
    Permute,
    Sigmoid,
    SplineCoupling,
)


def randomise(flow, scale=0.3):
    for p in flow.parameters():
        p.data.add_(scale * torch.randn_like(p))
    return flow


def make(dim=3, context_dim=0):
    return randomise(
        Flow(
            [
                AffineCoupling(dim, context_dim=context_dim, hidden_dims=(8,)),
                Permute(dim),
                SplineCoupling(dim, context_dim=context_dim, hidden_dims=(8,)),
                CholeskyAffine(dim),
            ]
        )
    )


class Counter:
    """Counts the passes of a flow's layers."""

    def __init__(self, flow, monkeypatch):
        self.forward = self.inverse = 0
        kind = type(flow.transform)
        forward, inverse = kind.forward_and_ladj, kind.inverse_and_ladj

        def count_forward(*args):
            self.forward += 1
            return forward(*args)

        def count_inverse(*args):
            self.inverse += 1
            return inverse(*args)

        monkeypatch.setattr(kind, "forward_and_ladj", count_forward)
        monkeypatch.setattr(kind, "inverse_and_ladj", count_inverse)


@pytest.mark.parametrize("sample_shape", [(), (2,), (4, 2)])
@pytest.mark.parametrize("batch_shape", [(), (3,), (3, 5)])
@pytest.mark.parametrize("context_dim", [0, 2])
def test_shapes(sample_shape, batch_shape, context_dim):
    flow = make(context_dim=context_dim)
    context = torch.randn(*batch_shape, context_dim) if context_dim else None
    d = flow(context).expand(batch_shape)
    assert (d.batch_shape, d.event_shape) == (batch_shape, (3,))
    assert d.has_rsample
    for value in (d.rsample(sample_shape), d.sample(sample_shape)):
        assert value.shape == (*sample_shape, *batch_shape, 3)
        assert d.log_prob(value).shape == (*sample_shape, *batch_shape)
    value, log_prob = d.rsample_and_log_prob(sample_shape)
    assert torch.allclose(d.log_prob(value.clone()), log_prob)
    assert d.log_prob(torch.zeros(3)).shape == batch_shape
    assert d.support.check(value).all()
    assert d.support.event_dim == 1


def test_sample_has_no_gradient_and_rsample_has():
    d = make()()
    assert not d.sample().requires_grad
    assert d.rsample().requires_grad


@pytest.mark.parametrize("context_dim", [0, 2])
def test_batch_elements_get_their_own_noise(context_dim):
    flow = make(context_dim=context_dim)
    d = flow(torch.zeros(3, 2)) if context_dim else flow().expand([3])
    rows = d.sample()
    assert (rows[0] != rows[1]).all()


def test_a_batch_of_contexts_is_a_batch_of_distributions():
    flow, context = make(context_dim=2), torch.randn(4, 2)
    value = torch.randn(4, 3)
    together = flow(context).log_prob(value)
    apart = [flow(c).log_prob(v) for c, v in zip(context, value, strict=True)]
    assert torch.allclose(together, torch.stack(apart))
    assert torch.allclose(flow.log_prob(value, context), together)


def test_expand_on_top_of_contexts():
    d = make(context_dim=2)(torch.randn(3, 2)).expand([5, 3])
    assert d.sample().shape == (5, 3, 3)
    assert d.expand([2, 5, 3]).sample().shape == (2, 5, 3, 3)


def test_missing_and_unexpected_context():
    text = "This flow expected a context of shape (..., 2), but got none. Call flow(context)."
    with pytest.raises(ContextError, match=re.escape(text)):
        make(context_dim=2)()
    text = "This flow takes no context, but got one of shape (5, 2). Build it with context_dim=2"
    with pytest.raises(ContextError, match=re.escape(text)):
        make()(torch.zeros(5, 2))
    with pytest.raises(ShapeError, match=re.escape("expected values of shape (..., 3), but got")):
        make().log_prob(torch.zeros(4))


@pytest.mark.parametrize("base", [None, StudentT(2), GaussianMixture(2), ResampledBase(2)])
@pytest.mark.parametrize(
    "layer", [Coupling(2, CircularSpline()), Elementwise(2, Sigmoid()).inv], ids=repr
)
def test_a_base_that_is_wider_than_the_domain_is_refused(layer, base):
    text = "Flow expected a base on .*Interval.*, which its first layer takes, but got"
    with pytest.raises(ShapeError, match=text) as caught:
        Flow([layer], base)
    assert "Give base=UniformBox(dim, low, high), or put a layer onto" in str(caught.value)


def test_a_conditional_base_that_is_wider_than_the_domain_is_refused():
    layer = Coupling(2, CircularSpline(), context_dim=3)
    flow = Flow([layer], StudentT(2, context_dim=3))
    with pytest.raises(ShapeError, match="Flow expected a base on .* but got StudentT, which is"):
        flow(torch.zeros(3))
    assert Flow([layer], UniformBox(2))(torch.zeros(3)).rsample_and_log_prob()[1].isfinite()


@pytest.mark.parametrize("context_dim", [0, 2])
def test_no_values_have_no_scores(context_dim):
    context = torch.zeros(5, 2) if context_dim else None
    batch = (5,) if context_dim else ()
    d = make(context_dim=context_dim)(context)
    assert d.log_prob(torch.zeros(0, *batch, 3)).shape == (0, *batch)
    value, score = d.rsample_and_log_prob((4, 0))
    assert value.shape == (4, 0, *batch, 3)
    assert score.shape == (4, 0, *batch)
    assert d.expand((2, *batch)).sample((0,)).shape == (0, 2, *batch, 3)


def test_no_inverse_when_the_own_draw_is_scored(monkeypatch):
    flow = make()
    calls = Counter(flow, monkeypatch)
    d = flow()
    value = d.rsample((5,))
    log_prob = d.log_prob(value)
    assert (calls.forward, calls.inverse) == (1, 0)
    assert torch.allclose(d.log_prob(value.clone()), log_prob)
    assert calls.inverse == 1
    grads = torch.autograd.grad(log_prob.sum(), list(flow.parameters()), allow_unused=True)
    assert any(g is not None and (g != 0).any() for g in grads)


def test_kept_score_is_not_used_after_an_in_place_change(monkeypatch):
    flow = make()
    calls = Counter(flow, monkeypatch)
    d = flow()
    with torch.no_grad():
        value = d.rsample()
        value.add_(1.0)
        assert torch.allclose(d.log_prob(value), flow().log_prob(value.clone()))
    assert calls.inverse == 2


@pytest.mark.parametrize("change", ["optimiser", "state_dict", "context"])
def test_kept_score_is_not_used_after_a_change_of_parameters_or_context(change, monkeypatch):
    flow, context = make(context_dim=2), torch.randn(2)
    d = flow(context)
    value = d.rsample()
    before = d.log_prob(value).detach()
    if change == "optimiser":
        (-d.log_prob(value)).backward()
        torch.optim.SGD(flow.parameters(), lr=0.1).step()
    elif change == "state_dict":
        flow.load_state_dict(make(context_dim=2).state_dict())
    else:
        context.add_(1.0)
    calls = Counter(flow, monkeypatch)
    after = d.log_prob(value).detach()
    assert calls.inverse == 1
    assert torch.allclose(after, flow.log_prob(value.detach(), context))
    assert not torch.allclose(after, before)


@pytest.mark.parametrize("draw", ["sample", "rsample"])
def test_inference_mode(draw):
    flow = make(context_dim=2)
    with torch.inference_mode():
        d = flow(torch.zeros(2))
        value = getattr(d, draw)((5,))
        log_prob = d.log_prob(value)
        site = pyro.sample("z", flow(torch.zeros(2)))
        within = flow.log_prob(value, torch.zeros(2))
    assert value.is_inference()
    assert site.shape == (3,)
    assert torch.allclose(log_prob, within)
    assert torch.allclose(log_prob, flow.log_prob(value.clone(), torch.zeros(2)))
    assert d._memo is None


def test_inference_mode_of_the_parts():
    """A flow built, or a context made, in inference mode is used outside; and the reverse."""
    with torch.inference_mode():
        built, context = make(context_dim=2), torch.zeros(2)
    d = built(torch.zeros(2))
    with torch.no_grad():
        assert d.log_prob(d.sample((5,))).isfinite().all()
        d = make(context_dim=2)(context)
        assert d.log_prob(d.sample((5,))).isfinite().all()
    d = make()()
    value = d.sample((5,))
    with torch.inference_mode():
        assert torch.allclose(d.log_prob(value), copy.deepcopy(d).log_prob(value))


@pytest.mark.parametrize("first", [True, False])
def test_kept_score_is_not_used_under_another_gradient_mode(first, monkeypatch):
    flow = make()
    calls = Counter(flow, monkeypatch)
    d = flow()
    with torch.set_grad_enabled(first):
        value = d.rsample()
    with torch.set_grad_enabled(not first):
        log_prob = d.log_prob(value)
    assert calls.inverse == 1
    assert log_prob.requires_grad is not first


@pytest.mark.parametrize(
    "duplicate",
    [copy.copy, copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d)), lambda d: d.expand([])],
    ids=["copy", "deepcopy", "pickle", "expand"],
)
def test_copies_lose_the_kept_score(duplicate):
    d = make()()
    value = d.rsample()
    expected = d.log_prob(value)
    new = duplicate(d)
    assert new._memo is None
    assert torch.allclose(new.log_prob(value), expected)
    assert (new.batch_shape, new.event_shape) == (d.batch_shape, d.event_shape)
    assert d._memo is not None


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda f: pickle.loads(pickle.dumps(f))])
def test_flows_copy(duplicate):
    flow, value = make(), torch.randn(4, 3)
    flow().log_prob(flow().rsample()).backward()
    new = duplicate(flow)
    assert torch.equal(new.log_prob(value), flow.log_prob(value))
    randomise(new)
    assert not torch.equal(new.log_prob(value), flow.log_prob(value))
    flow.load_state_dict(new.state_dict())
    assert torch.equal(new.log_prob(value), flow.log_prob(value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_follows_the_flow(dtype):
    flow = make().to(dtype)
    value, log_prob = flow().rsample_and_log_prob((2,))
    assert value.dtype == log_prob.dtype == flow.log_prob(value.clone()).dtype == dtype


def test_no_implicit_device():
    flow, value = make(), torch.randn(4, 3)
    expected = flow.log_prob(value)
    torch.set_default_device("meta")
    assert torch.equal(flow.log_prob(value), expected)
    assert flow().rsample((2,)).device.type == "cpu"


@pytest.mark.slow
def test_compile():
    flow, value = make(), torch.randn(4, 3)
    compiled = torch.compile(flow.log_prob, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(value), flow.log_prob(value))


def test_a_whole_flow_compiles():
    """Construction of the distribution, draws and scores; also when it has a kept score."""
    flow = randomise(Flow([AffineCoupling(3, hidden_dims=(8,)), CholeskyAffine(3)]))
    value, kept = torch.randn(4, 3), flow()
    own = kept.sample((4,))
    torch._dynamo.reset()

    def everything(value, own):
        d = flow()
        draw = d.rsample((2,))
        return flow.log_prob(value), kept.log_prob(own), d.log_prob(draw), flow.log_prob(draw)

    compiled = torch.compile(everything, fullgraph=True, backend="eager")
    given, again, score, expected = compiled(value, own)
    assert torch.allclose(given, flow.log_prob(value))
    assert torch.allclose(again, flow.log_prob(own))
    assert torch.allclose(score, expected)


def test_vmap():
    flow, value = make(context_dim=2), torch.randn(4, 3)
    context = torch.randn(4, 2)
    assert torch.allclose(
        torch.func.vmap(flow.log_prob)(value, context), flow.log_prob(value, context)
    )


def test_another_base():
    class Wide(StandardNormal):
        def forward(self, context=None):
            return dist.Normal(self.loc, 2 * self.scale).to_event(1)

    flow = Flow([CholeskyAffine(2)], base=Wide(2))
    expected = dist.Normal(0.0, 2.0).expand([2]).to_event(1).log_prob(torch.ones(2))
    assert torch.allclose(flow.log_prob(torch.ones(2)), expected)


def test_printed():
    assert repr(make()()) == "FlowDistribution(batch_shape: (), event_shape: (3,))"


# In Pyro


def test_mask_and_to_event():
    flow, context = make(context_dim=2), torch.randn(4, 2)
    d = flow(context)
    keep = torch.tensor([True, False, True, False])
    masked = d.mask(keep)
    value = masked.rsample()
    assert torch.equal(masked.log_prob(value) != 0, keep)
    joint = d.to_event(1)
    value = joint.rsample()
    assert (joint.batch_shape, joint.event_shape) == ((), (4, 3))
    assert torch.allclose(joint.log_prob(value), d.log_prob(value).sum())


def test_to_event_scores_its_draw_without_an_inverse(monkeypatch):
    flow = make(context_dim=2)
    calls = Counter(flow, monkeypatch)
    d = flow(torch.randn(4, 2)).to_event(1)
    d.log_prob(d.rsample())
    assert calls.inverse == 0


def test_plates_expand():
    flow = make()

    def model():
        with pyro.plate("outer", 4, dim=-2), pyro.plate("inner", 5, dim=-1):
            return pyro.sample("z", flow())

    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    assert trace.nodes["z"]["value"].shape == (4, 5, 3)
    assert trace.nodes["z"]["log_prob"].shape == (4, 5)


def target():
    pyro.sample("z", dist.MultivariateNormal(torch.ones(3), 0.5 * torch.eye(3) + 0.5))


@pytest.mark.parametrize("elbo", [Trace_ELBO(), Trace_ELBO(4, vectorize_particles=True)])
def test_as_guide_makes_no_inverse_call(elbo, monkeypatch):
    flow = make()

    def guide():
        pyro.module("flow", flow)
        pyro.sample("z", flow())

    calls = Counter(flow, monkeypatch)
    svi = SVI(target, guide, pyro.optim.ClippedAdam({"lr": 0.01}), elbo)
    losses = [svi.step() for _ in range(60)]
    assert calls.inverse == 0
    assert sum(losses[-10:]) < sum(losses[:10])


def test_as_guide_under_other_objectives():
    flow = Flow([CholeskyAffine(3)])

    def guide():
        pyro.module("flow", flow)
        pyro.sample("z", flow())

    svi = SVI(target, guide, pyro.optim.Adam({"lr": 0.05}), RenyiELBO(num_particles=5))
    assert all(torch.tensor(svi.step()).isfinite() for _ in range(5))


def test_as_prior_under_nuts():
    flow = make(dim=2)

    def model():
        z = pyro.sample("z", flow())
        pyro.sample("y", dist.Normal(z.sum(-1), 0.5), obs=torch.tensor(1.0))

    mcmc = MCMC(NUTS(model), num_samples=8, warmup_steps=8, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["z"].shape == (8, 2)


def test_as_prior_under_autonormal():
    flow = make(dim=2)

    def model():
        z = pyro.sample("z", flow())
        pyro.sample("y", dist.Normal(z.sum(-1), 0.5), obs=torch.tensor(1.0))

    svi = SVI(model, AutoNormal(model), pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    assert all(torch.tensor(svi.step()).isfinite() for _ in range(5))


def test_as_likelihood_is_trained():
    flow = Flow([AffineCoupling(2), AffineCoupling(2, mask=[True, False]), CholeskyAffine(2)])
    data = torch.randn(200, 2) @ torch.tensor([[2.0, 1.0], [0.0, 0.5]]) + 3.0

    def model():
        pyro.module("flow", flow)
        with pyro.plate("data", 200):
            pyro.sample("x", flow(), obs=data)

    svi = SVI(model, lambda: None, pyro.optim.ClippedAdam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step() for _ in range(80)]
    assert losses[-1] < losses[0] - 200


def test_values_of_another_dtype_are_refused_in_words():
    flow = Flow([AffineCoupling(2)]).float()
    for value, got in (
        (torch.zeros(3, 2).double(), "float64"),
        (torch.zeros(3, 2).int(), "int32"),
    ):
        with pytest.raises(DtypeError) as caught:
            flow.log_prob(value)
        assert str(caught.value) == (
            "log_prob expected values of dtype float32, as the flow's parameters have, but got "
            f"{got}. Convert one of them: value.to(torch.float32), or flow.double() for float64."
        )


def test_one_layer_is_no_list():
    with pytest.raises(ShapeError, match=r"a list of layers, but got one AffineCoupling\. Pass"):
        Flow(AffineCoupling(2))


class Given(torch.nn.Module):
    """A base that isn't a ``Base``."""

    def __init__(self, made):
        super().__init__()
        self.made = made

    def forward(self, context=None):
        return self.made


ZEROS, ONES = torch.zeros(2), torch.ones(2)
ANGLES, SHARES = Elementwise(2, CircularSpline()), Elementwise(2, Sigmoid()).inv


@pytest.mark.parametrize(
    ("layer", "base", "where"),
    [
        (ANGLES, dist.Normal(ZEROS, 1.0).to_event(1), "all real vectors"),
        (ANGLES, dist.MultivariateNormal(ZEROS, torch.eye(2)), "all real vectors"),
        (SHARES, dist.StudentT(ONES).to_event(1), "all real vectors"),
        (SHARES, dist.HalfNormal(ONES).to_event(1), "vectors of numbers from 0 to inf"),
        (SHARES, dist.LogNormal(ZEROS, ONES).to_event(1), "vectors of numbers from 0 to inf"),
    ],
)
def test_a_base_of_ones_own_must_fit_bounded_layers(layer, base, where):
    flow = Flow([layer], base=Given(base))
    with pytest.raises(ShapeError) as caught:
        flow()
    assert str(caught.value).startswith(f"Flow expected a base on {layer.domain}, which its first")
    assert f"but got Given, which is spread over {where}. Give base=" in str(caught.value)


class Silent(dist.Beta):
    """A distribution that doesn't say its support."""

    support = torch.distributions.Distribution.support


SHIFT = dist.transforms.AffineTransform(0.5, 0.1)


@pytest.mark.parametrize(
    ("layer", "base"),
    [
        (ANGLES, dist.VonMises(ZEROS, 1.0).to_event(1)),
        (SHARES, dist.Beta(ONES, 1.0).to_event(1)),
        (ANGLES, dist.Beta(ONES, 1.0).to_event(1)),
        (SHARES, Silent(ONES, ONES, validate_args=False).to_event(1)),
        (SHARES, dist.TransformedDistribution(dist.Beta(ONES, 1.0).to_event(1), [SHIFT])),
        (SHARES, dist.Dirichlet(ONES)),
        (SHARES, dist.Uniform(ZEROS, 1.0).to_event(1)),
    ],
)
def test_a_base_of_ones_own_that_fits(layer, base):
    log_prob = Flow([layer], base=Given(base))().log_prob(layer(base.sample((5,))))
    assert log_prob.isfinite().all()


def test_a_box_must_lie_in_the_domain():
    with pytest.raises(ShapeError, match=r"UniformBox, which is spread over .* from -10 to 10\."):
        Flow([ANGLES], UniformBox(2, -10.0, 10.0))
    for dtype in (torch.float16, torch.float32, torch.float64):
        Flow([ANGLES], UniformBox(2).to(dtype))


def test_errors_of_shape_speak_of_the_flow():
    flow = Flow([AffineCoupling(3), Permute(3)])
    with pytest.raises(ShapeError, match="^This flow of 2 layers expected values"):
        flow.log_prob(torch.zeros(5, 4))
