# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Laws of gradients and of batches: every element counts for itself, with its own weight."""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_flows.errors import DerivativeError
from pyro_flows.testing.case import Case, Pair, directions, double, in_double
from pyro_flows.transforms import Layer

NO_PARAMETERS = "the layer has no parameters"
# Dimensions in which second derivatives are tried: they would show no more in others.
FEW = 5


def parameters_get_gradients(case: Case) -> str | None:
    """Every parameter gets a gradient that is not zero, in both directions."""
    layer, context = case.layer(), case.context()
    named = {name: p for name, p in layer.named_parameters() if p.numel()}
    if not named:
        return NO_PARAMETERS
    for name, pair in directions(layer, context).items():
        y, ladj = pair(case.values(16, into=name))
        loss = (y * case.noise(16)).sum() + ladj.sum()
        grads = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        for key, grad in zip(named, grads, strict=True):
            case.require(
                grad is not None and bool((grad != 0).any()),
                f"The parameter {key} should get a gradient from the {name}, but gets "
                f"{'none' if grad is None else 'only zeros'}.",
            )
    return None


def gradients_are_right(case: Case) -> None:
    """Gradients by values, context and parameters agree with finite differences, in float64.

    One random direction over all of them at once, of the results weighted at random; the better
    of two steps, since a longer one may cross a kink, such as a spline's at a knot.
    """
    layer, context = in_double(case.layer()), double(case.context())
    values = {name: case.values(4, into=name).double() for name in ("forward", "inverse")}
    inputs = [*values.values(), *([] if context is None else [context])]
    leaves = [t.requires_grad_() for t in inputs] + [p for p in layer.parameters() if p.numel()]
    x = values["forward"]
    generator = torch.Generator(device="cpu").manual_seed(5000 + case.seed)

    def noise(shape: torch.Size) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    weights = noise(x.shape), noise(x.shape[:-1])
    direction = [noise(leaf.shape) for leaf in leaves]

    def moved(name: str, step: float) -> Tensor:
        with torch.no_grad():
            for leaf, d in zip(leaves, direction, strict=True):
                leaf.add_(step * d)
        y, ladj = directions(layer, context)[name](values[name])
        return (weights[0] * y).sum() + (weights[1] * ladj).sum()

    def difference(name: str, h: float) -> Tensor:
        change = moved(name, h).detach() - moved(name, -2 * h).detach()
        moved(name, h)
        return change

    for name in ("forward", "inverse"):
        grads = torch.autograd.grad(moved(name, 0.0), leaves, allow_unused=True)
        slopes = [
            (g * d).flatten() for g, d in zip(grads, direction, strict=True) if g is not None
        ]
        slope, size = torch.cat(slopes).sum(), 1 + torch.cat(slopes).abs().sum()
        steps = torch.tensor([1e-6, 1e-8], dtype=torch.float64)
        differences = torch.stack([difference(name, float(h)) / (2 * h) for h in steps])
        error, best = ((differences - slope).abs() / size).min(0)
        case.require(
            error < 1e-5,
            f"The {name}'s gradient along a random direction is {slope:.8g}, but finite "
            f"differences give {differences[best]:.8g}: the relative error is {error:.1e}.",
        )


def second_derivatives_are_right(case: Case) -> str | None:
    """Second derivatives agree with finite differences of first ones, in float64; or are refused.

    Of the log density, by values, context and parameters: the Hessian times one random direction
    over all of them at once; the best of three steps, since a knot may lie within a longer one. A
    layer that has no second derivatives says so by raising DerivativeError.
    """
    if case.dim > FEW:
        return f"second derivatives are for up to {FEW} dimensions"
    layer, context = in_double(case.layer()), double(case.context())
    parameters = [p for p in layer.parameters() if p.numel()]
    for name, pair in directions(layer, context).items():
        x = case.values(2, into=name).double()
        inputs = [x] if context is None else [x, context]
        leaves = [t.requires_grad_() for t in inputs] + parameters
        try:
            got, differences = _hessian_along(case, pair, x, leaves)
        except DerivativeError as refusal:
            return str(refusal)
        size = 1 + got.abs().max()
        error, best = ((differences - got).abs() / size).amax(-1).min(0)
        worst = int((differences[best] - got).abs().argmax())
        case.require(
            error < 1e-6,
            f"A second derivative of the {name} along a random direction is {got[worst]:.8g}, but "
            f"finite differences of the gradient give {differences[best][worst]:.8g}: the "
            f"relative error is {error:.1e}. If it can't be right, raise DerivativeError.",
        )
    return None


