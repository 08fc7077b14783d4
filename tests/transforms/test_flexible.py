# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Flexible univariates: closed forms, far out, and at parameters of any size."""

import math

import pytest
import torch
from torch.distributions import Normal, StudentT

from pyro_flows.ops import (
    bernstein_basis,
    gauss_legendre,
    linear_tails,
    log_normal_cdf,
    logit_of_mixture,
    normal_quantile_of_log,
    powers,
    probit_of_mixture,
)
from pyro_flows.transforms import (
    Bernstein,
    DeepSigmoidal,
    Elementwise,
    Gaussianization,
    LogisticMixture,
    MonotonicNetwork,
    SinhArcsinh,
    SumOfSquares,
    TailTransform,
)

UNIVARIATES = {
    "bernstein": Bernstein(degree=6),
    "sum_of_squares": SumOfSquares(polynomials=2, degree=2),
    "deep_sigmoidal": DeepSigmoidal(hidden=4, layers=1),
    "dense_sigmoidal": DeepSigmoidal(hidden=4, layers=3),
    "monotonic_network": MonotonicNetwork(hidden=4),
    "logistic_mixture": LogisticMixture(components=4),
    "gaussianization": Gaussianization(components=4),
    "sinh_arcsinh": SinhArcsinh(),
    "tail_transform": TailTransform(),
}
every = pytest.mark.parametrize("u", UNIVARIATES.values(), ids=UNIVARIATES)
START = [u for name, u in UNIVARIATES.items() if name != "tail_transform"]


def random_params(u, *shape, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, u.num_parameters, generator=generator, dtype=torch.float64)


@every
def test_is_increasing_and_onto_the_real_line(u):
    params = random_params(u, 20, 1, scale=2.0)
    x = torch.cat([torch.linspace(-12, 12, 801), torch.tensor([1e3, 1e6, 1e20])]).expand(20, -1)
    y, _ = u.forward_and_ladj(x, params)
    assert (y.diff(dim=-1) > 0).all()
    ends, _ = u.inverse_and_ladj(torch.tensor([-1e20, 1e20]).expand(20, -1), params)
    assert ends.isfinite().all()
    back, _ = u.forward_and_ladj(ends, params)
    assert torch.allclose(back, torch.tensor([-1e20, 1e20]).expand(20, -1), rtol=1e-12)


@every
@pytest.mark.parametrize("size", [5.0, 1e3, 1e20])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_finite_for_parameters_of_any_size(u, size, dtype):
    """A conditioner far from its data asks for anything."""
    if dtype == torch.float32:
        size = min(size, 1e10)
    params = random_params(u, 50, 1, scale=size).to(dtype).requires_grad_()
    x = torch.linspace(-9, 9, 25, dtype=dtype).expand(50, -1).clone().requires_grad_()
    for run in (u.forward_and_ladj, u.inverse_and_ladj):
        y, ladj = run(x, params)
        assert y.isfinite().all()
        assert ladj.isfinite().all()
        if run == u.forward_and_ladj:
            grads = torch.autograd.grad(y.sum() + ladj.sum(), [x, params])
            assert all(g.isfinite().all() for g in grads)


@every
def test_float32_inverse_far_out(u):
    params = random_params(u, 20, 1).float()
    y = torch.tensor([-1e15, -1e6, -50.0, 50.0, 1e6, 1e15], dtype=torch.float32).expand(20, -1)
    x, ladj = u.inverse_and_ladj(y, params)
    back, forward_ladj = u.forward_and_ladj(x, params)
    assert torch.allclose(back, y, rtol=1e-4)
    assert torch.allclose(ladj, -forward_ladj, atol=1e-3)


@pytest.mark.parametrize("u", START, ids=lambda u: type(u).__name__)
def test_starts_near_the_identity(u):
    x = torch.linspace(-3, 3, 301)
    y, ladj = u.forward_and_ladj(x, torch.zeros(301, u.num_parameters))
    assert (y - x).abs().max() < 0.1
    assert ladj.abs().max() < 0.1


@pytest.mark.parametrize("u", START, ids=lambda u: type(u).__name__)
def test_no_two_parameters_are_taught_the_same_at_the_start(u):
    """Units that get the same gradients stay the same for ever."""
    params = torch.zeros(1, u.num_parameters, requires_grad=True)
    x = 2 * Normal(0.0, 1.0).sample((200, 1))
    rows = []
    for weight in torch.randn(6, 200, 1):
        y, ladj = u.forward_and_ladj(x, params)
        rows.append(torch.autograd.grad((weight * (y + ladj)).sum(), params)[0][0])
    columns = torch.stack(rows, -1)
    columns = columns[columns.abs().amax(-1) > 1e-12]
    alike = torch.cdist(columns, columns) + 10 * torch.eye(len(columns))
    assert len(columns) > u.num_parameters / 3
    assert alike.min() > 1e-6


def test_a_context_batch_broadcasts_in_the_inverse():
    u = UNIVARIATES["bernstein"]
    x, ladj = u.inverse_and_ladj(torch.zeros(2), random_params(u, 5, 2))
    assert x.shape == ladj.shape == (5, 2)


