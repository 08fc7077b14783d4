# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Roots of monotone functions and fixed points, and whether a loop may look at values."""

import math

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from pyro_flows.errors import DerivativeError
from pyro_flows.ops import fixed_point, is_recording, monotone_inverse, roots
from pyro_flows.ops.roots import MOST, RECORDED

# Each: the function with its log-slope, over decades and with slopes from tiny to huge.
FUNCTIONS = {
    "line": lambda x: (3 * x - 1, torch.full_like(x, math.log(3))),
    "cubic": lambda x: (x + x**3, torch.log1p(3 * x * x)),
    "asinh": lambda x: (x.asinh(), -0.5 * torch.log1p(x * x)),
    "sinh": lambda x: (x.sinh(), torch.logaddexp(x, -x) - math.log(2)),
    "kink": lambda x: (torch.where(x < 1, 0.01 * x, 100 * x - 99.99), _kink(x)),
    "step": lambda x: (1e-3 * x + 50 * torch.tanh(40 * x), _step(x)),
}
FAR = [0.0, 1e-12, 0.3, 1.0, 7.0, 300.0, 1e6, 1e20]


def _kink(x):
    return torch.where(x < 1, math.log(0.01), math.log(100.0)).to(x.dtype)


def _step(x):
    return (1e-3 + 2000 / torch.cosh((40 * x).clamp(-50, 50)) ** 2).log()


def values(name, dtype):
    """Of both signs; none whose root is no number of the dtype."""
    top = {"asinh": 80.0}.get(name, 1e20 if dtype == torch.float64 else 1e15)
    y = torch.tensor([v for v in FAR if v <= top], dtype=dtype)
    return torch.cat([y, -y])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_solves_to_the_last_digits(name, dtype):
    y, eps = values(name, dtype), torch.finfo(dtype).eps
    x, ladj = monotone_inverse(FUNCTIONS[name], y)
    back, log_slope = FUNCTIONS[name](x)
    # As close as f can tell one number from the next.
    resolution = eps * torch.maximum(x.abs() * log_slope.exp(), y.abs().clamp_min(1))
    assert ((back - y).abs() <= 64 * resolution).all()
    assert torch.equal(ladj, -log_slope)
    assert x.dtype == ladj.dtype == dtype


@pytest.mark.parametrize("name", FUNCTIONS)
def test_few_evaluations(name):
    most = {"line": 4, "cubic": 90, "asinh": 16, "sinh": 60, "kink": 12, "step": 70}
    assert evaluations(FUNCTIONS[name], values(name, torch.float64)) <= most[name]


def evaluations(function, y):
    count = 0

    def counted(x):
        nonlocal count
        count += 1
        return function(x)

    with torch.no_grad():
        monotone_inverse(counted, y)
    return count


@pytest.mark.parametrize("noise", [3e-15, 3e-13])
def test_rounding_of_the_function_does_not_cost_a_bisection(noise):
    """Newton is there, but f can't tell: the far end of the bracket must not be gone back to."""

    def noisy(x):
        rough = noise * torch.sin(1e17 * x)
        return x + 0.3 * torch.sin(x) + rough, torch.log1p(0.3 * torch.cos(x))

    y = torch.linspace(-5, 5, 2000)
    assert evaluations(noisy, y) <= (10 if noise < 1e-14 else 40)
    exact, _ = monotone_inverse(lambda x: (x + 0.3 * x.sin(), torch.log1p(0.3 * x.cos())), y)
    found, _ = monotone_inverse(noisy, y)
    assert (found - exact).abs().max() < 10 * noise
    recorded = torch.func.vmap(lambda v: monotone_inverse(noisy, v)[0])(y)
    assert (recorded - exact).abs().max() < 10 * noise


def test_an_open_end_is_found_in_either_direction():
    """The root is far from y, where Newton's step is no number."""

    def shifted(x):
        flat = (x.abs() < 1e6).to(x.dtype)
        return x - 1e9 * torch.tanh(x / 1e9), (1e-30 + (1 - flat)).log()

    y = torch.tensor([1e3, -1e3])
    x, _ = monotone_inverse(shifted, y)
    assert torch.allclose(shifted(x)[0], y, rtol=1e-6)
    assert torch.equal(x[0], -x[1])


def test_a_flat_start_does_not_lead_away():
    """Newton's first step from 0 is 1e37, in float32; the function is not defined there."""

    def mesa(x):
        y = x + 50 * torch.tanh(x) + torch.where(x.abs() > 1e20, torch.nan * x, 0 * x)
        return y - 50, (1 + 50 / torch.cosh(x.clamp(-40, 40)) ** 2).log() - 80 * (x < 10)

    y = torch.tensor([-3.0, 4.0], dtype=torch.float32)
    x, _ = monotone_inverse(mesa, y)
    assert torch.allclose(mesa(x)[0], y, atol=1e-4)


