# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Bases: densities that integrate to one, samples that follow them, shapes, state, starts."""

import copy
import math
import pickle
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_flows.distributions import (
    Base,
    Flow,
    GaussianMixture,
    ResampledBase,
    StandardNormal,
    StudentT,
    UniformBox,
)
from pyro_flows.errors import ContextError, DataError, NoRsampleError, OptionError, ShapeError
from pyro_flows.transforms import AffineCoupling, CholeskyAffine, Elementwise, Shift

PLAIN = {
    "normal": StandardNormal,
    "student_t": lambda dim: StudentT(dim, df=4.0),
    "student_t-fixed": lambda dim: StudentT(dim, df=4.0, learnable=False),
    "uniform_box": UniformBox,
    "gaussian_mixture": lambda dim: GaussianMixture(dim, 3),
    "resampled": lambda dim: ResampledBase(dim, (16,), truncation=5, draws=2**12),
}
CONDITIONAL = {
    "student_t": lambda dim: StudentT(dim, context_dim=2, hidden_dims=(8,)),
    "gaussian_mixture": lambda dim: GaussianMixture(dim, 3, context_dim=2, hidden_dims=(8,)),
}
EVERY = [(make, 0) for make in PLAIN.values()] + [(make, 2) for make in CONDITIONAL.values()]
IDS = list(PLAIN) + [f"{name}-context" for name in CONDITIONAL]
ANY = pytest.mark.parametrize(("make", "context_dim"), EVERY, ids=IDS)
PLAINLY = pytest.mark.parametrize("make", PLAIN.values(), ids=PLAIN)


def randomise(module, scale=0.7):
    for p in module.parameters():
        p.data.add_(scale * torch.randn_like(p))
    return module


def grid(base, dim, count):
    """Points and the weight of each, by the trapezoid rule on a box that holds nearly all."""
    reach = (
        math.pi if isinstance(base, UniformBox) else 60.0 if isinstance(base, StudentT) else 9.0
    )
    axis = torch.linspace(-1, 1, count)
    if isinstance(base, StudentT):
        axis = torch.sinh(6 * axis) / math.sinh(6)
    axis = reach * axis
    step = axis.diff()
    weight = 0.5 * (torch.cat([step, step.new_zeros(1)]) + torch.cat([step.new_zeros(1), step]))
    points = torch.cartesian_prod(*[axis] * dim).reshape(-1, dim)
    weights = torch.cartesian_prod(*[weight] * dim).reshape(-1, dim).prod(-1)
    return points, weights


@pytest.mark.parametrize("dim", [1, 2])
@ANY
def test_integrates_to_one(make, context_dim, dim):
    base = randomise(make(dim))
    d = base(torch.randn(context_dim) if context_dim else None)
    points, weights = grid(base, dim, 4001 if dim == 1 else 401)
    total = (d.log_prob(points).exp() * weights).sum()
    # Student-t has a little mass outside the box, resampled an estimated normalizer.
    assert abs(total - 1) < (0.01 if isinstance(base, (StudentT, ResampledBase)) else 1e-4)


@ANY
def test_samples_follow_the_density(make, context_dim):
    base = randomise(make(1))
    d = base(torch.randn(context_dim) if context_dim else None)
    points, weights = grid(base, 1, 4001)
    mass = d.log_prob(points).exp() * weights
    cumulative = (mass.cumsum(0) - 0.5 * mass) / mass.sum()
    drawn = d.sample((4000,))[:, 0].sort()[0]
    place = torch.searchsorted(points[:, 0], drawn).clamp(1, len(points) - 1)
    rank = torch.arange(1, 4001) / 4000
    assert (cumulative[place - 1] - rank).abs().max() * 4000**0.5 < 2.5


