# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The numbers that a model is called with and doesn't explain: predictors, known scales, sizes."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_flows.guides import structure


def constants(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], trace: Any
) -> dict[str, NDArray[Any]]:
    """Numeric arguments of a model by name, those left out that are observed.

    Args:
        model: a Pyro model.
        args: its arguments.
        kwargs: the same, by name.
        trace: of one run.

    Returns:
        Name to array, of ArviZ's group ``constant_data``; a name that a site or a plate has, too,
        gets the suffix ``_data``.
    """
    given = _by_name(model, args, kwargs)
    arrays = {name: _numbers(value) for name, value in given.items()}
    data = set[str]()
    for name, site in structure.observed_sites(trace).items():
        left = {k: v for k, v in given.items() if k not in data}
        found = _argument_observed(name, site["value"], left, arrays)
        data |= {found} if found else set()
    return {
        f"{name}_data" if name in trace.nodes else name: array
        for name, array in arrays.items()
        if array is not None and name not in data
    }


def dims_of_constants(arrays: dict[str, NDArray[Any]], trace: Any) -> dict[str, list[str | None]]:
    """The plate that the first axis of each array runs along, if just one has its size."""
    sizes: dict[int, set[str]] = {}
    for site in trace.nodes.values():
        for frame in site["cond_indep_stack"] if site["type"] == "sample" else ():
            if frame.vectorized:
                sizes.setdefault(int(frame.size), set()).add(frame.name)
    found: dict[str, list[str | None]] = {}
    for name, array in arrays.items():
        plates = sizes.get(len(array), set()) if array.ndim else set()
        if len(plates) == 1:
            found[name] = [*plates, *[None] * (array.ndim - 1)]
    return found


def _by_name(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> dict[str, Any]:
    call = model.forward if isinstance(model, torch.nn.Module) else model
    try:
        bound = inspect.signature(call).bind(*args, **kwargs)
    except (TypeError, ValueError):  # a callable that doesn't say what it takes
        return {**{f"argument_{i}": value for i, value in enumerate(args)}, **kwargs}
    found: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            found |= value
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            found |= {f"{name}_{i}": v for i, v in enumerate(value)}
        elif isinstance(value, dict):
            found |= {f"{name}.{key}": v for key, v in value.items()}
        else:
            found[name] = value
    return found


def _numbers(value: Any) -> NDArray[Any] | None:
    """A value as an array of numbers; None if it is something else."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_quantized:
            return None
        value = value.detach().cpu()
        value = value.float() if value.dtype == torch.bfloat16 else value
        return np.asarray(value.numpy())
    if isinstance(value, (bool, int, float, np.ndarray, np.number)) or _is_list(value):
        array = np.asarray(value)
        return array if array.dtype.kind in "biuf" else None
    return None


def _is_list(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) for v in value)


def _argument_observed(
    site: str, value: Any, given: dict[str, Any], arrays: dict[str, NDArray[Any] | None]
) -> str | None:
    """Name of the argument that a site observes; None where it observes something else.

    That which is the data, or shares their memory. Where the model has made a copy, one that is
    equal to them: of several the one named as the site, or else the last, since data come last.
    """
    data = _numbers(value)
    for name, argument in given.items():
        if argument is value or _shares_memory(argument, value, arrays[name], data):
            return name
    equal = [name for name in given if _equal(arrays[name], data)]
    return site if site in equal else equal[-1] if equal else None


def _shares_memory(
    argument: Any, value: Any, array: NDArray[Any] | None, data: NDArray[Any] | None
) -> bool:
    """Whether an argument is the memory of all the data, in whatever shape."""
    if array is None or data is None or array.size != data.size or not data.size:
        return False
    if isinstance(argument, Tensor) and isinstance(value, Tensor):
        return argument.device == value.device and argument.data_ptr() == value.data_ptr()
    return bool(np.shares_memory(array, data))


def _equal(array: NDArray[Any] | None, data: NDArray[Any] | None) -> bool:
    if array is None or data is None or array.shape != data.shape or not array.size:
        return False
    return bool(np.array_equal(array, data, equal_nan=array.dtype.kind == "f"))