def pushes_scores(case: Case) -> str | None:
    """``forward_and_score`` gives what ``forward_and_ladj`` gives, gradients too, and the score.

    The score s of x and t of y obey ``J^T t + d ladj / d x = s``, whatever the density; checked in
    float64, and so are the gradients of y by x and the parameters. In evaluation mode: a density
    that changes with every call has no score.
    """
    layer, context = in_double(case.layer()).eval(), double(case.context())
    x = case.values(6, into="forward").double().requires_grad_()
    given = case.noise(6).double()
    y, ladj = layer.forward_and_ladj(x, context)
    try:
        also_y, also_ladj, score = layer.forward_and_score(x, given, context)
    except DerivativeError as refusal:
        return str(refusal)
    case.require_close(also_y, y, 1e-9, "y of forward_and_score", "that of forward_and_ladj")
    case.require_close(also_ladj, ladj, 1e-9, "its ladj", "that of forward_and_ladj")
    case.require(
        not (also_ladj.requires_grad or score.requires_grad),
        "Of what forward_and_score gives, only y should carry a gradient.",
    )
    (back,) = torch.autograd.grad((y * score).sum() + ladj.sum(), x, retain_graph=True)
    case.require_close(back, given, 1e-7, "The score of y, pulled back to x,", "that of x")
    leaves = [x, *(p for p in layer.parameters() if p.numel())]
    weights = case.noise(6).double()
    if not also_y.requires_grad:
        return NO_PARAMETERS
    pairs = zip(
        torch.autograd.grad((also_y * weights).sum(), leaves, allow_unused=True),
        torch.autograd.grad((y * weights).sum(), leaves, allow_unused=True),
        strict=True,
    )
    for leaf, (got, expected) in zip(leaves, pairs, strict=True):
        zero = torch.zeros_like(leaf)
        got, expected = (zero if g is None else g for g in (got, expected))
        case.require_close(got, expected, 1e-8, "A gradient of its y", "that of forward_and_ladj")
    return None


