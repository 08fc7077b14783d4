# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Laws of the contract with Pyro: start, inverse, constraints, errors."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from pyro.distributions.conditional import ConditionalTransformModule
from pyro.distributions.torch_transform import TransformModule
from torch import nn

from pyro_flows.errors import ContextError, ShapeError
from pyro_flows.testing.case import Case, directions


def starts_at_identity(case: Case) -> str | None:
    """A new layer is the identity, or within 0.1 of it where all ``|x| <= 3``."""
    if not case.same_space():
        return "the layer maps one space to another"
    layer, context = case.fresh(), case.context()
    if not any(p.numel() for p in layer.parameters()):
        return "a layer without parameters is what it is from the start"
    x = case.values(16, scale=1.0).clamp(-3, 3)
    for name, pair in directions(layer, context).items():
        with torch.no_grad():
            y, ladj = pair(x)
        away = max(float((y - x).abs().max()), float(ladj.abs().max()) / case.dim)
        case.require(
            away <= 0.1,
            f"A new layer should be within 0.1 of the identity on |x| <= 3, but its {name} value "
            f"or ladj per coordinate is {away:.3g} away.",
        )
    return None


def inverse_is_a_module(case: Case) -> None:
    """``inv`` is a module with the layer's parameters, inverts it, and is inverted by it."""
    layer, context = case.layer(), case.context()
    inverse = layer.inv
    case.require(inverse.inv == layer, "layer.inv.inv should be the layer, but is another object.")
    case.require(
        isinstance(inverse, nn.Module),
        f"layer.inv should be a torch module, but is a {type(inverse).__name__}.",
    )
    case.require(
        {id(p) for p in inverse.parameters()} == {id(p) for p in layer.parameters()},
        "layer.inv should find the layer's parameters, but finds others.",
    )
    x = case.values(2, into="inverse")
    back = directions(layer, context)["inverse"](x)
    run = inverse.forward_and_ladj(x, context)
    for got, expected in zip(run, back, strict=True):
        case.require_close(got, expected, 0.0, "the inverse run forwards", "the layer's inverse")
    conditioned = inverse.condition(context)
    case.require_close(
        conditioned(x), back[0], 0.0, "inv.condition(context)(x)", "the layer's inverse"
    )


def constraints_are_right(case: Case) -> None:
    """A Pyro transform of vectors: event_dim 1, bijective, values in domain and codomain."""
    layer, context, x = case.layer(), case.context(), case.values(8)
    case.require(
        isinstance(layer, TransformModule) and isinstance(layer, ConditionalTransformModule),
        "A layer should be a TransformModule and a ConditionalTransformModule: Pyro silently "
        "drops the context of anything else.",
    )
    conditioned = layer.condition(context)
    for transform in (layer, layer.inv, conditioned):
        dims = transform.domain.event_dim, transform.codomain.event_dim
        case.require(
            dims == (1, 1) and transform.bijective,
            f"{type(transform).__name__} should be a bijection of vectors (event_dim 1), but has "
            f"event dims {dims} and bijective={transform.bijective}.",
        )
    y = conditioned(x)
    case.require(
        layer.domain.check(x).all() and layer.codomain.check(y).all(),
        "Values should lie in the domain and results in the codomain, but some don't.",
    )
    shape = torch.Size((*case.batch_shape, case.dim))
    case.require(
        conditioned.forward_shape(shape) == shape == conditioned.inverse_shape(shape),
        f"forward_shape and inverse_shape of {tuple(shape)} should be the same, but are "
        f"{conditioned.forward_shape(shape)} and {conditioned.inverse_shape(shape)}.",
    )
    support = case.distribution(layer, context).support
    case.require(
        support.event_dim == 1, f"The support's event_dim should be 1, but is {support.event_dim}."
    )
    case.require(layer.with_cache(1) is layer, "with_cache should return the layer itself.")


def errors_are_sentences(case: Case) -> None:
    """A wrong width, a missing and an unexpected context raise errors that name the figures."""
    layer, context = case.layer(), case.one_context()
    wide = torch.zeros(case.dim + 1, dtype=case.dtype)
    x = torch.zeros(case.dim, dtype=case.dtype)
    for name in ("forward_and_ladj", "inverse_and_ladj"):
        run = getattr(layer, name)
        _expect(case, ShapeError, (f"(..., {case.dim})", f"({case.dim + 1},)"), run, wide, context)
        _expect(case, ShapeError, (f"(..., {case.dim})", "()"), run, wide[0], context)
        if case.context_dim == 0:
            _expect(case, ContextError, ("context_dim=0", "(7,)"), run, x, x.new_zeros(7))
            continue
        wanted = f"(..., {case.context_dim})"
        wrong = x.new_zeros(case.context_dim + 1)
        _expect(case, ContextError, (wanted, "none"), run, x, None)
        _expect(case, ContextError, (wanted, f"({case.context_dim + 1},)"), run, x, wrong)
    if case.context_dim:
        _expect(case, ContextError, (f"(..., {case.context_dim})",), layer, x)
        _expect(case, ContextError, (f"(..., {case.context_dim})", "None"), layer.condition, None)
        plain = dist.TransformedDistribution(case.base(case.dtype), [layer])
        _expect(case, ContextError, (f"(..., {case.context_dim})",), plain.sample)


def _expect(
    case: Case, kind: type[Exception], figures: tuple[str, ...], call: object, *args: object
) -> None:
    try:
        call(*args)  # type: ignore[operator]
    except kind as error:
        text = str(error)
        missing = [figure for figure in figures if figure not in text]
        case.require(not missing, f"The {kind.__name__} should say {missing}, but says: {text}")
        case.require(text.count(".") >= 2, f"The {kind.__name__} should say what to do: {text}")
    else:
        case.require(False, f"Expected {kind.__name__} with {figures}, but nothing was raised.")