@pytest.mark.parametrize("batch_shape", [(), (3,), (4, 3)])
@ANY
def test_shapes(make, context_dim, batch_shape):
    base = randomise(make(2))
    if context_dim:
        d = base(torch.randn(*batch_shape, context_dim))
    else:
        assert base(torch.zeros(7, 5)).batch_shape == ()  # a context that isn't the base's
        d = base().expand(batch_shape)
    assert (d.batch_shape, d.event_shape) == (batch_shape, (2,))
    assert d.expand((5, *batch_shape)).sample().shape == (5, *batch_shape, 2)
    value = d.sample((6,))
    assert value.shape == (6, *batch_shape, 2)
    assert d.log_prob(value).shape == (6, *batch_shape)
    assert d.log_prob(value[0, ..., :1].expand(*batch_shape, 2)).shape == batch_shape
    assert d.support.event_dim == 1
    assert d.support.check(value).all()
    if d.has_rsample:
        assert d.rsample((6,)).shape == value.shape
    elif isinstance(base, ResampledBase):
        with pytest.raises(NotImplementedError):
            d.rsample()


@PLAINLY
def test_batch_elements_get_their_own_noise(make):
    rows = make(2)().expand([3]).sample()
    assert (rows[0] != rows[1]).all()


@pytest.mark.parametrize("make", CONDITIONAL.values(), ids=CONDITIONAL)
def test_a_batch_of_contexts_is_a_batch_of_distributions(make):
    base, context, value = randomise(make(3)), torch.randn(4, 2), torch.randn(4, 3)
    apart = [base(c).log_prob(v) for c, v in zip(context, value, strict=True)]
    together = base(context).log_prob(value)
    assert torch.allclose(together, torch.stack(apart))
    assert together.unique().numel() == 4
    assert not torch.allclose(base(context[:1]).log_prob(value), together)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@ANY
def test_dtype_follows_the_module(make, context_dim, dtype):
    base = randomise(make(2)).to(dtype)
    context = torch.randn(3, context_dim, dtype=dtype) if context_dim else None
    d = base(context)
    value = d.sample()
    assert value.dtype == d.log_prob(value).dtype == dtype
    exact = copy.deepcopy(base).double()(None if context is None else context.double())
    assert torch.allclose(d.log_prob(value).double(), exact.log_prob(value.double()), atol=1e-4)


@ANY
def test_no_implicit_device(make, context_dim):
    base = randomise(make(2))
    context = torch.randn(3, context_dim) if context_dim else None
    value = base(context).sample()
    expected = base(context).log_prob(value)
    torch.set_default_device("meta")
    assert torch.equal(base(context).log_prob(value), expected)
    assert base(context).sample().device.type == "cpu"


@ANY
def test_copies_are_faithful(make, context_dim):
    base = randomise(make(2))
    context = torch.randn(3, context_dim) if context_dim else None
    value = base(context).sample()
    expected = base(context).log_prob(value)
    fresh = make(2)
    fresh.load_state_dict(base.state_dict())
    for new in (copy.deepcopy(base), pickle.loads(pickle.dumps(base)), fresh):
        assert torch.equal(new(context).log_prob(value), expected)


@ANY
def test_parameters_get_gradients_and_change_the_answer(make, context_dim):
    base = randomise(make(2))
    context = torch.randn(30, context_dim) if context_dim else None
    value = base(context).expand([30]).sample()
    score = base(context).log_prob(value)
    trained = [p for p in base.parameters() if p.requires_grad]
    if not trained:
        return
    for p, g in zip(trained, torch.autograd.grad(score.sum(), trained), strict=True):
        assert g.isfinite().all()
        assert g.abs().max() > 0, p.shape
    randomise(base)
    assert not torch.allclose(base(context).log_prob(value), score)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@ANY
def test_far_values(make, context_dim, dtype):
    base = randomise(make(2)).to(dtype)
    d = base(torch.zeros(context_dim, dtype=dtype) if context_dim else None)
    far = torch.tensor([0.0, 1e1, -1e4, 1e18], dtype=dtype)
    value = far.unsqueeze(-1).expand(4, 2).clone().requires_grad_()
    score = d.log_prob(value)
    assert not score.isnan().any()
    if isinstance(base, UniformBox):
        assert score.isinf().tolist() == [False, True, True, True]
        return
    assert score.isfinite().all()
    inputs = [value, *(p for p in base.parameters() if p.requires_grad)]
    for grad in torch.autograd.grad(score.sum(), inputs):
        assert grad.isfinite().all()


