# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Matrices without a factor: NaN for the particle whose matrix it is, not an error for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

T = TypeVar("T")
aten = torch.ops.aten

# Each returns what went wrong as its last part, which torch.linalg looks at afterwards.
_FACTORISATIONS = {
    aten.linalg_cholesky_ex.default,
    aten.linalg_inv_ex.default,
    aten.linalg_lu_factor_ex.default,
    aten.linalg_ldl_factor_ex.default,
    aten._linalg_solve_ex.default,
}


class NaNFactors(TorchDispatchMode):
    """Inside, ``torch.linalg`` gives NaN where it would raise ``LinAlgError``.

    A covariance that overflows, or that rounding has made indefinite, is one draw's fault: the
    others of its batch go on. Cholesky, LU and LDL factors, inverses and solutions; not
    eigenvalues, nor the older ``torch.cholesky``. A model's own ``except LinAlgError`` is not
    reached.
    """

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is aten._linalg_check_errors.default:
            return None
        result = func(*args, **(kwargs or {}))
        if func not in _FACTORISATIONS:
            return result
        *parts, info = result
        return *(_nan_where(info != 0, part) for part in parts), info


def without_linalg_errors(function: Callable[..., T], *args: Any) -> T:
    """Call ``function``; again with NaN for errors if ``torch.linalg`` raises one."""
    try:
        return function(*args)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        with NaNFactors():
            return function(*args)


def _nan_where(failed: Tensor, part: Tensor) -> Tensor:
    if not (part.is_floating_point() or part.is_complex()):
        return part
    extra = (1,) * min(part.dim() - failed.dim(), 2)  # a solution may have further batch sizes
    return part.masked_fill(failed.reshape(*failed.shape, *extra), torch.nan)