def test_infinite_slopes_of_the_inverse_do_not_turn_values_into_nan():
    y = torch.tensor([0.0, 1.0], dtype=torch.float32, requires_grad=True)
    x, _ = monotone_inverse(lambda x: (x, torch.full_like(x, -200.0)), y)
    assert torch.equal(x, y)


def test_nan_stays_alone_and_infinity_is_quick():
    y = torch.tensor([2.0, torch.nan, -3.0, torch.inf])
    x, ladj = monotone_inverse(FUNCTIONS["cubic"], y)
    alone, _ = monotone_inverse(FUNCTIONS["cubic"], y[[0, 2]])
    assert torch.equal(x[[0, 2]], alone)
    assert x[1].isnan()
    assert ladj[1].isnan()
    assert evaluations(FUNCTIONS["cubic"], y) < 15


@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_shapes(shape):
    x, ladj = monotone_inverse(FUNCTIONS["cubic"], torch.ones(shape))
    assert x.shape == ladj.shape == shape


def cubic_with(a):
    return lambda x: (a * x + x**3, torch.log(a + 3 * x * x))


def test_gradients_are_those_of_the_implicit_function_theorem():
    y = torch.tensor([-30.0, -0.4, 0.0, 1.7], requires_grad=True)
    a = torch.tensor([0.3, 1.0, 2.0, 5.0], requires_grad=True)
    assert torch.autograd.gradcheck(lambda y, a: monotone_inverse(cubic_with(a), y), (y, a))


def test_second_derivatives_are_right():
    y = torch.tensor([-30.0, -0.4, 0.0, 1.7], requires_grad=True)
    a = torch.tensor([0.3, 1.0, 2.0, 5.0], requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda y, a: monotone_inverse(cubic_with(a), y), (y, a))


@pytest.mark.parametrize("used", [0, 1])
def test_second_derivatives_of_one_result(used):
    """Of the root alone, and of the log-slope alone."""
    y, a = Y.clone().requires_grad_(), A.clone().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda y, a: solve(y, a)[used], (y, a))


def test_second_derivatives_of_a_line_are_zero():
    """Its log-slope is a constant, of neither x nor parameters."""
    y = Y.clone().requires_grad_()
    x, ladj = monotone_inverse(FUNCTIONS["line"], y)
    (slope,) = torch.autograd.grad((x**2 + ladj).sum(), y, create_graph=True)
    (second,) = torch.autograd.grad(slope.sum(), y)
    assert torch.allclose(second, torch.full_like(y, 2 / 9))


def test_third_derivatives_are_refused():
    y = Y.clone().requires_grad_()
    (first,) = torch.autograd.grad(solve(y, A)[0].sum(), y, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), y, create_graph=True)
    with pytest.raises(DerivativeError, match="An implicit inverse expected .* at most twice"):
        torch.autograd.grad(second.sum(), y)


def test_a_first_derivative_makes_no_evaluation_more():
    count = 0

    def counted(x):
        nonlocal count
        count += 1
        return cubic_with(a)(x)

    y, a = Y.clone().requires_grad_(), A.clone().requires_grad_()
    with torch.no_grad():
        monotone_inverse(counted, y)
    plain, count = count, 0
    sum(monotone_inverse(counted, y)).sum().backward()
    assert count == plain + 1


def test_forward_mode_without_functorch():
    y, a, along = Y.clone(), A.clone(), torch.linspace(1, 2, 4, dtype=torch.float64)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(y, along)
        tangents = [torch.autograd.forward_ad.unpack_dual(t).tangent for t in solve(dual, a)]
    for tangent, k in zip(tangents, (0, 1), strict=True):
        slope = torch.autograd.functional.jacobian(lambda y, k=k: solve(y, A)[k].sum(), Y)
        assert torch.allclose(tangent, slope * along)


def test_second_derivatives_under_functorch():
    def total(y):
        x, ladj = solve(y, A)
        return (x**2 * ladj).sum()

    exact = torch.autograd.functional.hessian(total, Y)
    # One mode on top of the other, both ways, and each on itself.
    forward, backward = torch.func.jacfwd, torch.func.jacrev
    for outer in (forward, backward):
        for inner in (forward, backward):
            assert torch.allclose(outer(inner(total))(Y), exact, rtol=1e-10)