# Against closed forms


def test_bernstein_slope_is_a_weighted_mean_of_its_parameters():
    u = Bernstein(degree=3, bound=2.0)
    params = torch.tensor([[0.0, 0.5, -0.2, 0.1]])
    x = torch.tensor([[-7.0, 0.0, 9.0]])
    _, ladj = u.forward_and_ladj(x, params.unsqueeze(0))
    r = 6.907755278982137 * torch.tanh(params[0, 1:] / 6.907755278982137)
    middle = (r.exp() * torch.tensor([0.25, 0.5, 0.25])).sum().log()
    assert torch.allclose(ladj[0], torch.stack([r[0], middle, r[2]]))


def test_bernstein_shift_moves_the_middle_of_the_box():
    u = Bernstein(degree=4)
    params = random_params(u, 6)
    low, high = (u.forward_and_ladj(torch.full((6,), x), params)[0] for x in (-5.0, 5.0))
    assert torch.allclose(0.5 * (low + high), params[:, 0])


def test_sum_of_squares_is_exact_for_its_polynomials():
    """One square of a line: ``y = int (1e-3 + (1 + a + b u / 5)^2) / 1.001 du``."""
    u = SumOfSquares(polynomials=1, degree=1)
    params = torch.tensor([[0.3, 0.4, -0.7]])
    a, b = 10 * torch.tanh(params[0, 1:] / 10)
    x = torch.linspace(-5, 5, 11)
    y, _ = u.forward_and_ladj(x.unsqueeze(-1), params.expand(11, 1, 3))
    primitive = ((1 + a + b * x / 5) ** 3 - (1 + a) ** 3) / (3 * b / 5)
    assert torch.allclose(y[:, 0], 0.3 + (1e-3 * x + primitive) / 1.001)


def test_monotonic_network_quadrature_error_is_as_documented():
    u = MonotonicNetwork(hidden=4)
    for scale, allowed in ((1.5, 1e-9), (20.0, 1e-6)):
        params = random_params(u, 300, 1, scale=scale)
        x = torch.linspace(-5, 5, 21).repeat(300, 1).requires_grad_()
        y, ladj = u.forward_and_ladj(x, params)
        slope = torch.autograd.grad(y.sum(), x)[0]
        assert (slope.log() - ladj).abs().max() < allowed


def test_mixtures_against_plain_probabilities():
    z, log_weights = torch.randn(50, 3), torch.randn(50, 3).log_softmax(-1)
    weights = log_weights.exp()
    y, log_partials = logit_of_mixture(z, log_weights)
    assert torch.allclose(y, (weights * z.sigmoid()).sum(-1).logit())
    z.requires_grad_()
    for function in (logit_of_mixture, probit_of_mixture):
        y, log_partials = function(z, log_weights)
        slopes = torch.autograd.grad(y.sum(), z)[0]
        assert torch.allclose(log_partials, slopes.log(), atol=1e-9)
    normal = Normal(0.0, 1.0)
    expected = normal.icdf((weights * normal.cdf(z)).sum(-1))
    assert torch.allclose(y, expected, atol=1e-9)


def test_mixtures_far_out():
    """Tails follow the widest component, where all probabilities are 0 or 1."""
    log_weights = torch.tensor([0.3, 0.7]).log()
    for x in (-1e6, 1e6):
        z = torch.tensor([x, 2 * x])
        y, log_partials = logit_of_mixture(z, log_weights)
        assert y.item() == pytest.approx(x - math.copysign(1, x) * math.log(0.3), abs=1e-8)
        assert log_partials[0].item() == pytest.approx(0, abs=1e-12)
        y, _ = probit_of_mixture(z, log_weights)
        assert y.item() == pytest.approx(x, rel=1e-11)


def test_gaussianization_backwards_is_a_mixture_of_normals():
    """With a normal base the density of ``layer.inv`` is that of the mixture."""
    layer = Elementwise(1, Gaussianization(components=2))
    with torch.no_grad():
        layer.conditioner.bias.copy_(torch.tensor([0.4, -0.4, -1.0, 2.0, 0.3, -0.5]))
    x = torch.linspace(-6, 6, 41).unsqueeze(-1)
    z, ladj = layer.forward_and_ladj(x)
    log_density = Normal(0.0, 1.0).log_prob(z[:, 0]) + ladj
    log_weights, locations, log_slopes = layer.univariate.parts(layer.conditioner.bias)
    parts = [
        w.exp() * Normal(m, (-s).exp()).log_prob(x[:, 0]).exp()
        for w, m, s in zip(log_weights, locations, log_slopes, strict=True)
    ]
    mixture = 0.999 * sum(parts) + 0.001 * Normal(0.0, 1.0).log_prob(x[:, 0]).exp()
    assert torch.allclose(log_density, mixture.log(), atol=1e-9)


def test_one_sigmoidal_layer_is_a_logistic_mixture():
    deep, mixture = DeepSigmoidal(hidden=3, layers=1), LogisticMixture(components=3)
    x = torch.linspace(-4, 4, 9)
    got, expected = (
        u.forward_and_ladj(x, torch.zeros(9, u.num_parameters)) for u in (deep, mixture)
    )
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, atol=1e-12)