def _hessian_along(
    case: Case, pair: Pair, x: Tensor, leaves: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """The Hessian by all leaves times a direction, and two approximations of it."""
    generator = torch.Generator(device="cpu").manual_seed(6000 + case.seed)
    shapes = [leaf.shape for leaf in leaves]
    weights, *direction = (
        torch.randn(shape, generator=generator, dtype=torch.float64)
        for shape in (x.shape[:-1], *shapes)
    )

    def gradient(step: float = 0.0, *, again: bool = False) -> Tensor:
        with torch.no_grad():
            for leaf, d in zip(leaves, direction, strict=True):
                leaf.add_(step * d)
        total = (weights * _score(pair, x)).sum()
        return _flat(_gradients(total, leaves, again=again))

    slope = (gradient(again=True) * _flat(tuple(direction))).sum()
    got = _flat(_gradients(slope, leaves))
    differences = []
    for h in (1e-5, 1e-6, 1e-7):
        change = gradient(h) - gradient(-2 * h)
        gradient(h)
        differences.append(change / (2 * h))
    return got, torch.stack(differences)


def _gradients(total: Tensor, leaves: list[Tensor], *, again: bool = False) -> tuple[Tensor, ...]:
    """Zeros where there is none; to be differentiated ``again`` or not."""
    return torch.autograd.grad(
        total, leaves, create_graph=again, allow_unused=True, materialize_grads=True
    )


def weighted_gradients(case: Case) -> str | None:
    """A loss that weighs its samples has the gradient of the weighted sum of theirs."""
    layer, context = case.layer(), case.one_context()
    parameters = [p for p in layer.parameters() if p.numel()]
    if not parameters:
        return NO_PARAMETERS
    weights = torch.tensor([-2.0, 0.0, 5.0], dtype=case.dtype)
    for name, pair in directions(layer, context).items():
        x = case.values(3, into=name).reshape(-1, case.dim)[:3]
        together = _flat(torch.autograd.grad((weights * _score(pair, x)).sum(), parameters))
        alone = [
            w * _flat(torch.autograd.grad(_score(pair, one), parameters))
            for w, one in zip(weights, x, strict=True)
        ]
        size = 1 + float(torch.stack(alone).abs().max())
        case.require_close(
            together / size,
            sum(alone, torch.zeros_like(together)) / size,
            1e4 * case.eps,
            f"the gradient of a weighted loss of the {name}",
            "the weighted sum of gradients",
        )
    return None


def ignores_batch_mates(case: Case) -> None:
    """An element's result doesn't depend on the others of its batch, whatever they are."""
    layer, context = case.layer(), case.one_context()
    mates = (1.0, 1e6 if case.is_real() else 0.5, torch.nan)
    for name, pair in directions(layer, context).items():
        x = case.values(4, into=name).reshape(-1, case.dim)[:4]
        with torch.no_grad():
            y, ladj = pair(x[0])
            for mate in mates:
                batch = torch.cat([x[:1], x[1:] * mate])
                y_batch, ladj_batch = pair(batch)
                what = f"with batch mates times {mate:g}, the {name}"
                tolerance = 1e5 * case.eps  # kernels of matrices round with the batch
                case.require_close(y_batch[0], y, tolerance, f"{what} value", "that alone")
                case.require_close(ladj_batch[0], ladj, tolerance, f"{what} ladj", "that alone")


def shapes_broadcast(case: Case) -> None:
    """Values and contexts broadcast over batch axes; a batch of contexts is a batch shape."""
    layer, context = case.layer(), case.context()
    for name, pair in directions(layer, context).items():
        for lead in ((), (2,), (2, 1), (0,)):
            x = case.values(*lead, into=name)
            y, ladj = pair(x)
            case.require(
                y.shape == x.shape and ladj.shape == x.shape[:-1],
                f"The {name} of shape {tuple(x.shape)} should give shapes {tuple(x.shape)} and "
                f"{tuple(x.shape[:-1])}, but gave {tuple(y.shape)} and {tuple(ladj.shape)}.",
            )
    distribution = case.distribution(layer, context)
    expected = case.batch_shape if case.context_dim else ()
    case.require(
        distribution.batch_shape == expected,
        f"Pyro's distribution should have batch shape {expected}, "
        f"but has {tuple(distribution.batch_shape)}.",
    )
    value = distribution.rsample((3,))
    case.require(
        value.shape == (3, *expected, case.dim)
        and distribution.log_prob(value).shape == (3, *expected),
        f"A draw of 3 should have shape {(3, *expected, case.dim)}, but has {tuple(value.shape)}.",
    )
    if context is None:
        return
    rows = context.reshape(-1, case.context_dim)
    for name in ("forward", "inverse"):
        one = case.values(1, into=name).reshape(-1, case.dim)[0]
        together = _run(layer, name, one, context)
        apart = [_run(layer, name, one, row) for row in rows]
        for k, what in enumerate(("value", "ladj")):
            got, alone = together[k], torch.stack([pair[k] for pair in apart])
            case.require(
                got.shape == (*case.batch_shape, *alone.shape[1:]),
                f"With contexts of batch shape {case.batch_shape} the {name} {what} of one x has "
                f"shape {tuple(got.shape)}.",
            )
            case.require_close(
                got.reshape(alone.shape),
                alone,
                1e5 * case.eps,
                f"with a batch of contexts, the {name} {what} of one x",
                "that under each context alone",
            )
    if len(rows) > 1:
        noise = distribution.rsample().reshape(-1, case.dim)
        case.require((noise[0] != noise[1]).any(), "All contexts of a batch get the same noise.")


def _run(layer: Layer, name: str, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        return directions(layer, context)[name](x)


def _score(pair: Pair, x: Tensor) -> Tensor:
    y, ladj = pair(x)
    return ladj - 0.5 * (y * y).sum(-1)


def _flat(grads: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([g.reshape(-1) for g in grads])