@PLAINLY
def test_vmap(make):
    base = randomise(make(2))
    value = base().sample((4,))
    assert torch.allclose(
        torch.func.vmap(base().log_prob)(value), base().log_prob(value), equal_nan=False
    )


@pytest.mark.slow
@PLAINLY
def test_compile(make):
    base = randomise(make(2))
    value = base().sample((4,))
    compiled = torch.compile(lambda x: base().log_prob(x), fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(value), base().log_prob(value))


# In a flow


@pytest.mark.parametrize("context_dim", [0, 2])
@PLAINLY
def test_flow_with_any_base(make, context_dim):
    layers = [AffineCoupling(2, context_dim=context_dim), CholeskyAffine(2)]
    flow = randomise(Flow(layers, make(2)), 0.3)
    context = torch.randn(3, context_dim) if context_dim else None
    d = flow(context)
    value = d.sample((5,))
    assert value.shape == (5, *d.batch_shape, 2)
    assert not value.requires_grad
    scored = d.log_prob(value)  # of the draw, kept
    with torch.no_grad():
        kept = d.log_prob(value)
    assert torch.allclose(scored, kept)
    assert d.has_rsample is d.base.has_rsample
    if d.has_rsample:
        assert d.rsample().requires_grad


def test_flow_without_rsample_says_so():
    d = Flow([CholeskyAffine(2)], GaussianMixture(2))()
    assert not d.has_rsample
    with pytest.raises(NoRsampleError, match="Use sample") as caught:
        d.rsample()
    assert re.fullmatch(
        r"rsample expected a base whose draws carry gradients, but got MixtureSameFamily.*\. Use "
        r"sample\(\) and log_prob\(\), or a base that has rsample, such as StandardNormal\.",
        str(caught.value),
        re.DOTALL,
    )
    assert isinstance(caught.value, NotImplementedError)
    assert d.expand([3]).sample().shape == (3, 2)


def test_a_context_for_the_base_alone():
    flow = randomise(Flow([CholeskyAffine(2)], GaussianMixture(2, 3, context_dim=2)), 0.3)
    assert flow.context_dim == 2
    context, value = torch.randn(4, 2), torch.randn(4, 2)
    d = flow(context)
    assert d.batch_shape == (4,)
    apart = [flow(c).log_prob(v) for c, v in zip(context, value, strict=True)]
    assert torch.allclose(d.log_prob(value), torch.stack(apart))
    with pytest.raises(ContextError, match=r"expected a context of shape \(\.\.\., 2\)"):
        flow()


def test_sizes_must_agree():
    with pytest.raises(ShapeError, match=r"Flow expected a base of dim=2 .*StudentT"):
        Flow([CholeskyAffine(2)], StudentT(3))
    with pytest.raises(ShapeError, match=r"layers of context_dim=3\. Build both with the same"):
        Flow([AffineCoupling(2, context_dim=3)], GaussianMixture(2, context_dim=2))


def test_as_guide_by_the_score_function():
    """SVI works without rsample, and finds both modes of the target."""
    flow = Flow([Elementwise(1, Shift())], GaussianMixture(1, 2, spread=0.9))

    def model():
        modes = dist.Normal(torch.tensor([-2.0, 2.0]).unsqueeze(-1), 0.5).to_event(1)
        pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), modes))

    def guide():
        pyro.module("flow", flow)
        pyro.sample("z", flow())

    elbo = Trace_ELBO(64, vectorize_particles=True)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.02}), elbo)
    for _ in range(300):
        svi.step()
    z = flow().sample((2000,))
    assert 0.3 < (z > 0).double().mean() < 0.7
    assert abs(z.abs().mean() - 2) < 0.2


# Each by itself


def test_student_t_agrees_with_torch():
    base = StudentT(3, df=7.0, learnable=False)
    value = 3 * torch.randn(20, 3)
    expected = torch.distributions.StudentT(7.0).log_prob(value).sum(-1)
    assert torch.allclose(base().log_prob(value), expected, atol=1e-10)


