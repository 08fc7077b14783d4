# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A guide's parameters in Pyro's global store: its own, never another guide's.

Pyro registers a module's parameters under a name; a second guide of the same class finds the name
taken, and Pyro then trains the first guide's tensors. Here a name is only used if the tensor
stored under it is this guide's.
"""

from __future__ import annotations

import weakref

import pyro
import torch
from pyro.nn.module import _is_module_local_param_enabled
from torch import nn

from pyro_flows.errors import GuideError

# Every parameter that a guide of this process put into the store. The store holds the tensors
# itself, so membership does not depend on when Python collects garbage. A tensor that is in the
# store but not here was loaded from a file.
_registered: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()


def register(name: str, module: nn.Module) -> str:
    """Announce a module's parameters to Pyro under ``name``, or under ``name_1``, ``name_2``, ...

    * The name is free, or its tensors are this module's: used as it is.
    * It holds tensors loaded from a file: their values are copied into this module.
    * It holds another guide's tensors: the next free name is used.

    Returns:
        The name that was used.

    Raises:
        GuideError: loaded values don't fit this module's shapes.
    """
    store = pyro.get_param_store()
    parameters = [(key, p) for key, p in module.named_parameters() if p.requires_grad]
    if _is_module_local_param_enabled():
        _announce(name, parameters)
        return name
    base, count = name, 0
    while True:
        stored = {key: store._params.get(f"{name}.flow.{key}") for key, _ in parameters}
        present = [(key, p) for key, p in parameters if stored[key] is not None]
        foreign = [key for key, p in present if stored[key] is not p]
        if not foreign:
            break
        if not any(_is_registered(stored[key]) for key in foreign):
            _adopt(name, parameters, stored)
            break
        count += 1
        name = f"{base}_{count}"
    _announce(name, parameters)
    return name


def _is_registered(tensor: torch.Tensor | None) -> bool:
    # By identity: a tensor's == compares elements.
    return tensor is not None and _registered.get(id(tensor)) is tensor


def _announce(name: str, parameters: list[tuple[str, nn.Parameter]]) -> None:
    for key, parameter in parameters:
        pyro.param(f"{name}.flow.{key}", parameter)
        _registered[id(parameter)] = parameter


def _adopt(
    name: str,
    parameters: list[tuple[str, nn.Parameter]],
    stored: dict[str, torch.Tensor | None],
) -> None:
    store = pyro.get_param_store()
    for key, parameter in parameters:
        value = stored[key]
        if value is None:
            continue
        if value.shape != parameter.shape:
            raise GuideError(
                f"The parameter store holds '{name}.flow.{key}' of shape {tuple(value.shape)}, "
                f"but this guide expected {tuple(parameter.shape)}. It was saved from another "
                "model or flow: call pyro.clear_param_store(), or build the same guide."
            )
        with torch.no_grad():
            parameter.copy_(value)
        full = f"{name}.flow.{key}"
        store._param_to_name.pop(value, None)
        store._params[full] = parameter
        store._param_to_name[parameter] = full
