# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Rows of numbers, whatever the user keeps them in, as tensors and back."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_flows.errors import ContextError, DataError, ShapeError

# A column that repeats its values this often is no sample from a density.
MOST_REPEATED = 20
# Nor is one that has the same value in more than this share of the rows.
MOST_SHARED = 0.1
# Rows that dependence of columns is looked for in.
LOOKED_AT = 10_000


def column_names(value: Any) -> list[str] | None:
    """The names of a data frame's columns; None for anything else."""
    columns = getattr(value, "columns", None)
    return None if columns is None else [str(name) for name in columns]


def row_names(value: Any) -> list[str] | None:
    """The names in a row of a data frame, which is a series; None for anything else."""
    index = getattr(value, "index", None)
    if index is None or callable(index) or getattr(value, "ndim", 0) != 1:
        return None  # lists have a method of that name
    numbered = hasattr(index, "start")  # 0, 1, ...: of a series made of numbers alone
    return None if numbered else [str(name) for name in index]


def as_numbers(value: Any, what: str) -> Tensor:
    """Numbers as a float64 tensor of as many axes, on the CPU if they aren't one; masked are NaN.

    Raises:
        DataError: it isn't real numbers.
    """
    if isinstance(value, Tensor):
        if value.layout is not torch.strided:
            raise DataError(
                f"Expected {what} to be a dense tensor, but got one of layout {value.layout}. "
                f"Pass {what}.to_dense()."
            )
        _check_real(value.is_complex(), what)
        return value.detach().double()
    try:
        _check_real(np.iscomplexobj(value), what)
        if np.ma.isMaskedArray(value):
            value = np.ma.filled(value.astype(np.float64), np.nan)
        return torch.from_numpy(np.array(value, dtype=np.float64))
    except (TypeError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"Expected {what} to be a table of numbers, but got {type(value).__name__} that "
            f"can't be read as one ({error}). Encode categories as numbers, or drop them."
        ) from error


def _check_real(is_complex: bool, what: str) -> None:  # noqa: FBT001
    if is_complex:
        raise DataError(
            f"Expected {what} to be real numbers, but got complex ones. Give real and imaginary "
            "parts as columns of their own."
        )


def as_rows(value: Any, what: str) -> Tensor:
    """A table of numbers as a float64 tensor ``(n, columns)``, on the CPU if it isn't one.

    Args:
        value: a tensor, an array, a data frame, or nested lists.
        what: what it is called in errors.

    Raises:
        ShapeError: it doesn't have two axes, or no column.
        DataError: it isn't numbers.
    """
    rows = as_numbers(value, what)
    if rows.dim() != 2:
        raise ShapeError(
            f"Expected {what} of shape (rows, columns), but got {tuple(rows.shape)}. A single "
            "column is reshape(-1, 1), a single row reshape(1, -1)."
        )
    if not rows.shape[1]:
        raise ShapeError(
            f"Expected {what} with at least one column, but got shape {tuple(rows.shape)}. Say "
            "which columns to take."
        )
    return rows


def check_finite(rows: Tensor, what: str) -> None:
    """Raise DataError if a row has NaN or infinite values."""
    bad = ~torch.isfinite(rows).all(-1)
    if bool(bad.any()):
        first = int(bad.nonzero()[0, 0])
        raise DataError(
            f"{what} has NaN or infinite values in {int(bad.sum())} of {len(rows)} rows, the "
            f"first is row {first}. Drop those rows, or fill the values in."
        )


def check_varies(rows: Tensor, what: str, names: list[str] | None) -> None:
    """Raise DataError if a column is constant: it has no density, and as context says nothing."""
    constant = (rows == rows[:1]).all(0).nonzero()[:, 0].tolist()
    if constant:
        raise DataError(
            f"{what} has constant columns: {label(constant, names)}. Drop them: a constant has "
            "no density, and nothing depends on it."
        )


