# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Whether values, contexts and parameters go together: in a sentence, where torch would fail.

Only shapes and dtypes are looked at, never numbers: no device is waited for.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pyro_flows.errors import ContextError, DtypeError


def check_batches(layer: Any, x: Tensor, context: Tensor) -> None:
    """Raise ContextError unless the leading axes of values and context broadcast."""
    for size, given in zip(x.shape[-2::-1], context.shape[-2::-1], strict=False):
        if size != given and 1 not in (size, given):
            raise ContextError(
                f"{layer._title()} expected values and a context whose leading axes broadcast, "
                f"but got {tuple(x.shape)} and {tuple(context.shape)}. Give one context for each "
                "value, or a single one."
            )


def check_dtypes(layer: Any, x: Tensor, context: Tensor | None) -> None:
    """Raise DtypeError where a product with the layer's matrices would fail.

    Layers without matrices promote as torch does; those without parameters take integers too.
    """
    found = x.dtype
    if not found.is_floating_point and next(layer.parameters(), None) is not None:
        raise DtypeError(
            f"{layer._title()} expected real floating-point values, but got {_name(found)}. "
            "Convert them, as by x.float()."
        )
    matrix = _matrix(layer)
    if matrix is None:
        return
    wanted, what = matrix.dtype, "values"
    if context is not None and found == wanted:
        found, what = torch.promote_types(found, context.dtype), "a context"
    if found == wanted or _autocasts(x.device):
        return
    raise DtypeError(
        f"{layer._title()} expected {what} of dtype {_name(wanted)}, as its parameters have, but "
        f"got {_name(found)}. Convert one of them: tensor.to({wanted}), or layer.double() for "
        "float64."
    )


def _matrix(module: nn.Module) -> Tensor | None:
    """The first parameter of several axes; layers inside the layer ask for themselves.

    Read where modules keep them: for every call, ``parameters()`` is slow.
    """
    for parameter in module._parameters.values():
        if parameter is not None and parameter.dim() > 1:
            return parameter
    for part in module._modules.values():
        if part is not None and not hasattr(type(part), "forward_and_ladj"):
            found = _matrix(part)
            if found is not None:
                return found
    return None


def _autocasts(device: torch.device) -> bool:
    try:
        return torch.is_autocast_enabled(device.type)
    except RuntimeError:  # a device that knows no such thing
        return False


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
