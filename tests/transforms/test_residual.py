# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What only residual layers do; the laws hold them to the rest."""

from __future__ import annotations

import re

import pytest
import torch

from pyro_flows.errors import DerivativeError, OptionError, ShapeError
from pyro_flows.testing import check_layer
from pyro_flows.testing.case import Case, jacobian
from pyro_flows.transforms import ContractiveResidual, Planar, Radial, Sylvester
from pyro_flows.transforms.residual.sylvester import orthonormal_columns


def set_start(layer, **values):
    with torch.no_grad():
        for name, value in values.items():
            layer.parameters_of.start[name].copy_(torch.as_tensor(value))


@pytest.mark.parametrize("pull", [-1e6, -30.0, -1.0, 0.5, 30.0])
def test_planar_is_a_bijection_for_any_parameters(pull):
    layer = Planar(2)
    set_start(layer, w=[1.0, 0.5], u=[pull, 0.0], b=0.3)
    x = torch.linspace(-3, 3, 601).unsqueeze(-1) * torch.tensor([1.0, 0.5])
    y, ladj = layer.forward_and_ladj(x)
    assert ((y @ torch.tensor([1.0, 0.5])).diff() > 0).all()
    back, back_ladj = layer.inverse_and_ladj(y)
    slope = ladj.exp()
    assert ((back - x).norm(dim=-1) <= 1e-12 / slope).all()
    mild = slope > 1e-3
    assert torch.allclose(back_ladj[mild], -ladj[mild], atol=1e-8)


def test_planar_reaches_every_admissible_u():
    """``a / (1 + softplus(-a))`` goes over all of (-1, inf) as ``a`` does over the line."""
    layer = Planar(1)
    reached = []
    for pull in (-1e8, -3.0, 0.0, 3.0, 1e8):
        set_start(layer, w=[1.0], u=[pull])
        reached.append(layer._ridge(torch.zeros(1), None)[1].item())
    assert reached == sorted(reached)
    assert -1 < reached[0] < -1 + 1e-7
    assert reached[2] == 0.0
    assert reached[-1] > 1e7


def test_radial_in_the_papers_letters():
    layer = Radial(3)
    set_start(layer, center=[1.0, 0.0, -1.0], log_alpha=0.4, log_scale=-0.7)
    center, alpha, scale = layer._shape(torch.zeros(3), None)
    beta = alpha * (scale - 1)
    x = torch.randn(50, 3)
    r = (x - center).norm(dim=-1, keepdim=True)
    expected = x + beta / (alpha + r) * (x - center)
    y, ladj = layer.forward_and_ladj(x)
    assert torch.allclose(y, expected)
    h = 1 / (alpha + r[:, 0])
    det = (1 + beta * h) ** 2 * (1 + beta * h - beta * h**2 * r[:, 0])
    assert torch.allclose(ladj, det.log())


@pytest.mark.parametrize("log_scale", [-1e3, -5.0, 5.0, 1e3])
def test_radial_keeps_its_centre(log_scale):
    """The scale there is bounded, and a value at the very centre is scored."""
    layer = Radial(2)
    set_start(layer, center=[1.0, 2.0], log_scale=log_scale)
    center = torch.tensor([1.0, 2.0])
    y, ladj = layer.forward_and_ladj(center)
    back, back_ladj = layer.inverse_and_ladj(center)
    assert torch.equal(y, center)
    assert torch.equal(back, center)
    assert torch.allclose(ladj, -back_ladj)
    assert ladj.abs() <= 2 * torch.tensor(1e3).log() + 1e-9


def test_sylvester_has_orthonormal_columns():
    for reflections in (torch.randn(4, 6), torch.randn(3, 2, 4, 6), torch.zeros(4, 6)):
        q = orthonormal_columns(reflections, 4)
        assert q.shape == (*reflections.shape[:-2], 6, 4)
        assert torch.allclose(q.mT @ q, torch.eye(4).expand(*q.shape[:-2], 4, 4))


def test_sylvester_determinant_is_that_of_its_matrices():
    case = Case(lambda d, c: Sylvester(d, c, rank=3), 5, perturb=1.0)
    layer, x = case.layer(), case.values(20)
    q, r, s, b, _ = layer._factors(x, None)
    assert torch.equal(r.tril(-1), torch.zeros(3, 3))
    assert torch.equal(s.tril(-1), torch.zeros(3, 3))
    y, ladj = layer.forward_and_ladj(x)
    h = torch.tanh(x @ q @ s.T + b)
    assert torch.allclose(y, x + h @ r.T @ q.T)
    dense = torch.eye(5) + q @ r @ torch.diag_embed(1 - h * h) @ s @ q.T
    assert torch.allclose(ladj, torch.linalg.det(dense).log())
    assert ladj.abs().max() > 0.1


