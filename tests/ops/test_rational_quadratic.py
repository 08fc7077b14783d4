# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The spline with its gradient written out, beside the one made of plain operations."""

import math

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from pyro_flows.ops import periodic_rational_quadratic_spline, rational_quadratic_spline, splines

BOUND = 3.0
KINDS = {
    "box": lambda x, params, **way: rational_quadratic_spline(x, params, BOUND, **way),
    "circle": periodic_rational_quadratic_spline,
}
every_kind = pytest.mark.parametrize("kind", KINDS)
both_ways = pytest.mark.parametrize("inverse", [False, True], ids=["forward", "inverse"])


def inputs(kind, shape=(40, 3), bins=6, scale=2.0, dtype=torch.float64):
    torch.manual_seed(0)
    if kind == "circle":
        x = (2 * torch.rand(shape, dtype=dtype) - 1) * math.pi
    else:
        x = 2 * torch.randn(shape, dtype=dtype)
    params = scale * torch.randn(*shape, 3 * bins - (kind == "box"), dtype=dtype)
    return x.requires_grad_(), params.requires_grad_()


@pytest.fixture
def plain(monkeypatch):
    """Evaluate with plain operations."""

    def evaluate(function, *args, **kwargs):
        with monkeypatch.context() as patch:
            patch.setattr(splines, "can_be_written_out", lambda *_: False)
            return function(*args, **kwargs)

    return evaluate


@every_kind
@both_ways
@pytest.mark.parametrize("shape", [(50,), (20, 3), (4, 5, 2), (0, 3)], ids=str)
@pytest.mark.parametrize("bins", [1, 2, 9])
def test_values_and_gradients_are_those_of_plain_operations(kind, inverse, shape, bins, plain):
    x, params = inputs(kind, shape, bins)
    weights = torch.randn(2, *shape)
    results = []
    for evaluate in (lambda f, *args, **kwargs: f(*args, **kwargs), plain):
        y, ladj = evaluate(KINDS[kind], x, params, inverse=inverse)
        total = (weights[0] * y + weights[1] * ladj).sum()
        results.append((y, ladj, *torch.autograd.grad(total, (x, params))))
    assert type(y.grad_fn).__name__ != "_SplineBackward"
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-8)


@every_kind
@both_ways
def test_first_and_second_derivatives(kind, inverse):
    pair = inputs(kind, (5,), 4, scale=1.0)
    assert "_SplineBackward" in str(KINDS[kind](*pair, inverse=inverse)[0].grad_fn)
    assert gradcheck(lambda *args: KINDS[kind](*args, inverse=inverse), pair)
    assert gradgradcheck(lambda *args: KINDS[kind](*args, inverse=inverse), pair)


@both_ways
def test_second_derivatives_where_parameters_are_made_of_values(inverse):
    x, weights = torch.linspace(-2, 2, 4).requires_grad_(), torch.randn(1, 11)

    def function(x):
        y, ladj = rational_quadratic_spline(x, x.sin()[:, None] * weights, BOUND, inverse=inverse)
        return y * ladj

    assert gradgradcheck(function, (x,))


@every_kind
@both_ways
def test_gradients_by_one_input_alone(kind, inverse):
    x, params = inputs(kind)
    both = torch.autograd.grad(
        sum(map(torch.sum, KINDS[kind](x, params, inverse=inverse))), (x, params)
    )
    for index, pair in enumerate([(x, params.detach()), (x.detach(), params)]):
        total = sum(map(torch.sum, KINDS[kind](*pair, inverse=inverse)))
        torch.testing.assert_close(torch.autograd.grad(total, pair[index])[0], both[index])


@both_ways
def test_outside_and_nan(inverse):
    x = torch.tensor([-5.0, -BOUND, BOUND, 1e30, math.inf, math.nan], requires_grad=True)
    params = torch.randn(6, 11, requires_grad=True)
    y, ladj = rational_quadratic_spline(x, params, BOUND, inverse=inverse)
    by_x, by_params = torch.autograd.grad((2 * y + 3 * ladj).sum(), (x, params))
    torch.testing.assert_close(y, x, equal_nan=True)
    assert ladj.tolist() == [0.0] * 6
    assert by_x.tolist() == [2.0] * 6
    assert not by_params.any()