def test_the_value_is_the_same_with_and_without_gradients():
    y, a = torch.linspace(-3, 3, 7), torch.full((7,), 0.7)
    with torch.no_grad():
        plain = monotone_inverse(cubic_with(a), y)
    tracked = monotone_inverse(cubic_with(a.requires_grad_()), y.requires_grad_())
    assert torch.equal(plain[0], tracked[0])
    assert torch.equal(plain[1], tracked[1])


def solve(y, a):
    return monotone_inverse(cubic_with(a), y)


Y, A = torch.tensor([-9.0, 0.0, 0.4, 3.0]).double(), torch.tensor([0.5, 1.0, 2.0, 0.1]).double()


def recorded():
    """Ways in which the solver may be recorded, at other values than those it is given here."""
    y, a = torch.ones(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    return {
        "vmap": lambda: torch.func.vmap(solve),
        "compile": lambda: torch.compile(solve, fullgraph=True, backend="aot_eager"),
        "make_fx": lambda: make_fx(solve)(y, a),
        "jit.trace": lambda: torch.jit.trace(solve, (y, a)),
    }


@pytest.mark.parametrize("way", ["vmap", "compile", "make_fx", "jit.trace"])
def test_recorded_runs_agree_with_eager_ones(way, monkeypatch):
    # As many evaluations as these values need: compilers take long over more.
    monkeypatch.setattr(roots, "RECORDED", 12)
    torch._dynamo.reset()
    run = recorded()[way]()
    for y, a in ((Y, A), (-0.1 * Y + 2, A + 3)):
        for got, expected in zip(run(y, a), solve(y, a), strict=True):
            assert torch.allclose(got, expected, rtol=1e-14, atol=1e-14)


def test_gradients_under_functorch():
    by_vmap = torch.func.vmap(torch.func.grad(lambda y, a: sum(solve(y, a))))(Y, A)
    y = Y.clone().requires_grad_()
    by_batch = torch.autograd.grad(sum(solve(y, A)).sum(), y)[0]
    assert torch.allclose(by_vmap, by_batch, rtol=1e-12)


def test_recorded_runs_make_a_fixed_number_of_evaluations():
    count = 0

    def counted(x):
        nonlocal count
        count += 1
        return FUNCTIONS["cubic"](x)

    torch.func.vmap(lambda y: monotone_inverse(counted, y)[0])(torch.ones(3))
    assert RECORDED <= count <= RECORDED + 3


# Fixed points


def test_fixed_point_stops_when_nothing_moves():
    passes = 0

    def step(x):
        nonlocal passes
        passes += 1
        return 0.5 * x + 1

    found = fixed_point(step, torch.tensor([0.0, 100.0]), most=MOST)
    assert torch.allclose(found, torch.full((2,), 2.0), atol=1e-14)
    assert 40 < passes < 70


def test_fixed_point_makes_at_most_so_many_passes():
    assert fixed_point(lambda x: x + 1, torch.zeros(2), most=5).tolist() == [5.0, 5.0]


def test_fixed_point_tolerance():
    rough = fixed_point(lambda x: 0.5 * x + 1, torch.tensor(0.0), most=MOST, tolerance=1e-2)
    assert 1e-4 < abs(rough.item() - 2) < 3e-2


def test_fixed_point_of_nan_ends():
    start = torch.tensor([torch.nan, 0.0])
    found = fixed_point(lambda x: 0.5 * x + 1, start, most=MOST)
    assert found[0].isnan()
    assert found[1].item() == pytest.approx(2)


def test_fixed_point_is_the_same_recorded():
    run = make_fx(lambda x: fixed_point(torch.cos, x, most=120))(torch.tensor(0.7390851332151607))
    start = torch.tensor(-3.0)
    assert run(start).item() == pytest.approx(fixed_point(torch.cos, start, most=200).item())


def test_fixed_point_carries_gradients():
    c = torch.tensor(0.3, requires_grad=True)
    found = fixed_point(lambda x: 0.5 * x + c, torch.tensor(0.0), most=MOST)
    assert torch.autograd.grad(found, c)[0].item() == pytest.approx(2)


# Recording


def test_is_recording_in_each_way():
    seen = []

    def look(x):
        seen.append(is_recording())
        return x + is_recording()

    x = torch.zeros(3)
    look(x)
    torch.func.vmap(look)(x)
    torch.func.grad(lambda v: look(v).sum())(x)
    torch.func.jvp(look, (x,), (x,))
    make_fx(look)(x)
    torch.jit.trace(look, x, check_trace=False)
    assert seen[0] is False
    assert all(seen[1:])
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: x + is_recording(), fullgraph=True, backend="eager")
    assert compiled(x).tolist() == [1.0] * 3
    assert not is_recording()