def test_sylvester_of_rank_one_is_planar():
    sylvester, planar = Sylvester(4, rank=1), Planar(4)
    set_start(sylvester, r_diagonal=[-0.8], s_diagonal=[1.7], b=[0.2])
    q, r, s, b, _ = sylvester._factors(torch.zeros(4), None)
    w = s[0, 0] * q[:, 0]
    # u so that planar's shrinking gives r q: the raw value is found by the same shrinking.
    set_start(planar, w=w, u=-0.8 * q[:, 0], b=b[0])
    x = torch.randn(10, 4)
    for mine, its in zip(sylvester.forward_and_ladj(x), planar.forward_and_ladj(x), strict=True):
        assert torch.allclose(mine, its)


@pytest.mark.parametrize("rank", [0, 4])
def test_sylvester_refuses_a_rank(rank):
    text = f"Sylvester expected a rank of 1 to dim=3, but got {rank}. The rank is the number"
    with pytest.raises(ShapeError, match=re.escape(text)):
        Sylvester(3, rank=rank)


def contractive(dim=3, context_dim=0, **options):
    return ContractiveResidual(dim, context_dim, hidden_dims=(8, 8), **options)


def wild(layer, size=30.0):
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(size * torch.randn_like(p))
    return layer


@pytest.mark.parametrize("lipschitz", [0.5, 0.97])
@pytest.mark.parametrize("log_det", ["exact", "stochastic"])
def test_contractive_is_a_bijection_for_any_weights(lipschitz, log_det):
    layer = wild(contractive(lipschitz=lipschitz, log_det=log_det))
    x = 20 * torch.randn(300, 3)
    y, _ = layer.forward_and_ladj(x)
    assert (y - x).std() > 1
    back, _ = layer.inverse_and_ladj(y)
    assert (back - x).abs().max() < 1e-12 / (1 - lipschitz)
    layer.log_det = "exact"
    ladj = layer.forward_and_ladj(x)[1]
    bound = 3 * torch.tensor([1 - lipschitz, 1 + lipschitz]).log()
    assert (ladj >= bound[0]).all()
    assert (ladj <= bound[1]).all()


@pytest.mark.parametrize("options", [{"lipschitz": 1.0}, {"lipschitz": 0}, {"lipschitz": -1}])
def test_contractive_refuses_a_bound(options):
    with pytest.raises(OptionError, match=r"expected 0 < lipschitz < 1, but got .* stack several"):
        contractive(**options)


def test_contractive_refuses_a_mode():
    with pytest.raises(OptionError, match=r"one of \('exact', 'stochastic'\), but got 'hutch'"):
        contractive(log_det="hutch")


# The stochastic mode: laws of value; means instead of laws of log-determinants.

LAWS_OF_VALUE = (
    "round_trip",
    "reaches_far",
    "finite",
    "parameters_get_gradients",
    "starts_at_identity",
    "constraints_are_right",
    "errors_are_sentences",
)


@pytest.mark.parametrize(("dim", "context_dim"), [(1, 2), (2, 0), (5, 2)])
def test_stochastic_mode_obeys_the_laws_of_value(dim, context_dim):
    def make(d, c):
        return contractive(d, c, log_det="stochastic")

    left_out = check_layer(
        make, dim=dim, context_dim=context_dim, batch_shape=(3,), laws=LAWS_OF_VALUE
    )
    assert left_out == {}


def test_stochastic_mode_refuses_second_derivatives():
    """By values and by parameters, in both directions; in exact mode there are some."""
    layer, x = stochastic(2)
    x.requires_grad_()
    weight = layer.net.linears[0].weight
    for run in (layer.forward_and_ladj, layer.inverse_and_ladj):
        grads = torch.autograd.grad(run(x)[1].sum(), (x, weight), create_graph=True)
        for grad in grads:
            for leaf in (x, weight):
                with pytest.raises(DerivativeError, match="differentiated at most once"):
                    torch.autograd.grad(grad.sum(), leaf, retain_graph=True)
    layer.log_det = "exact"
    grads = torch.autograd.grad(layer.inverse_and_ladj(x)[1].sum(), (x, weight), create_graph=True)
    assert torch.autograd.grad(grads[1].sum(), x)[0].any()