def test_dense_sigmoidal_sizes():
    assert [DeepSigmoidal(4, n).num_parameters for n in (1, 2, 3)] == [12, 52, 92]


def test_sinh_arcsinh_against_its_formula():
    params = torch.tensor([[0.5, -0.3]])
    skew, tail = 2 * math.tanh(0.25), math.exp(math.log(4) * math.tanh(-0.3 / math.log(4)))
    x = torch.linspace(-20, 20, 9)
    y, _ = SinhArcsinh().forward_and_ladj(x.unsqueeze(-1), params.expand(9, 1, 2))
    assert torch.allclose(y[:, 0], (tail * x.asinh() + skew).sinh())


def test_tail_transform_has_the_tails_of_a_student_t():
    """The ratio of its survival to a Student-t's settles, as the tail index is the same."""
    u = TailTransform(start=0.5, heaviest=1.0, bound=12.0)
    y = torch.tensor([1e2, 1e3, 1e4])
    x, _ = u.inverse_and_ladj(y, torch.zeros(3, 2))
    log_survival = log_normal_cdf(-x)[0]
    slope = log_survival.diff() / y.log().diff()
    assert torch.allclose(slope, torch.full((2,), -2.0), atol=2e-2)
    density = StudentT(2.0).log_prob(y).diff() / y.log().diff()
    assert torch.allclose(slope - 1, density, atol=2e-2)


def test_tail_transform_sides_are_apart():
    u, x = TailTransform(), torch.tensor([[-4.0, 4.0]])
    light, heavy = torch.tensor([-3.0, -3.0]), torch.tensor([-3.0, 2.0])
    y, _ = u.forward_and_ladj(x, light.expand(1, 2, 2))
    other, _ = u.forward_and_ladj(x, heavy.expand(1, 2, 2))
    assert y[0, 0] == other[0, 0] == -y[0, 1]
    assert other[0, 1] > 3 * y[0, 1]


# Ops


def test_log_normal_cdf_and_its_quantile():
    special = pytest.importorskip("scipy.special")
    z = torch.cat([torch.linspace(-40, 4, 500), -torch.logspace(2, 7, 20)])
    value, log_slope = log_normal_cdf(z)
    assert torch.allclose(value, torch.as_tensor(special.log_ndtr(z.numpy())), rtol=1e-12)
    leaf = z.clone().requires_grad_()
    slope = torch.autograd.grad(log_normal_cdf(leaf)[0].sum(), leaf)[0]
    assert torch.allclose(log_slope, slope.log(), atol=1e-9)
    lower = z[z <= 0]
    assert torch.allclose(normal_quantile_of_log(log_normal_cdf(lower)[0]), lower, rtol=1e-13)


def test_gradients_of_the_normal_quantile():
    log_p = torch.tensor([-0.7, -3.0, -49.0, -51.0, -1e4], requires_grad=True)
    assert torch.autograd.gradcheck(normal_quantile_of_log, (log_p,))


@pytest.mark.parametrize("z", [torch.nan, -1e15, 0.0, 1e15])
def test_log_normal_cdf_in_float32(z):
    value, log_slope = log_normal_cdf(torch.tensor(z, dtype=torch.float32))
    if math.isnan(z):
        assert value.isnan()
        assert log_slope.isnan()
    else:
        assert value.isfinite()
        assert log_slope.isfinite()


def test_linear_tails():
    x = torch.tensor([-1e20, -2.0, -1.0, 0.5, 2.0, torch.nan], requires_grad=True)
    y, ladj = linear_tails(lambda x: (x.exp(), x), x, -1.0, 1.0)
    expected = [math.exp(-1) * (1 - 1), math.exp(-1), math.exp(0.5), 2 * math.e]
    assert torch.allclose(y[1:5], torch.tensor(expected))
    assert torch.allclose(ladj[1:5], torch.tensor([-1.0, -1.0, 0.5, 1.0]))
    assert y[5].isnan()
    slope = torch.autograd.grad(y[:5].sum(), x)[0][:5]
    assert torch.allclose(slope, ladj[:5].exp())


def test_gauss_legendre_is_exact_to_its_degree():
    nodes, weights = gauss_legendre(4)
    for k in (0, 3, 7):
        assert sum(w * u**k for u, w in zip(nodes, weights, strict=True)) == pytest.approx(
            1 / (k + 1)
        )


def test_bernstein_basis():
    t = torch.linspace(0, 1, 9).requires_grad_()
    basis = bernstein_basis(t, 5)
    assert torch.allclose(basis.sum(-1), torch.ones(9))
    mean = basis @ torch.linspace(0, 1, 6)
    assert torch.allclose(mean, t)
    assert torch.allclose(torch.autograd.grad(mean.sum(), t)[0], torch.ones(9))


def test_powers_have_gradients_at_zero():
    x = torch.zeros(1, requires_grad=True)
    grads = [torch.autograd.grad(powers(x, 2)[0, k], x)[0].item() for k in range(3)]
    assert grads == pytest.approx([0.0, 1.0, 0.0], abs=1e-99)
