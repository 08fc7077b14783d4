# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Write down the operations of a tensor function as a graph, to be run without the function."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from pyro_flows.ops.tracing import recording


def record(function: Callable[..., Any], *example: Tensor, chance: bool = True) -> fx.GraphModule:
    """The operations of ``function`` that depend on its inputs, or on chance, as a graph.

    What depends on neither, such as the logarithm of data, is computed once, and Python may look
    at its values: a model that asks ``if torch.isnan(y[t])`` is recorded as it runs on its data.
    Random numbers are drawn anew on each call. What is computed once doesn't follow if data are
    changed in place later: record again. ``x.tolist()`` and ``x.numpy()`` aren't seen, unless
    under ``vmap``, which forbids them.

    Args:
        function: of tensors; returns a tensor or a tuple of them.
        example: inputs; their values don't matter, their shapes, dtypes and devices do.
        chance: whether random numbers may be drawn.

    Raises:
        RecordingError: Python asked for values that depend on the inputs, or the operations change
            tensors that don't depend on them, or random numbers are drawn though they may not be.

    Cost: some 0.05 ms an operation.
    """
    with recording(), _Recorder(example, chance=chance) as recorder:
        result = function(*example)
    return recorder.finished(result)


_INDEXING = {
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
}


class RecordingError(RuntimeError):
    """A function can't be recorded as a graph."""


class FilledError(RecordingError):
    """It writes into a tensor that doesn't depend on its inputs."""


class _Recorder(TorchDispatchMode):
    """Sees each operation below autograd and vmap, and writes down those that matter.

    torch's ``make_fx`` does nearly that, but takes five times as long, records what depends on
    constants only, and forbids a look at their values.
    """

    def __init__(self, example: Sequence[Tensor], *, chance: bool) -> None:
        super().__init__()
        self.chance = chance
        self.graph = fx.Graph()
        # By identity; the tensors are held, so that no other gets the same one.
        self.live: dict[int, tuple[Tensor, fx.Node]] = {}
        self.constants: dict[int, tuple[Tensor, int, str]] = {}
        for index, tensor in enumerate(example):
            node = self.graph.placeholder(f"input{index}")
            self.live[id(tensor)] = tensor, _noted(node, tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        by_chance = _is_by_chance(func, args, kwargs)
        if not by_chance and not any(id(tensor) in self.live for tensor in given):
            return func(*args, **kwargs)
        if by_chance and not self.chance:
            raise RecordingError(f"{func} draws random numbers")
        if torch.Tag.dynamic_output_shape in func.tags and not self._is_plain_index(func, args):
            raise RecordingError(f"{func} gives a shape that depends on the inputs' values")
        self._free(func, args, kwargs, by_chance=by_chance)
        wanted = self._with_positions(func, args) if func in _INDEXING else args
        nodes = tree_map(self._node, (wanted, kwargs))
        result = func(*args, **kwargs)
        self._note(func, result, self.graph.call_function(func, *nodes))
        return result

    def _is_plain_index(self, func: Any, args: tuple[Any, ...]) -> bool:
        """Whether it is ``x[index]`` with no mask among the indices that depends on the inputs."""
        if func is not torch.ops.aten.index.Tensor:
            return False
        masks = (i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8))
        return not any(id(mask) in self.live for mask in masks)

    def _with_positions(self, func: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """``x[mask]`` by the positions: a device that looks for them anew has Python wait."""
        if func is not torch.ops.aten.index.Tensor and args[2].numel() == 1:
            return args  # filled with one value, which asks for no positions
        indices: list[Any] = []
        for index in args[1]:
            known = index is not None and id(index) not in self.live
            if known and index.dtype == torch.bool and index.dim() > 0:
                self._node(index)  # so that it is noticed if the mask changes later
                indices.extend(index.to(args[0].device).nonzero(as_tuple=True))
            else:
                indices.append(index)
        return args[0], indices, *args[2:]

    def _free(
        self, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, by_chance: bool
    ) -> None:
        """See that what is written to depends on the inputs."""
        if not func._schema.is_mutable:
            return
        for index, argument in enumerate(func._schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            given = args[index] if index < len(args) else kwargs.get(argument.name)
            for tensor in tree_leaves(given):
                if not isinstance(tensor, Tensor) or id(tensor) in self.live:
                    continue
                if not by_chance or tensor._is_view():
                    raise FilledError(f"{func} writes into a tensor that is made only once")
                # Filled with random numbers where it lies: a fresh one for every call.
                blank = self._node(tensor.clone())
                fresh = self.graph.call_function(torch.ops.aten.clone.default, (blank,))
                self.live[id(tensor)] = tensor, fresh

    def _node(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) in self.live:
            return self.live[id(value)][1]
        if id(value) not in self.constants:
            name = f"constant{len(self.constants)}"
            self.constants[id(value)] = value, _version(value), name
        node = self.graph.get_attr(self.constants[id(value)][2])
        return _noted(node, value)

    def _note(self, func: Any, result: Any, node: fx.Node) -> None:
        if isinstance(result, Tensor):
            self.live[id(result)] = result, _noted(node, result)
        elif isinstance(result, (tuple, list)):
            for index, part in enumerate(result):
                if isinstance(part, Tensor):
                    item = self.graph.call_function(operator.getitem, (node, index))
                    self.live[id(part)] = part, _noted(item, part)
        elif result is not None:
            raise RecordingError(f"{func} asks for values that depend on the inputs")

    def finished(self, result: Any) -> fx.GraphModule:
        """The graph that returns ``result``."""
        if any(_version(tensor) != version for tensor, version, _ in self.constants.values()):
            raise RecordingError("a tensor was changed in place after it had been used")
        self.graph.output(tree_map(self._node, result))
        self.graph.eliminate_dead_code()
        root = {name: tensor.detach() for tensor, _, name in self.constants.values()}
        return fx.GraphModule(root, self.graph)


def _is_by_chance(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether it draws random numbers; attention without dropout is tagged so, but doesn't."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    names = [argument.name for argument in func._schema.arguments]
    if "dropout_p" not in names:
        return True
    place = names.index("dropout_p")
    return bool(args[place] if place < len(args) else kwargs.get("dropout_p", 0.0))


def _noted(node: fx.Node, tensor: Tensor) -> fx.Node:
    """The node, with what rewriting a graph asks for."""
    node.meta["shape"], node.meta["dtype"] = tuple(tensor.shape), tensor.dtype
    return node


def _version(tensor: Tensor) -> int:
    """How often it was changed in place; inference tensors don't count."""
    return 0 if tensor.is_inference() else tensor._version
