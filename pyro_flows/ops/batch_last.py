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


def batch_last(graph: fx.GraphModule, size: int, small: int = 0) -> fx.GraphModule | None:
    """A graph, as :func:`pyro_flows.ops.record.record` makes it, laid out anew.

    Args:
        graph: of ATen operations, with shapes and dtypes in their ``meta``.
        size: of the batch. Whatever has it as the first of two or more sizes is laid out anew; if
            that is a coincidence, nothing but the layout changes.
        small: products with matrices of at most so many numbers are written as sums, so that they
            become part of the function; none are in a graph that looks up bins, as splines do. The
            others are left to the library, which blocks them for the cache.

    Returns:
        A new graph of the same constants; None where operations depend on how memory is laid out,
        or write into what others may share.
    """
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph.graph, {}))
    laid_out = fx.GraphModule(graph, copied)
    calls = [node for node in copied.nodes if isinstance(node.target, torch._ops.OpOverload)]
    for node in calls:
        if node.target in _BOUND_TO_MEMORY or not _made_pure(node):
            return None
    if any(_is_looked_up(node) for node in calls):
        # The compiler recomputes a product's factors for every sum; a spline's gradient is too
        # long for that.
        small = 0
    for node in calls:
        if node.target in _PRODUCTS:
            _multiply(node, size, small)
        elif node.target is aten.index_select.default:
            _select(graph, node, size)
        elif node.target in _VIEWS:
            _replace(node, torch.reshape, *node.args)  # of which a view may not be possible now
        elif _is_batch(node, size):
            _lay_out(node)
    copied.lint()
    laid_out.recompile()
    return laid_out


def _is_looked_up(node: fx.Node) -> bool:
    """Whether elements are taken from places that are computed, as a spline finds its bins."""
    return node.target is aten.gather.default and cast("fx.Node", node.args[2]).op != "get_attr"


def _made_pure(node: fx.Node) -> bool:
    """Whether it changes nothing, after it was made so if what it changes is nobody else's."""
    op = cast("Any", node.target)
    if not op._schema.is_mutable:
        return True
    written = node.args[0]
    pure = _pure_form(op)
    if pure is None or not isinstance(written, fx.Node):
        return False
    if _may_share(written) or any(_may_share(user) for user in written.users if user is not node):
        return False
    kept = written.meta["dtype"]  # while the result of the pure operation has the larger one
    for other in node.all_input_nodes:
        dtype = other.meta["dtype"]
        if dtype != kept and (dtype.is_floating_point or not kept.is_floating_point):
            return False
    node.target = pure
    return True


def _pure_form(op: Any) -> Any:
    """What gives the result that ``op`` leaves in its first argument; None if nothing does.

    By the arguments, since names of overloads differ: ``pow_.Scalar`` is ``pow.Tensor_Scalar``.
    """
    name = op._schema.name.removeprefix("aten::")
    packet = getattr(aten, name.removesuffix("_"), None)
    if packet is None or not name.endswith("_"):
        return None
    wanted = [(argument.name, str(argument.type)) for argument in op._schema.arguments]
    for overload in packet.overloads():
        pure = getattr(packet, overload)
        if [(argument.name, str(argument.type)) for argument in pure._schema.arguments] == wanted:
            return pure
    return None


def _may_share(node: fx.Node) -> bool:
    """Whether its memory may be another's: inputs, constants, views, and tuples of them."""
    op = node.target
    return not isinstance(op, torch._ops.OpOverload) or any(
        out.alias_info for out in op._schema.returns
    )


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


def _multiply(node: fx.Node, size: int, most: int) -> None:
    """Write a small product as sums, and a larger one as that of the transposed."""
    left, right = (cast("fx.Node", arg).meta["shape"] for arg in node.args[-2:])
    if size not in left or not node.meta["dtype"].is_floating_point:
        return
    small = left[0] * left[1] * right[1] <= most * size
    function, first = _small_product if small else _product, left[0] == size
    _replace(node, function, *node.args[-2:], *node.args[:-2], first=first, **node.kwargs)


def _select(graph: fx.GraphModule, node: fx.Node, size: int) -> None:
    """Take the elements at known places by views where a few will do."""
    x, dim, index = cast("tuple[fx.Node, int, fx.Node]", node.args)
    if not _is_batch(x, size) or dim % len(x.meta["shape"]) == 0:
        return
    dim %= len(x.meta["shape"])
    places: list[int] = []
    if index.op == "get_attr":
        places = getattr(graph, cast("str", index.target)).reshape(-1).tolist()
    if len(places) == x.meta["shape"][dim] and (grid := _grid(places)):
        _replace(node, _interleaved, x, dim, grid)
    elif step := _step(places):
        _replace(node, aten.slice.Tensor, x, dim, places[0], places[-1] + 1, step)
    else:
        _replace(node, _selected, x, dim, index)


def _step(places: Sequence[int]) -> int:
    """The distance between places if it is always the same and forward, else 0."""
    if len(places) < 2:
        return len(places)
    steps = {b - a for a, b in zip(places[:-1], places[1:], strict=True)}
    return max(0, *steps) if len(steps) == 1 else 0


def _grid(places: Sequence[int]) -> tuple[int, int] | None:
    """Rows and columns if the places are those of a matrix read by columns."""
    if len(places) < 2 or places[1] < 2 or len(places) % places[1]:
        return None
    columns = places[1]
    rows = len(places) // columns
    order = [row * columns + k for k in range(columns) for row in range(rows)]
    return (rows, columns) if list(places) == order else None


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
    return result.movedim(0, -1).clone(memory_format=torch.contiguous_format).movedim(-1, 0)


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
    for term in added if beta != 0 else ():
        product = _pointwise(torch.add, 2, product, term if beta == 1 else term * beta)
    return product


_JOINS = {aten.cat.default: _cat, aten.stack.default: _stack}
_PRODUCTS = (aten.mm.default, aten.addmm.default)
_VIEWS = (aten.view.default, aten._unsafe_view.default)
_BOUND_TO_MEMORY = (
    *(aten.as_strided.default, aten.view.dtype),
    *(aten.view_as_complex.default, aten.view_as_real.default),
)