@both_ways
def test_parameters_of_any_size_stay_finite(inverse):
    x = torch.linspace(-2.9, 2.9, 200, dtype=torch.float32).requires_grad_()
    for size in (1e2, 1e10, 1e30):
        params = (size * torch.randn(200, 23, dtype=torch.float32)).requires_grad_()
        y, ladj = rational_quadratic_spline(x, params, BOUND, inverse=inverse)
        grads = torch.autograd.grad((y + ladj).sum(), (x, params))
        assert all(t.isfinite().all() for t in (y, ladj, *grads))


def test_nan_parameters_show():
    x, params = inputs("box", (3,))
    with torch.no_grad():
        params[0, 0] = math.nan
    y, ladj = rational_quadratic_spline(x.clamp(-1, 1), params, BOUND)
    assert y.isnan().tolist() == ladj.isnan().tolist() == [True, False, False]


@every_kind
def test_nothing_is_hidden_from_transforms(kind, plain):
    x, params = inputs(kind, (7,), 3)
    x, params = x.detach(), params.detach()

    def by_x(x, params):
        return KINDS[kind](x, params)[0].sum()

    (slope,) = torch.autograd.grad(by_x(x.requires_grad_(), params), x)
    x = x.detach()
    torch.testing.assert_close(torch.func.grad(by_x)(x, params), slope)
    torch.testing.assert_close(torch.vmap(torch.func.grad(by_x))(x, params), slope)
    with forward_ad.dual_level():
        y, _ = KINDS[kind](forward_ad.make_dual(x, torch.ones_like(x)), params)
        torch.testing.assert_close(forward_ad.unpack_dual(y).tangent, slope)


def test_shared_parameters_are_broadcast(plain):
    x, params = inputs("box", (8, 3), 5)[0], inputs("box", (3,), 5)[1]
    y, ladj = rational_quadratic_spline(x, params, BOUND)
    alone = rational_quadratic_spline(x, params.expand(8, 3, -1), BOUND)
    torch.testing.assert_close((y, ladj), alone)


@both_ways
def test_compilers_take_the_gradient_too(inverse):
    x, params = inputs("box", (16, 2), 4)
    results = []
    for function in (
        KINDS["box"],
        torch.compile(KINDS["box"], fullgraph=True, backend="aot_eager"),
    ):
        y, ladj = function(x, params, inverse=inverse)
        results.append((y, ladj, *torch.autograd.grad((y * ladj).sum(), (x, params))))
    torch.testing.assert_close(*results)


def test_compilers_see_through_transforms():
    x, params = (t.detach() for t in inputs("box", (6,), 3))
    slopes = torch.vmap(torch.func.grad(lambda *pair: KINDS["box"](*pair)[0]))
    compiled = torch.compile(slopes, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, params), slopes(x, params))


@every_kind
@both_ways
@pytest.mark.parametrize("which", [0, 1], ids=["values", "ladj"])
def test_batched_gradients(kind, inverse, which):
    x, params = inputs(kind, (5,), 3)
    results = KINDS[kind](x, params, inverse=inverse)
    found = torch.autograd.grad(
        results[which], (x, params), torch.eye(5), is_grads_batched=True, retain_graph=True
    )
    one = torch.autograd.grad(results[which], (x, params), torch.eye(5)[2])
    torch.testing.assert_close([part[2] for part in found], list(one))


def test_exported_modules_have_gradients():
    class Module(torch.nn.Module):
        def forward(self, x, params):
            return KINDS["box"](x, params)

    x, params = inputs("box", (6,), 3)
    y, ladj = torch.export.export(Module(), (x, params), strict=True).module()(x, params)
    expected = torch.autograd.grad(sum(map(torch.sum, KINDS["box"](x, params))), (x, params))
    torch.testing.assert_close(torch.autograd.grad((y + ladj).sum(), (x, params)), expected)
