# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""PLU, rotations, low rank and exponentials against their closed forms."""

import math
import re

import pyro.distributions as dist
import pytest
import torch

from pyro_flows.distributions import Flow
from pyro_flows.errors import OptionError, ShapeError
from pyro_flows.testing import Case
from pyro_flows.transforms import (
    PLU,
    AffineMap,
    Cayley,
    CholeskyAffine,
    DiagonalAffine,
    Householder,
    LowRankAffine,
    MatrixExponential,
    Permute,
    Rotation,
)

AFFINE = {
    "diagonal": DiagonalAffine,
    "cholesky": CholeskyAffine,
    "plu": PLU,
    "householder": lambda d, c=0: Householder(d, context_dim=c),
    "cayley": Cayley,
    "rotation": Rotation,
    "exponential": MatrixExponential,
    "low_rank": lambda d, c=0: LowRankAffine(d, 2, c),
}
ROTATIONS = ["householder", "cayley", "rotation"]


def perturbed(name, dim, context_dim=0, perturb=0.3, seed=0):
    return Case(AFFINE[name], dim, context_dim, seed=seed, perturb=perturb).layer()


def matrix_of(layer, context=None):
    """``W``, column by column."""
    eye = torch.eye(layer.dim)
    zero = layer.forward_and_ladj(torch.zeros_like(eye[0]), context)[0]
    return (layer.forward_and_ladj(eye, context)[0] - zero).mT


@pytest.mark.parametrize("name", AFFINE)
def test_an_affine_map_of_a_normal_is_a_normal(name):
    layer = perturbed(name, 5)
    matrix, loc = matrix_of(layer), layer.tensors.start["loc"]
    flow = Flow([layer])
    value = torch.randn(7, 5)
    expected = dist.MultivariateNormal(loc, matrix @ matrix.mT).log_prob(value)
    torch.testing.assert_close(flow().log_prob(value), expected)


@pytest.mark.parametrize("name", AFFINE)
def test_a_context_gives_another_matrix(name):
    layer = perturbed(name, 4, context_dim=3, perturb=1.0)
    contexts = torch.randn(2, 3)
    first, second = (matrix_of(layer, c) for c in contexts)
    assert (first - second).abs().max() > 1e-2
    y = layer.forward_and_ladj(torch.ones(9, 1, 4), contexts)[0]
    ones = torch.ones(4)
    for i, matrix in enumerate((first, second)):
        loc = layer.tensors(contexts[i])["loc"]
        torch.testing.assert_close(y[:, i], (loc + matrix @ ones).expand(9, 4))


@pytest.mark.parametrize("name", AFFINE)
def test_contexts_move_matrices_within_bounds(name):
    """Contexts far from those of training give a finite, invertible map."""
    layer = perturbed(name, 3, context_dim=2, perturb=1.0)
    context = torch.full((2,), 1e8)
    tensors, start = layer.tensors(context), layer.tensors.start
    for key in start.keys() - {"loc"}:
        assert ((tensors[key] - start[key]).abs() <= 5).all()
    x = torch.randn(3)
    y, ladj = layer.forward_and_ladj(x, context)
    assert y.isfinite().all()
    assert ladj.isfinite()


@pytest.mark.parametrize("dim", [1, 2, 3, 6])
@pytest.mark.parametrize("name", ROTATIONS)
def test_rotations_are_rotations(name, dim):
    layer = perturbed(name, dim, perturb=2.0)
    matrix = matrix_of(layer)
    eye = torch.eye(dim)
    torch.testing.assert_close(matrix @ matrix.mT, eye)
    torch.testing.assert_close(torch.det(matrix), eye[0, 0])
    assert layer.forward_and_ladj(eye)[1].tolist() == [0.0] * dim


@pytest.mark.parametrize("name", ROTATIONS)
def test_rotations_learn_any_rotation(name):
    """From the identity, where pairs of reflections cancel, to a given rotation."""
    torch.manual_seed(0)
    target = torch.linalg.qr(torch.randn(4, 4))[0]
    target[:, 0] *= torch.linalg.det(target).sign()
    layer = AFFINE[name](4)
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=300, line_search_fn="strong_wolfe")

    def loss():
        optimiser.zero_grad()
        value = (matrix_of(layer) - target).square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    assert (matrix_of(layer) - target).abs().max() < 1e-3