def test_student_t_bounds_its_degrees_of_freedom():
    base = StudentT(2, bounds=(2.0, 50.0))
    assert torch.allclose(base.df, torch.tensor(5.0))
    for raw, edge in ((1e20, 50.0), (-1e20, 2.0)):
        base.tensors.start["share"].data.fill_(raw)
        assert torch.allclose(base.df, torch.tensor(edge))


def test_student_t_learns_the_tails():
    base, data = StudentT(1, df=30.0), torch.distributions.StudentT(3.0).sample((4000, 1))
    optimiser = torch.optim.Adam(base.parameters(), lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        (-base().log_prob(data).mean()).backward()
        optimiser.step()
    assert 2.5 < base.df < 3.6


def test_student_t_has_gradients_of_draws():
    base = StudentT(2)
    base().rsample((50,)).square().sum().backward()
    assert (base.tensors.start["share"].grad != 0).all()


def test_fixed_student_t_has_no_trained_parameter():
    assert not any(p.requires_grad for p in StudentT(2, learnable=False).parameters())


def test_student_t_errors():
    text = "StudentT expected 0 < bounds[0] < df < bounds[1], but got df=200.0 and bounds="
    with pytest.raises(OptionError, match=re.escape(text)):
        StudentT(2, df=200.0)


def test_uniform_box_edges_are_inside():
    for dtype in (torch.float32, torch.float64):
        base = UniformBox(1).to(dtype)
        edge = torch.stack([base.low, base.high])
        inside = torch.full((2,), -math.log(2 * math.pi), dtype=dtype)
        assert torch.allclose(base().log_prob(edge), inside)
        assert base().log_prob(torch.tensor([torch.nan], dtype=dtype)).isnan()
        assert (base().sample((1000,)).abs() <= base.high).all()


def test_uniform_box_errors():
    with pytest.raises(OptionError, match="UniformBox expected finite low < high, but got low=1"):
        UniformBox(2, low=1.0, high=1.0)


def test_gaussian_mixture_starts_about_standard():
    base = GaussianMixture(4, 50, spread=0.8)
    x = base().sample((20000,))
    assert x.mean(0).abs().max() < 0.05
    assert (x.var(0) - 1).abs().max() < 0.5
    assert torch.allclose(base.weights.sum(), torch.tensor(1.0))
    assert (base.means.std(0) > 0.4).all()
    assert torch.equal(base.means, GaussianMixture(4, 50, spread=0.8).means)
    assert not torch.equal(base.means, GaussianMixture(4, 50, spread=0.8, seed=1).means)


def test_gaussian_mixture_initialize():
    centres = torch.tensor([[-6.0, 0.0], [6.0, 1.0], [0.0, 9.0]])
    counts = (100, 300, 600)
    data = torch.cat([c + 0.5 * torch.randn(n, 2) for c, n in zip(centres, counts, strict=True)])
    base = GaussianMixture(2, 3)
    base.initialize(data)
    order = base.weights.argsort()
    assert torch.allclose(base.means[order], centres, atol=0.2)
    assert torch.allclose(base.weights[order], torch.tensor([0.1, 0.3, 0.6]), atol=0.01)
    assert torch.allclose(base.scales, torch.tensor(0.5), atol=0.15)


def test_flow_initialize_reaches_the_base():
    data = torch.cat([torch.randn(50, 2) - 8, torch.randn(50, 2) + 8])
    layer = CholeskyAffine(2)
    layer.set(loc=torch.full((2,), 8.0))
    flow = Flow([layer], GaussianMixture(2, 2))
    flow.initialize(data)
    means = flow.base.means[:, 0].sort()[0]
    assert torch.allclose(means, torch.tensor([-16.0, 0.0]), atol=0.7)


def test_gaussian_mixture_one_point_in_a_group():
    base = GaussianMixture(1, 3)
    base.initialize(torch.tensor([[0.0], [0.1], [0.2], [50.0], [100.0]]))
    assert (base.scales > 1).all()
    assert base().log_prob(torch.zeros(1)).isfinite()


def test_gaussian_mixture_errors():
    with pytest.raises(OptionError, match="0 < spread < 1, but got components=0"):
        GaussianMixture(2, 0)
    with pytest.raises(DataError, match="kmeans expected finite points"):
        GaussianMixture(2, 3).initialize(torch.full((5, 2), torch.nan))
    with pytest.raises(
        ContextError, match=r"GaussianMixture expected a context of shape \(\.\.\., 2"
    ):
        GaussianMixture(2, 3, context_dim=2)(torch.zeros(3))


def test_resampled_starts_as_the_normal():
    base, value = ResampledBase(3), torch.randn(5, 3)
    assert torch.allclose(base().log_prob(value), StandardNormal(3)().log_prob(value))


def sharp(truncation=100, draws=1024):
    """Acceptance that depends on the side: a closed form is at hand."""
    base = ResampledBase(1, (), truncation=truncation, draws=draws)
    with torch.no_grad():
        base.acceptance.linears[-1].weight.fill_(3.0)
        base.acceptance.linears[-1].bias.fill_(-1.0)
    return base


@pytest.mark.parametrize("truncation", [2, 5, 100])
def test_resampled_error_is_that_of_the_normalizer(truncation):
    base = sharp(truncation)
    axis = torch.linspace(-9, 9, 20001).unsqueeze(-1)
    normal = StandardNormal(1)().log_prob(axis)
    accept = torch.sigmoid(base.logit(axis))
    exact = torch.trapezoid(normal.exp() * accept, axis[:, 0])
    fixed = torch.sigmoid(base.logit(base.points)).mean()
    assert abs(fixed / exact - 1) < 1e-3
    alpha = (1 - exact) ** (truncation - 1)
    expected = normal + ((1 - alpha) * accept / exact + alpha).log()
    assert (base().log_prob(axis) - expected).abs().max() < 2e-3
    estimate, error = base.normalizer(20000)
    assert (estimate - exact).abs() < 4 * error
    assert 1e-3 < error < 5e-3


def test_resampled_truncation_is_the_share_of_normal_draws():
    base = sharp(truncation=2)
    # With two draws, P(x < 0) is that of one kept draw, or of the second, whatever it is.
    axis = torch.linspace(-9, 0, 10001).unsqueeze(-1)
    below = torch.trapezoid(base().log_prob(axis).exp(), axis[:, 0])
    drawn = (base().sample((20000,)) < 0).double().mean()
    assert abs(drawn - below) < 4 * (0.25 / 20000) ** 0.5
    assert below > 0.1
    assert (sharp()().sample((20000,)) < 0).double().mean() < 0.5 * below


def test_resampled_redraw():
    base, value = sharp(), torch.zeros(1)
    before = base().log_prob(value)
    base.redraw(seed=1, draws=256)
    after = base().log_prob(value)
    assert 0 < (after - before).abs() < 0.02
    base.redraw(seed=0, draws=1024)
    assert torch.equal(base().log_prob(value), before)
    assert "draws=1024" in repr(base)


def test_resampled_learns_a_hole():
    data = torch.randn(3000, 1)
    data = data[data[:, 0].abs() > 0.7]
    base = ResampledBase(1, (16,), truncation=20)
    optimiser = torch.optim.Adam(base.parameters(), lr=0.03)
    for _ in range(300):
        optimiser.zero_grad()
        (-base().log_prob(data).mean()).backward()
        optimiser.step()
    inside = (base().sample((2000,)).abs() < 0.5).double().mean()
    assert inside < 0.1  # 0.38 of a normal's draws


def test_resampled_errors():
    with pytest.raises(OptionError, match="expected truncation >= 2 and draws >= 2, but"):
        ResampledBase(2, truncation=1)


def test_bases_check_their_sizes():
    with pytest.raises(ShapeError, match="StandardNormal expected dim >= 1"):
        StandardNormal(0)


def test_another_base_needs_only_forward():
    class Shifted(Base):
        def forward(self, context=None):
            return dist.Normal(self.own_context(context), 1.0).to_event(1)

    flow = Flow([CholeskyAffine(2)], Shifted(2, context_dim=2))
    context = torch.randn(5, 2)
    assert torch.allclose(
        flow.log_prob(context, context), torch.tensor(-math.log(2 * math.pi)).expand(5)
    )
    assert repr(flow.base) == "Shifted(dim=2, context_dim=2)"
