# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Laws of value: round trips, log-determinants, precision, range, finiteness."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_flows.testing.case import (
    Case,
    Pair,
    directions,
    double,
    in_double,
    jacobian,
)
from pyro_flows.transforms import Layer
from pyro_flows.transforms.base import is_real

ROUND_TRIP = 100  # times eps times the local condition
LADJ = {torch.float64: 1e-8, torch.float32: 1e-4}


def round_trip(case: Case) -> None:
    """Forward then inverse gives the value back, and inverse then forward too.

    The error is bounded by 100 eps times the size of the values times the local condition: the
    spectral norm of the Jacobian of the second map, which blows up the first one's rounding.
    """
    layer, context = case.layer(), case.context()
    exact = directions(in_double(layer), double(context))
    maps = directions(layer, context)
    for first, second in (("forward", "inverse"), ("inverse", "forward")):
        x = case.values(8, into=first)
        with torch.no_grad():
            y = maps[first](x)[0]
            back = maps[second](y)[0]
        slopes = jacobian(exact[second], y.double())
        condition = torch.linalg.matrix_norm(slopes, ord=2).clamp_min(1)
        size = torch.maximum(_size(x), _size(y)).clamp_min(1)
        allowed = ROUND_TRIP * case.eps * condition * size
        error = _size(back - x)
        worst = int((error / allowed).nan_to_num(torch.inf).argmax())
        case.require(
            (error <= allowed).all(),
            f"{second}({first}(x)) should be x to {ROUND_TRIP} eps times the local condition, "
            f"but is {error.flatten()[worst]:.1e} away where {allowed.flatten()[worst]:.1e} is "
            f"allowed (condition {condition.flatten()[worst]:.1e}).",
        )


def log_det(case: Case) -> None:
    """``ladj`` is the log-determinant of the Jacobian that autograd finds, in both directions."""
    layer, context = case.layer(), case.context()
    exact = directions(in_double(layer), double(context))
    for name, pair in directions(layer, context).items():
        x = case.values(4, into=name)
        with torch.no_grad():
            y, ladj = pair(x)
        expected = torch.linalg.slogdet(jacobian(exact[name], x.double()))[1]
        case.require_close(
            ladj, expected, LADJ[case.dtype], f"the {name} ladj", "autograd's log-determinant"
        )
        case.require(
            y.dtype == ladj.dtype == case.dtype,
            f"{name} should keep {case.dtype}, but gave {y.dtype} and a ladj of {ladj.dtype}.",
        )


def float32(case: Case) -> None:
    """In float32 a layer agrees with its float64 copy: ladj to 1e-4 max(1, |ladj|).

    Values agree to 100 eps times the local condition.
    """
    layer, context = case.layer().float(), case.context()
    context = None if context is None else context.float()
    exact = directions(in_double(layer), double(context))
    eps = torch.finfo(torch.float32).eps
    for name, pair in directions(layer, context).items():
        x = case.values(16, into=name).float()
        with torch.no_grad():
            y, ladj = pair(x)
            y64, ladj64 = exact[name](x.double())
        case.require_close(
            ladj, ladj64, LADJ[torch.float32], f"the float32 {name} ladj", "the float64 copy's"
        )
        slopes = jacobian(exact[name], x.double())
        condition = torch.linalg.matrix_norm(slopes, ord=2).clamp_min(1)
        size = torch.maximum(_size(x), _size(y64)).clamp_min(1)
        excess = (_size(y.double() - y64) / (ROUND_TRIP * eps * condition * size)).max()
        case.require(
            excess <= 1,
            f"The float32 {name} should agree with its float64 copy to {ROUND_TRIP} eps times the "
            f"local condition, but is {excess:.1f} times further away.",
        )


def reaches_far(case: Case) -> str | None:
    """The range is not saturated: +-1e3 is reached, in both directions."""
    if not case.is_real():
        return "the layer's domain or codomain is bounded by what it is for"
    layer, context = in_double(case.layer()), double(case.one_context())
    maps = directions(layer, context)
    ones = torch.ones(case.dim, dtype=torch.float64)
    target = 1e3 * torch.stack([ones, -ones, ones.cumsum(0).remainder(2) * 2 - 1])
    for first, second in (("inverse", "forward"), ("forward", "inverse")):
        with torch.no_grad():
            there = maps[second](maps[first](target)[0])[0]
        error = (there - target).abs().max()
        case.require(
            error < 1,
            f"{second} should reach +-1e3, but {second}({first}(+-1e3)) is {error:.3g} away.",
        )
    return None