def check_spread(loc: Tensor, scale: Tensor, names: list[str] | None) -> None:
    """Raise DataError if 64 bits don't hold the mean and standard deviation of a column."""
    usable = loc.isfinite() & scale.isfinite() & (scale > 0)
    if not bool(usable.all()):
        bad = label((~usable).nonzero()[:, 0].tolist(), names)
        raise DataError(
            f"x has columns whose numbers are too large or too close together to take a standard "
            f"deviation of: {bad}. Rescale them, or take logarithms."
        )


def repeated_columns(rows: Tensor, names: list[str] | None) -> tuple[str, str]:
    """Columns that repeat their values too often to have a density, in words; "" for none.

    First those of few distinct values; then, of the others, those with one value in more than a
    share of the rows, such as amounts that are often zero.
    """
    few, one = [], []
    for i in range(rows.shape[1]):
        values, counts = rows[:, i].unique(return_counts=True)
        if len(rows) > MOST_REPEATED * len(values):
            few.append(i)
        elif int(counts.max()) > max(MOST_SHARED * len(rows), 10):
            one.append(i)
    return label(few, names), label(one, names)


def count_copies(*parts: Tensor | None) -> int:
    """How many rows are equal to one before them, in all parts of the table."""
    key, factor = torch.zeros((), dtype=torch.long), 1
    for part in parts:
        for column in () if part is None else part.unbind(-1):
            # Their bits by odd numbers, modulo 2^64: whole, as no sum of scaled numbers is.
            factor = factor * 0x9E3779B97F4A7C15 % 2**64
            signed = factor - 2**64 if factor >= 2**63 else factor
            key = key.to(column.device) + column.contiguous().view(torch.long) * signed
    return len(key) - len(key.unique())


def dependent_columns(rows: Tensor, names: list[str] | None) -> str:
    """Columns that are linear in those before them, in words; "" for none, or too few rows."""
    rows = rows[:: max(1, len(rows) // LOOKED_AT)]
    if len(rows) <= rows.shape[1] + 1:
        return ""
    z = (rows - rows.mean(0)) / rows.std(0).clamp_min(1e-300)
    left = torch.linalg.qr(z, mode="r")[1].diagonal().abs() / len(rows) ** 0.5
    return label((left < 1e-6).nonzero()[:, 0].tolist(), names)


def label(columns: list[int], names: list[str] | None) -> str:
    """Columns by name, or by index if they have none."""
    return ", ".join(repr(names[i]) if names else str(i) for i in columns)


def check_width(rows: Tensor, width: int, what: str) -> None:
    """Raise unless there are as many columns as in fit."""
    if rows.shape[1] != width:
        error = ContextError if what == "context" else ShapeError
        raise error(
            f"Expected {what} with {width} columns, as in fit, but got {rows.shape[1]}. Pass the "
            "same columns in the same order."
        )


def check_names(names: list[str] | None, known: list[str] | None, what: str) -> None:
    """Raise if a data frame's columns have other names than in fit."""
    if names is not None and known is not None and names != known:
        error = ContextError if what.endswith("context") else ShapeError
        raise error(
            f"Expected {what} with the columns {known}, as in fit, but got {names}. Pass the same "
            "columns in the same order."
        )


class Kind:
    """What a table was given as, to answer in kind: tensors for tensors, else arrays.

    Args:
        value: the table.

    Attributes:
        tensor: whether it was a tensor.
        dtype: floating point type of the answer.
        device: of the answer, if it is a tensor.
    """

    def __init__(self, value: Any) -> None:
        self.tensor = isinstance(value, Tensor)
        found = value.dtype if self.tensor else getattr(value, "dtype", None)
        self.dtype = torch.float64
        if str(found).removeprefix("torch.") in ("float16", "float32", "bfloat16"):
            self.dtype = torch.float32
        self.device = value.device if self.tensor else torch.device("cpu")

    def answer(self, tensor: Tensor) -> Any:
        """Hand a tensor over as what the user works with."""
        result = tensor.detach().to(self.device, self.dtype)
        return result if self.tensor else result.numpy()
