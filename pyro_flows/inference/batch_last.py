# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A recorded graph with the batch innermost in memory, as a processor's vector units want it.

Layers map ``(N, D)`` with a small D. With coordinates innermost, a register of 16 numbers holds
one draw's 10, and small matrix products are calls of a library made for large ones. With draws
innermost every operation is a loop over full registers, a product with a small matrix too, and the
compiler makes one function of hundreds of them. Values stay the same, up to the order of sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

aten = torch.ops.aten

# Products with larger matrices are left to the library, which blocks them for the cache.
SMALL = 4096


def batch_last(graph: fx.GraphModule, size: int) -> fx.GraphModule:
    """Rewrite a graph, as :func:`pyro_flows.guides.capture.record` makes it, in place.

    Args:
        graph: of ATen operations, with shapes in their ``meta``.
        size: of the batch. Whatever has it as the first of two or more sizes is laid out anew; if
            that is a coincidence, nothing but the layout changes.
    """
    for node in graph.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        if node.target in _PRODUCTS:
            _multiply(node, size)
        elif node.target is aten.index_select.default:
            _select(graph, node, size)
        elif _is_batch(node, size) and not node.target._schema.is_mutable:
            _lay_out(node)
    graph.graph.lint()
    graph.recompile()
    return graph


def _is_batch(node: Any, size: int) -> bool:
    shape = node.meta.get("shape", ())
    return len(shape) > 1 and shape[0] == size


def _replace(node: fx.Node, function: Any, *args: Any, **kwargs: Any) -> None:
    node.target, node.args, node.kwargs = function, args, kwargs


def _lay_out(node: fx.Node) -> None:
    """Have an operation write its result with the batch last."""
    op = cast("Any", node.target)
    if op in (aten.cat.default, aten.stack.default):
        dims, dim = len(node.meta["shape"]), _argument(node, 1, "dim", 0)
        if dim % dims > 0:
            _replace(node, _JOINS[op], node.args[0], dim % dims - 1)
    elif torch.Tag.pointwise in op.tags:
        _replace(node, _pointwise, op, len(node.meta["shape"]), *node.args, **node.kwargs)
    elif not any(out.alias_info for out in op._schema.returns):  # a view has its layout
        _replace(node, _copied, op, *node.args, **node.kwargs)


def _argument(node: fx.Node, index: int, name: str, default: Any) -> Any:
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def _multiply(node: fx.Node, size: int) -> None:
    """Write a small product as sums, and a larger one as that of the transposed."""
    left, right = (cast("fx.Node", arg).meta["shape"] for arg in node.args[-2:])
    small = left[0] * left[1] * right[1] <= SMALL * size
    if size in (left[0], left[1]):
        function = _small_product if small else _product
        _replace(
            node, function, *node.args[-2:], *node.args[:-2], first=left[0] == size, **node.kwargs
        )


def _select(graph: fx.GraphModule, node: fx.Node, size: int) -> None:
    """Take the elements at known places by views where a few will do."""
    x, dim, index = cast("tuple[fx.Node, int, fx.Node]", node.args)
    dim %= len(x.meta["shape"])
    if dim == 0 or not _is_batch(x, size):
        return
    places = getattr(graph, cast("str", index.target)).tolist() if index.op == "get_attr" else []
    if places and (grid := _grid(places)) and len(places) == x.meta["shape"][dim]:
        _replace(node, _interleaved, x, dim, grid)
    elif places and (step := _step(places)):
        _replace(node, aten.slice.Tensor, x, dim, places[0], places[-1] + 1, step)
    else:
        _replace(node, _selected, x, dim, index)


def _step(places: Sequence[int]) -> int:
    """The distance between places if it is always the same, else 0."""
    steps = {b - a for a, b in zip(places[:-1], places[1:], strict=True)}
    return max(0, *steps) if len(steps) == 1 else int(len(places) == 1)


def _grid(places: Sequence[int]) -> tuple[int, int] | None:
    """Rows and columns if the places are those of a matrix read by columns."""
    count = len(places)
    for rows in range(2, count):
        columns = count // rows
        if list(places) == [row * columns + k for k in range(columns) for row in range(rows)]:
            return rows, columns
    return None


# What takes the operations' place. The batch is the first dimension of what they take and give.


def _pointwise(op: Any, dims: int, *args: Any, **kwargs: Any) -> Tensor:
    def turned(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() == 0:
            return x
        return x[(None,) * (dims - x.dim())].movedim(0, -1)

    result: Tensor = op(*map(turned, args), **kwargs)
    return result.movedim(-1, 0)


def _copied(op: Any, *args: Any, **kwargs: Any) -> Tensor:
    result: Tensor = op(*args, **kwargs)
    return result.movedim(0, -1).clone().movedim(-1, 0)


def _cat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return torch.cat([x.movedim(0, -1) for x in tensors], dim).movedim(-1, 0)


def _stack(tensors: Sequence[Tensor], dim: int) -> Tensor:
    return torch.stack([x.movedim(0, -1) for x in tensors], dim).movedim(-1, 0)


def _selected(x: Tensor, dim: int, index: Tensor) -> Tensor:
    return x.movedim(0, -1).index_select(dim - 1, index).movedim(-1, 0)


def _interleaved(x: Tensor, dim: int, grid: tuple[int, int]) -> Tensor:
    return x.unflatten(dim, grid).transpose(dim, dim + 1).flatten(dim, dim + 1)


def _small_product(
    left: Tensor, right: Tensor, *added: Tensor, first: bool, **scales: Any
) -> Tensor:
    if first:
        product = (right.t()[:, :, None] * left.t()[None]).sum(1).t()
    else:
        product = (left[:, None] * right.t()[None]).sum(2)
    return _plus(product, *added, **scales)


def _product(left: Tensor, right: Tensor, *added: Tensor, first: bool, **scales: Any) -> Tensor:
    product = torch.mm(right.t(), left.t()).t() if first else torch.mm(left, right)
    return _plus(product, *added, **scales)


def _plus(product: Tensor, *added: Tensor, beta: float = 1, alpha: float = 1) -> Tensor:
    if alpha != 1:
        product = _pointwise(torch.mul, 2, product, alpha)
    for term in added:
        product = _pointwise(torch.add, 2, product, term if beta == 1 else term * beta)
    return product


_JOINS = {aten.cat.default: _cat, aten.stack.default: _stack}
_PRODUCTS = (aten.mm.default, aten.addmm.default)