def stochastic(exact_terms):
    """A layer whose Jacobian is large, and points."""
    layer = contractive(lipschitz=0.7, log_det="stochastic", exact_terms=exact_terms)
    with torch.no_grad():
        for linear in layer.net.linears:
            # Aligned, and where the activation is steep: random matrices mostly cancel out.
            linear.weight.copy_(4 * torch.eye(*linear.weight.shape))
            linear.weight.add_(0.5 * torch.randn_like(linear.weight))
            linear.bias.fill_(1.0)
    return layer, torch.randn(4, 3)


@pytest.mark.parametrize("exact_terms", [0, 2])
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_estimates_have_the_right_mean(exact_terms, direction):
    """Without the roulette's weights the mean would be off: with no exact term, by all of it."""
    layer, x = stochastic(exact_terms)
    run = layer.forward_and_ladj if direction == "forward" else layer.inverse_and_ladj
    with torch.no_grad():
        draws = torch.stack([run(x.expand(25, 4, 3))[1].mean(0) for _ in range(160)])
    layer.log_det = "exact"
    expected = run(x)[1]
    error = draws.std(0) / len(draws) ** 0.5
    assert expected.abs().max() > 0.2
    assert (error < 0.1).all()
    assert ((draws.mean(0) - expected).abs() < 4.5 * error).all()


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_gradients_of_estimates_have_the_right_mean_under_weights(direction):
    """An implementation that takes all weights to be the first one's would give zero here."""
    layer, x = stochastic(1)
    x = x.requires_grad_()
    weights = torch.tensor([0.0, 1.0, -2.0, 3.0])
    leaves = [x, *layer.parameters()]

    def gradient(count):
        run = layer.forward_and_ladj if direction == "forward" else layer.inverse_and_ladj
        ladj = run(x.expand(count, 4, 3))[1]
        grads = torch.autograd.grad((weights * ladj).mean(0).sum(), leaves, allow_unused=True)
        return torch.cat([g.reshape(-1) for g in grads if g is not None])

    draws = torch.stack([gradient(25) for _ in range(80)])
    layer.log_det = "exact"
    expected = gradient(1)
    error = draws.std(0) / len(draws) ** 0.5 + 1e-9
    z = (draws.mean(0) - expected) / error
    assert expected.abs().max() > 0.1
    assert z.abs().max() < 5  # of about 150 numbers
    assert z.square().mean() < 2


def test_estimates_are_drawn_anew_and_from_torchs_generator():
    layer, x = stochastic(2)
    layer.eval()
    torch.manual_seed(3)
    first = layer.forward_and_ladj(x)
    second = layer.forward_and_ladj(x)
    torch.manual_seed(3)
    again = layer.forward_and_ladj(x)
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[1], second[1])
    assert torch.equal(first[1], again[1])


def test_recorded_estimates_have_the_right_mean_and_gradient():
    """Under vmap the number of terms can't be drawn; the series is cut late instead."""
    layer, x = stochastic(2)

    def score(y):
        x, ladj = layer.inverse_and_ladj(y)
        return ladj + x.sum(), ladj

    run = torch.func.vmap(torch.func.grad_and_value(score, has_aux=True), randomness="different")
    grads, (_, ladj) = run(x[0].expand(3000, 3))
    layer.log_det = "exact"
    one = x[0].clone().requires_grad_()
    back, exact = layer.inverse_and_ladj(one)
    expected = torch.autograd.grad(exact + back.sum(), one)[0]
    for draws, mean in ((ladj, exact), (grads, expected)):
        error = draws.std(0) / len(draws) ** 0.5
        assert ((draws.mean(0) - mean).abs() < 4.5 * error).all()


def test_exact_determinants_are_exact_under_the_steepest_weights():
    layer, x = wild(contractive()), torch.randn(5, 3)
    ladj = layer.forward_and_ladj(x)[1]
    expected = torch.linalg.slogdet(jacobian(layer.forward_and_ladj, x))[1]
    assert torch.allclose(ladj, expected, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["exact", "stochastic"])
def test_contexts_of_any_size_are_inverted(mode, dtype):
    """They move values by as much, and rounding is relative to where values came from."""
    case = Case(
        lambda d, c: ContractiveResidual(d, c, hidden_dims=(8, 8), log_det=mode), 3, 2, dtype=dtype
    )
    layer, y = case.layer(), case.values(16)
    for size in (1.0, 1e3, 1e6, 1e10):
        context = size * case.context(16)
        x = layer.inverse_and_ladj(y, context)[0]
        error = (layer.forward_and_ladj(x, context)[0] - y).abs().amax(-1)
        assert (error <= 100 * case.eps * x.abs().amax(-1).clamp_min(1)).all()