def test_a_rotation_of_the_plane_turns_by_its_parameter():
    layer = Rotation(2)
    with torch.no_grad():
        layer.tensors.start["lower"].fill_(math.pi / 6)
    y = layer(torch.tensor([1.0, 0.0]))
    expected = torch.tensor([math.cos(math.pi / 6), 0.5])
    torch.testing.assert_close(y, expected)


def test_rotations_by_large_angles_stay_orthogonal():
    layer = Rotation(30).float()
    with torch.no_grad():
        layer.tensors.start["lower"].normal_().mul_(30)
    x = torch.randn(5, 30, dtype=torch.float32)
    torch.testing.assert_close(layer.inv(layer(x)), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("make", [Cayley, Rotation])
def test_a_lower_rate_turns_less(make):
    slow, fast = make(4, rate=0.3), make(4)
    slow.tensors.start["lower"].data.normal_()
    fast.tensors.start["lower"].data.copy_(0.3 * slow.tensors.start["lower"].data)
    x = torch.randn(5, 4)
    torch.testing.assert_close(slow(x), fast(x))


def test_cayley_is_its_formula():
    layer = perturbed("cayley", 5)
    lower = torch.zeros(5, 5)
    rows, columns = torch.tril_indices(5, 5, offset=-1)
    lower[rows, columns] = layer.tensors.start["lower"].detach()
    skew, eye = lower - lower.mT, torch.eye(5)
    torch.testing.assert_close(matrix_of(layer), (eye - skew) @ torch.inverse(eye + skew))


@pytest.mark.parametrize("reflections", [2, 4])
def test_householder_is_its_product(reflections):
    layer = Case(lambda d, c: Householder(d, reflections), 5).layer()
    vectors = layer.tensors.start["vectors"]
    product = eye = torch.eye(5)
    for v in vectors:
        product = product @ (eye - 2 * torch.outer(v, v) / v.dot(v))
    assert len(vectors) == reflections
    torch.testing.assert_close(matrix_of(layer), product)


@pytest.mark.parametrize(("dim", "count"), [(1, 0), (2, 2), (3, 2), (4, 4), (65, 64)])
def test_householder_makes_enough_reflections(dim, count):
    assert Householder(dim).tensors.start["vectors"].shape == (count, dim)


@pytest.mark.parametrize(("asked", "advised"), [(1, 2), (3, 4), (0, 2), (-1, 2)])
def test_householder_refuses_odd_numbers(asked, advised):
    text = (
        "Householder expected an even number of reflections, at least 2, so that it starts at "
        f"the identity, but got {asked}. Pass {advised}."
    )
    with pytest.raises(OptionError, match=re.escape(text)):
        Householder(4, asked)


def test_householder_with_a_zero_vector_is_finite():
    layer = Householder(3, 2)
    with torch.no_grad():
        layer.tensors.start["vectors"].zero_()
    x = torch.randn(4, 3)
    y, _ = layer.forward_and_ladj(x)
    assert torch.equal(y, x)
    y.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_matrix_exponential_is_exact_for_large_matrices():
    """Where a truncated series is far off: a nilpotent matrix of size 1,000."""
    layer = MatrixExponential(3)
    a = torch.tensor([[0.0, 1e3, 0.0], [0.0, 0.0, 1e3], [0.0, 0.0, 0.0]])
    with torch.no_grad():
        layer.tensors.start["exponent"].copy_(a)
    expected = torch.eye(3) + a + a @ a / 2
    torch.testing.assert_close(matrix_of(layer), expected)


def test_matrix_exponential_has_the_trace_as_ladj():
    layer = perturbed("exponential", 4)
    ladj = layer.forward_and_ladj(torch.zeros(4))[1]
    torch.testing.assert_close(ladj, torch.linalg.slogdet(matrix_of(layer))[1])


def test_plu_is_its_product():
    layer = Case(lambda d, c: PLU(d, permutation=[2, 0, 3, 1]), 4).layer()
    with torch.no_grad():
        layer.signs.copy_(torch.tensor([1.0, -1.0, -1.0, 1.0]))
    factors, eye = layer.tensors.start["factors"], torch.eye(4)
    lower = factors.tril(-1) + eye
    upper = factors.triu(1) + (layer.signs * factors.diagonal().exp()).diag()
    torch.testing.assert_close(matrix_of(layer), eye[[2, 0, 3, 1]] @ lower @ upper)
    x = torch.randn(6, 4)
    torch.testing.assert_close(layer.inv(layer(x)), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_plu_from_a_matrix(dtype):
    torch.manual_seed(0)
    matrix = torch.randn(6, 6, dtype=dtype)
    layer = PLU.from_matrix(matrix)
    x = torch.randn(3, 6, dtype=dtype)
    y, ladj = layer.forward_and_ladj(x)
    torch.testing.assert_close(y, x @ matrix.mT)
    torch.testing.assert_close(ladj, torch.linalg.slogdet(matrix)[1].expand(3))
    torch.testing.assert_close(layer.inv(y), x)
    assert y.dtype == dtype
    assert PLU.from_matrix(matrix, context_dim=2).context_dim == 2


@pytest.mark.parametrize(
    "bad",
    [torch.ones(2, 3), torch.ones(3), torch.ones(2, 2), torch.full((2, 2), torch.nan)],
    ids=["oblong", "vector", "singular", "nan"],
)
def test_plu_refuses_matrices_without_inverse(bad):
    text = (
        "PLU.from_matrix expected an invertible square matrix, but got one of shape "
        f"{tuple(bad.shape)} that is not. Pass for example a rotation"
    )
    with pytest.raises(ShapeError, match=re.escape(text)):
        PLU.from_matrix(bad)


def test_plu_takes_a_permutation_in_any_form():
    x = torch.arange(3.0)
    for permutation in (3, [2, 1, 0], torch.tensor([2, 1, 0]), Permute(3)):
        assert PLU(3, permutation=permutation)(x).tolist() == [2.0, 1.0, 0.0]
    text = "PLU expected a permutation of 3 coordinates, but got one of 4. Pass for example"
    with pytest.raises(ShapeError, match=re.escape(text)):
        PLU(3, permutation=4)


def test_low_rank_is_a_diagonal_plus_rank():
    layer = perturbed("low_rank", 6, perturb=1.0)
    scale = layer.tensors.start["log_scale"].exp()
    rest = matrix_of(layer) / scale.unsqueeze(-1) - torch.eye(6)
    assert torch.linalg.matrix_rank(rest, rtol=1e-10) == 2


def test_low_rank_is_invertible_wherever_it_is_trained_to():
    """Parameters that would make ``I + u v^T`` singular or turn it over make neither."""
    layer = LowRankAffine(3, 1)
    v = layer.tensors.start["right"].detach()[0]
    for length in (-1.0, -3.0, -50.0, 3.0, 50.0):
        with torch.no_grad():
            layer.tensors.start["left"].copy_(length * v.unsqueeze(0))
        sign, expected = torch.linalg.slogdet(matrix_of(layer))
        ladj = layer.forward_and_ladj(torch.zeros(3))[1]
        assert sign == 1
        assert abs(ladj) <= 10
        torch.testing.assert_close(ladj, expected)


def test_low_rank_makes_no_more_directions_than_needed():
    assert LowRankAffine(3, 7).tensors.start["left"].shape == (2, 3)
    text = "LowRankAffine expected rank >= 1, but got 0. Use DiagonalAffine for a diagonal alone."
    with pytest.raises(OptionError, match=re.escape(text)):
        LowRankAffine(3, 0)


def test_low_rank_costs_no_square_matrix():
    """At ten thousand dimensions a square matrix would take 400 MB."""
    layer = LowRankAffine(10_000, 3)
    with torch.profiler.profile(profile_memory=True) as profile:
        y, ladj = layer.forward_and_ladj(torch.ones(2, 10_000))
        layer.inverse_and_ladj(y)
    assert ladj.shape == (2,)
    assert max(e.self_cpu_memory_usage for e in profile.events()) < 1e6


def test_the_plain_scale_is_free():
    """A column of data in any unit is reached exactly; only a context's share is bounded."""
    layer = DiagonalAffine(1)
    with torch.no_grad():
        layer.tensors.start["log_scale"].fill_(math.log(1e12))
    assert layer(torch.ones(1)).item() == pytest.approx(1e12, rel=1e-5)


def test_affine_map_needs_both_directions():
    with pytest.raises(TypeError, match="_divide"):
        type("Half", (AffineMap,), {"_multiply": lambda self, x, tensors: x})(2, {})
