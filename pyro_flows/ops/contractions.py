# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Products that are summed at once, in a recorded graph: matrix products, without the table.

A regression that works for many particles says ``(weights * x).sum(-1)``, and makes a table of
particles times rows times columns, and another one for the gradient. The library's products need
neither.
"""

from __future__ import annotations

import math
from string import ascii_lowercase
from typing import Any

import torch
from torch import fx

aten = torch.ops.aten

# Tables smaller than this, or than so many times what they are made of, cost little.
LEAST, TIMES = 2**15, 4


def contracted(graph: fx.GraphModule) -> fx.GraphModule:
    """The graph, changed in place: large ``sum(a * b)`` become ``einsum(a, b)``.

    Args:
        graph: as :func:`pyro_flows.ops.record.record` makes it, with shapes and dtypes in
            ``meta``.
    """
    for node in list(graph.graph.nodes):
        if node.target is aten.sum.dim_IntList and not node.kwargs:
            _contract(graph.graph, node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _contract(graph: fx.Graph, node: fx.Node) -> None:
    args: Any = node.args
    product, dims = args[:2]
    if not isinstance(product, fx.Node) or product.target is not aten.mul.Tensor or not dims:
        return
    factors = [_unexpanded(factor) for factor in product.args]
    if len(product.users) > 1 or not all(isinstance(factor, fx.Node) for factor in factors):
        return
    shape, dtype = product.meta["shape"], product.meta["dtype"]
    given = sum(math.prod(factor.meta["shape"]) for factor in factors)
    if not dtype.is_floating_point or math.prod(shape) < max(LEAST, TIMES * given):
        return
    if any(factor.meta["dtype"] != dtype for factor in factors) or len(shape) > 26:
        return
    gone = {dim % len(shape) for dim in dims}
    letters = ascii_lowercase[: len(shape)]
    output = "".join(letter for dim, letter in enumerate(letters) if dim not in gone)
    # Where the product was: what comes between may change its factors in place.
    with graph.inserting_before(product):
        parts, labels = zip(*(_squeezed(graph, f, shape, letters) for f in factors), strict=True)
        if set(letters) - set("".join(labels)):
            return  # along some dimension both are repeated
        equation = f"{','.join(labels)}->{output}"
        result = graph.call_function(aten.einsum.default, (equation, list(parts)))
        result.meta = dict(node.meta)
        if len(args) > 2 and args[2]:  # keepdim
            result.meta["shape"] = tuple(n for dim, n in enumerate(shape) if dim not in gone)
            kept = graph.call_function(aten.reshape.default, (result, list(node.meta["shape"])))
            kept.meta = dict(node.meta)
            result = kept
    node.replace_all_uses_with(result)


def _unexpanded(factor: Any) -> Any:
    """What was repeated, which a product does by itself."""
    while isinstance(factor, fx.Node) and factor.target is aten.expand.default:
        factor = factor.args[0]
    return factor


def _squeezed(
    graph: fx.Graph, factor: fx.Node, shape: tuple[int, ...], letters: str
) -> tuple[fx.Node, str]:
    """A factor without the dimensions along which it is repeated, and the letters of the rest."""
    sizes = factor.meta["shape"]
    letters = letters[len(letters) - len(sizes) :]
    whole = shape[len(shape) - len(sizes) :]
    # A size of 1 that isn't repeated is no different.
    kept = [dim for dim, (own, all_) in enumerate(zip(sizes, whole, strict=True)) if own == all_]
    if len(kept) < len(sizes):
        left = [sizes[dim] for dim in kept]
        dtype = factor.meta["dtype"]
        factor = graph.call_function(aten.reshape.default, (factor, left))
        factor.meta = {"shape": tuple(left), "dtype": dtype}
    return factor, "".join(letters[dim] for dim in kept)
