# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Columns of a table as rows of numbers for a density, and columns of results to files."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_flows.cli.console import Console
from pyro_flows.cli.tables import is_text, numbers
from pyro_flows.errors import DataError, OptionError

if TYPE_CHECKING:
    import numpy as np

KINDS = (".csv", ".parquet", ".npy")
# Lines printed at a time.
BLOCK = 10_000


@dataclass(frozen=True)
class Rows:
    """Rows of numbers.

    Attributes:
        values: a data frame, or an array ``(n, columns)``, float64.
        named: whether the columns have names.
    """

    values: Any
    named: bool

    def __len__(self) -> int:
        return len(self.values)


def as_rows(table: Any, wanted: Sequence[str], path: Path) -> Rows:
    """The wanted columns of a table or an array.

    Raises:
        DataError: a column isn't there, isn't numbers, or has gaps.
    """
    import numpy as np
    import pandas as pd

    if not hasattr(table, "columns"):
        return Rows(_by_number(table, wanted, path).astype(np.float64), named=False)
    missing = [name for name in wanted if name not in table]
    if missing:
        close = difflib.get_close_matches(missing[0], list(table), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else " Rename what is meant."
        raise DataError(
            f"Expected the columns {', '.join(wanted)} in {path}, but there is no "
            f"{', '.join(map(repr, missing))} among {', '.join(table)}.{hint}"
        )
    texts = [name for name in wanted if is_text(table[name])]
    if texts:
        left = [name for name in wanted if name not in texts]
        raise DataError(
            f"{path} has columns of text, which has no density: {', '.join(texts)}. Leave them "
            f"out: --columns {','.join(left) or '...'}"
        )
    made = {}
    for name in wanted:
        where = f"Column {name!r} of {path}"
        made[name] = _without_gaps(numbers(table[name], where).astype(np.float64), where)
    return Rows(pd.DataFrame(made), named=True)


def _by_number(array: np.ndarray[Any, Any], wanted: Sequence[str], path: Path) -> Any:
    width = array.shape[1]
    index = []
    for name in wanted:
        if not name.isdigit() or int(name) >= width:
            raise DataError(
                f"Expected a column of {path} by number, 0 to {width - 1}, but got {name!r}."
            )
        index.append(int(name))
    return _without_gaps(array[:, index], str(path))


def _without_gaps(values: Any, where: str) -> Any:
    import numpy as np

    bad = ~np.isfinite(values).reshape(len(values), -1).all(-1)
    if bad.any():
        raise DataError(
            f"{where} has missing or infinite values in {int(bad.sum())} of {len(bad)} rows; the "
            f"first is row {int(bad.argmax()) + 1}. Drop those rows, or fill the values in."
        )
    return values


def check_output(path: Path | None) -> None:
    """Raise OptionError now rather than after the work, if a result can't be written there."""
    if path is None:
        return
    if path.suffix.lower() not in KINDS:
        raise OptionError(
            f"Expected -o to end in {', '.join(KINDS[:2])} or {KINDS[2]}, but got {path}."
        )
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else f"lies in {path.parent}, which doesn't exist"
        raise OptionError(f"Expected -o to name a file, but {path} {what}.")


def write_columns(path: Path | None, columns: dict[str, Any], console: Console) -> None:
    """Columns by name to a file by its kind, or as CSV to standard output."""
    import numpy as np
    import pandas as pd

    from pyro_flows.cli.folder import replacing

    if path is None:
        table = pd.DataFrame(columns)
        for start in range(0, len(table), BLOCK):
            part = table.iloc[start : start + BLOCK]
            console.say(part.to_csv(index=False, header=start == 0), end="")
        return
    with replacing(path) as draft:
        if path.suffix.lower() == ".npy":
            with draft.open("wb") as file:
                np.save(file, next(iter(columns.values())))
        elif path.suffix.lower() == ".csv":
            pd.DataFrame(columns).to_csv(draft, index=False)
        else:
            try:
                pd.DataFrame(columns).to_parquet(draft, index=False)
            except ImportError as error:
                raise DataError(
                    "Writing parquet needs pyarrow: pip install 'pyro-flows[parquet]'. Or write "
                    "CSV."
                ) from error
