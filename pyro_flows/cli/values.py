# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A column, an array or a value of JSON as a model takes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pyro_flows.cli.tables import codes, is_text, numbers
from pyro_flows.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    import torch


class Reader:
    """Makes arrays of numpy, and remembers which text has which code.

    Args:
        floats: names whose whole numbers are made floating point.
        keep_gaps: let NaN pass.

    Attributes:
        categories: by name, the texts that codes 0, 1, ... stand for.
    """

    def __init__(self, floats: Sequence[str] = (), *, keep_gaps: bool = False) -> None:
        self.floats, self.keep_gaps = floats, keep_gaps
        self.categories: dict[str, list[str]] = {}

    def column(self, name: str, column: pd.Series, where: str) -> np.ndarray[Any, Any]:
        """A column of a table: numbers as they are, text as codes."""
        if not is_text(column):
            return self._checked(name, numbers(column, where), where, table=True)
        if column.isna().any():
            raise DataError(_gaps(where, column.isna().to_numpy(), table=True))
        values, self.categories[name] = codes(column, where)
        return values

    def plain(self, name: str, value: Any, where: str) -> Any:
        """A value of JSON or an array of numpy: lists are arrays, the rest is as it is."""
        import numpy as np
        import pandas as pd

        if isinstance(value, dict):
            return {
                key: self.plain(key, part, f"{key!r} in {where}") for key, part in value.items()
            }
        if isinstance(value, list):
            value = _as_array(value, where)
        if not isinstance(value, np.ndarray):
            return float(value) if name in self.floats else value
        if value.ndim == 0:
            return value.item()
        if value.dtype.kind in "US":
            if value.ndim > 1:
                raise DataError(
                    f"{where} is a table of texts. Give each column a name of its own."
                )
            array, self.categories[name] = codes(pd.Series(value.astype(str)), where)
            return array
        if value.dtype.kind in "mM":
            raise DataError(f"{where} holds dates. Make them numbers first.")
        if value.dtype.kind not in "fiub":
            raise DataError(f"{where} is of type {value.dtype}, but real numbers were expected.")
        if value.dtype.kind in "iu":
            value = value.astype(np.int64)
        return self._checked(name, value, where, table=False)

    def _checked(
        self, name: str, array: np.ndarray[Any, Any], where: str, *, table: bool
    ) -> np.ndarray[Any, Any]:
        import numpy as np

        if array.dtype.kind == "f":
            bad = np.isinf(array) if self.keep_gaps else ~np.isfinite(array)
            if bad.any():
                raise DataError(_gaps(where, bad, table=table))
        return array.astype(np.float64) if name in self.floats else array


def _as_array(value: list[Any], where: str) -> np.ndarray[Any, Any]:
    import numpy as np

    if not value:
        raise DataError(f"{where} is an empty list. Leave it out.")
    try:
        array = np.array(value)
    except ValueError as error:
        raise DataError(
            f"{where} is a list of lists of different lengths, which is no array. Pad it, or give "
            "it as one long list with an index."
        ) from error
    if array.dtype != object and (array.dtype.kind not in "US" or _all_text(value)):
        return array
    try:  # null becomes NaN
        return np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{where} is a list of different kinds of things. Give numbers."
        ) from error


def _all_text(value: Any) -> bool:
    return all(map(_all_text, value)) if isinstance(value, list) else isinstance(value, str)


def _gaps(where: str, bad: Any, *, table: bool) -> str:
    rows = bad.reshape(len(bad), -1).any(-1)
    advice = "say --missing drop to leave those rows out, or " if table else "say "
    return (
        f"{where} has missing or infinite values in {int(rows.sum())} of {len(rows)} rows; the "
        f"first is row {int(rows.argmax()) + 1}. Fill them in; or {advice}--missing keep if the "
        "model knows what to do with NaN."
    )


def described(value: Any) -> str:
    """What it is, in words."""
    if not hasattr(value, "dtype"):
        return repr(value) if not isinstance(value, dict) else "a dictionary"
    kind = {"i": "whole numbers", "f": "numbers", "b": "true or false"}[value.dtype.kind]
    return f"{' x '.join(map(str, value.shape))} {kind}"


def as_tensors(value: Any, dtype: torch.dtype, device: torch.device) -> Any:
    """Arrays as tensors: floating point in that dtype, integers and bools as they are."""
    import numpy as np
    import torch

    if isinstance(value, dict):
        return {name: as_tensors(part, dtype, device) for name, part in value.items()}
    if not isinstance(value, np.ndarray):
        return value
    tensor = torch.from_numpy(np.ascontiguousarray(value))
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
