# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Sums of products of exponentials, on the log scale, as a backend of ``opt_einsum``.

Pyro's own, ``pyro.ops.einsum.torch_log``, has a logarithm that ``torch.vmap`` refuses. Values and
gradients are the same.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from string import ascii_letters

import torch
from pyro.distributions import hmm
from pyro.ops.einsum.torch_log import transpose
from pyro.ops.einsum.util import Tensordot
from torch import Tensor

__all__ = ["einsum", "products_in_pyro", "tensordot", "transpose"]


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """The logarithm of ``einsum`` of the operands' exponentials, safe against overflow."""
    symbols = sorted(set(equation) - set(",->"))
    equation = equation.translate(dict(zip(map(ord, symbols), ascii_letters, strict=False)))
    inputs, output = equation.split("->")
    if inputs == output:
        return operands[0].clone()
    scaled, total = [], torch.zeros((), dtype=operands[0].dtype, device=operands[0].device)
    for dims, operand in zip(inputs.split(","), operands, strict=True):
        shift = operand.detach()
        gone = [index for index, dim in enumerate(dims) if dim not in output]
        if gone:
            shift = shift.amax(gone, keepdim=True)
        shift = shift.clamp(min=torch.finfo(shift.dtype).min)  # there is no -inf less -inf
        scaled.append((operand - shift).exp())
        total = total + _as_output(shift.squeeze(gone) if gone else shift, dims, output)
    return total + _safe_log(torch.einsum(equation, *scaled))


tensordot = Tensordot(einsum)


def _as_output(x: Tensor, dims: str, output: str) -> Tensor:
    """``x``, whose sizes are those of ``dims`` that are left, laid out as the output."""
    left = [dim for dim in dims if dim in output]
    x = x.permute([left.index(dim) for dim in output if dim in left])
    for index, dim in enumerate(output):
        if dim not in left:
            x = x.unsqueeze(index)
    return x


def _safe_log(x: Tensor) -> Tensor:
    """The logarithm; its gradient is 1 / eps at the most, at 0 too. As Pyro's."""
    eps = torch.finfo(x.dtype).eps
    small = x.detach().log() + (x - x.detach()) / eps
    return torch.where(x >= eps, x.clamp(min=eps).log(), small)


def _log_matmul_exp(x: Tensor, y: Tensor) -> Tensor:
    """The logarithm of the matrix product of two tensors' exponentials."""
    least = torch.finfo(x.dtype).min
    rows = x.detach().amax(-1, keepdim=True).clamp(min=least)
    columns = y.detach().amax(-2, keepdim=True).clamp(min=least)
    return _safe_log((x - rows).exp() @ (y - columns).exp()) + rows + columns


_PYROS, _lock, _users = hmm._logmatmulexp, threading.Lock(), 0


@contextmanager
def products_in_pyro() -> Iterator[None]:
    """Inside, Pyro's hidden Markov models multiply as here, and not by what vmap refuses.

    The results are the same, so that other threads may well meet it.
    """
    global _users
    with _lock:
        _users += 1
        hmm._logmatmulexp = _log_matmul_exp
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if not _users:
                hmm._logmatmulexp = _PYROS