def finite(case: Case) -> None:
    """Values and parameter gradients are finite at 0, at knots and bounds, at +-1e1 ... +-1e20.

    In float32 to 1e15: the gradient of ``x[0] * w * x[1]`` by ``w`` at 1e20 is no float32.
    """
    context = case.one_context()
    for layer in (case.fresh(), case.layer()):
        for name, pair in directions(layer, context).items():
            points = _extremes(case, name)
            if _all_finite(layer, pair, points):
                continue
            first = next(x for x in points if not _all_finite(layer, pair, x))
            case.require(
                False,
                f"The {name} value, ladj or a gradient of them is not finite at "
                f"x = {first[0]:.6g}, ..., {first[-1]:.6g}.",
            )


def knows_its_space(case: Case) -> None:
    """Outside a bounded space ladj is -inf, and nothing is NaN; in every space NaN stays NaN."""
    layer, context = case.layer(), case.one_context()
    for name, pair in directions(layer, context).items():
        inside = case.values(1, into=name).reshape(-1, case.dim)[0]
        for number in _beyond(case, name):
            x = _with_one_at(inside, number)
            y, ladj = pair(x)
            case.require(
                (ladj == -torch.inf).all() and not y.isnan().any(),
                f"Where a coordinate is {number:g}, outside {case.space(name)}, the {name} ladj "
                f"should be -inf and no value NaN, but they are {ladj.min():.3g} ... "
                f"{ladj.max():.3g} and {y.flatten()[:3].tolist()} ...",
            )
            case.require(
                number.isinf() or _all_finite(layer, pair, x, but_ladj=True),
                f"Where a coordinate is {number:g}, outside {case.space(name)}, the {name} value "
                "or a gradient of it or of ladj is not finite.",
            )
        y, _ = pair(_with_one_at(inside, inside.new_tensor(torch.nan)))
        case.require(
            y.isnan().any(-1).all(),
            f"Where a coordinate is NaN the {name} value should have NaN, but has none.",
        )


def _beyond(case: Case, direction: str) -> Tensor:
    """Numbers outside of the space that a direction takes; none where it is the real line."""
    sizes = torch.tensor([0.5, 1.5, 4.0, 1e3, 1e15, torch.inf], dtype=case.dtype)
    numbers = torch.cat([sizes, -sizes])
    return numbers[~case.space(direction).check(numbers.unsqueeze(-1))]


def _with_one_at(x: Tensor, number: Tensor) -> Tensor:
    """Copies of ``x`` with a number at the first, middle and last place, and one of it alone."""
    last = len(x) - 1
    places = torch.arange(len(x)) == torch.tensor([[0], [last // 2], [last]])
    return torch.where(torch.cat([places, places[:1] | True]), number, x)


def _all_finite(layer: Layer, pair: Pair, x: Tensor, *, but_ladj: bool = False) -> bool:
    x = x.clone().requires_grad_()
    y, ladj = pair(x)
    found = [y] if but_ladj else [y, ladj]
    if y.requires_grad:
        inputs = [x, *(p for p in layer.parameters() if p.numel())]
        found += torch.autograd.grad(y.sum() + ladj.sum(), inputs, allow_unused=True)
    return all(bool(t.isfinite().all()) for t in found if t is not None)


def _extremes(case: Case, direction: str) -> Tensor:
    """Zeros, whole and half numbers (knots and bounds of untrained splines), and the far away.

    In a bounded space those of them that lie in it, and points close to its edges.
    """
    inner = [0.5 * i for i in range(-12, 13)] + [1.25 * i for i in (-3, -1, 1, 3)]
    powers = (1, 2, 3, 6, 10, 15, 20) if case.dtype == torch.float64 else (1, 2, 3, 6, 10, 15)
    outer = [s * 10.0**e for e in powers for s in (-1, 1)]
    numbers = torch.tensor([*inner, *outer], dtype=case.dtype)
    space = case.space(direction)
    if not is_real(space):
        near = case.moved_into(direction, numbers.clamp(-12, 12).unsqueeze(-1))[:, 0]
        numbers = torch.cat([numbers, near])
        numbers = numbers[space.check(numbers.unsqueeze(-1))]
        middle = case.moved_into(direction, torch.zeros(1, dtype=case.dtype))
    else:
        middle = torch.zeros(1, dtype=case.dtype)
    together = numbers.unsqueeze(-1).expand(-1, case.dim)
    first, last = middle.expand_as(together).clone(), middle.expand_as(together).clone()
    first[:, 0] = numbers
    last[:, -1] = numbers
    return torch.cat([together, first, last])


def _size(x: Tensor) -> Tensor:
    return x.detach().abs().amax(-1)
