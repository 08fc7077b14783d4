# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Files of data as named columns and arrays; what can't be read right is refused."""

from __future__ import annotations

import csv
import json
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_flows.errors import DataError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

TEXT = (".csv", ".tsv", ".txt")
SEPARATORS = ",;\t|"
DATE = re.compile(r"\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}")
COMMA = re.compile(r"[-+]?\d*,\d+(e[-+]?\d+)?", re.IGNORECASE)


def read_named(path: Path) -> pd.DataFrame | dict[str, Any]:
    """Data with names: a table of columns, or a dictionary of arrays and values.

    Raises:
        DataError: it can't be read, or holds no names.
    """
    suffix = _existing(path)
    if suffix in (*TEXT, ".parquet"):
        return read_table(path)
    if suffix == ".npz":
        return _read_npz(path)
    if suffix == ".json":
        return _read_json(path)
    if suffix == ".npy":
        raise DataError(
            f"{path} holds one array without a name, but a model's arguments go by name. Save "
            f'it with one: numpy.savez("{path.stem}.npz", x=array).'
        )
    raise DataError(
        f"Expected data as .csv, .tsv, .parquet, .npz or .json, but got {path}. Convert it to one "
        "of these."
    )


def read_rows(path: Path) -> pd.DataFrame | np.ndarray[Any, Any]:
    """Rows of data: a table with names, or an array without.

    Raises:
        DataError: it can't be read as rows.
    """
    suffix = _existing(path)
    if suffix in (*TEXT, ".parquet"):
        return read_table(path)
    if suffix != ".npy":
        raise DataError(
            f"Expected rows as .csv, .tsv, .parquet or .npy, but got {path}. Convert it to one of "
            "these."
        )
    array = _load_numpy(path)
    if not hasattr(array, "dtype") or array.ndim != 2 or array.dtype.kind not in "fiub":
        found = f"{array.dtype} of shape {array.shape}" if hasattr(array, "dtype") else "several"
        raise DataError(
            f"Expected {path} to hold one array of numbers of shape (rows, columns), but got "
            f"{found}. Reshape it: a single column is array.reshape(-1, 1)."
        )
    return array


def read_table(path: Path) -> pd.DataFrame:
    """A table with named columns, of pandas' nullable types: what is missing stays apart."""
    import pandas as pd

    if _existing(path) == ".parquet":
        try:
            table = pd.read_parquet(path, dtype_backend="numpy_nullable")
        except ImportError as error:
            raise DataError(
                "Reading parquet needs pyarrow: pip install 'pyro-flows[parquet]'. Or convert "
                f"{path} to CSV."
            ) from error
        except Exception as error:  # what isn't parquet can fail in any way
            raise DataError(f"{path} can't be read as parquet ({_first_line(error)}).") from error
        table = table.reset_index(drop=True)
        table.columns = [str(name) for name in table.columns]
    else:
        separator, header = _head(path)
        _check_header(path, header)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")  # rows longer than the header lose data otherwise
                table = pd.read_csv(
                    path,
                    sep=separator,
                    index_col=False,
                    skipinitialspace=True,
                    dtype_backend="numpy_nullable",
                    encoding="utf-8-sig",
                    low_memory=False,
                )
            table.columns = header
        except Exception as error:  # by kind of damage, and pandas' version
            raise DataError(
                f"{path} can't be read as a table of the columns {', '.join(header)} "
                f"({_first_line(error)}). Every line must have as many fields as the first."
            ) from error
    if not len(table):
        raise DataError(f"{path} has the columns {', '.join(table)}, but no rows. Fill it in.")
    return table


def _existing(path: Path) -> str:
    """The file's kind by its name, in lower case."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "doesn't exist"
        raise DataError(
            f"Expected data in {path}, but it {what}. The path counts from {Path.cwd()}."
        )
    if not path.stat().st_size:
        raise DataError(f"Expected data in {path}, but it is empty. Check what wrote it.")
    return path.suffix.lower()


def _head(path: Path) -> tuple[str, list[str]]:
    """The separator and the names of the columns, from the first line."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [line for line in file if line.strip()]  # the whole file must be text
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} isn't text in UTF-8 (it has the byte {error.object[error.start]:#04x}). "
            f"Save it as UTF-8; in spreadsheets 'CSV UTF-8'."
        ) from error
    if not lines or "\0" in lines[0]:
        what = "a binary file" if lines else "empty"
        raise DataError(f"Expected text in {path}, but it is {what}. Export it as CSV.")
    first = lines[0]
    separator = max(SEPARATORS, key=first.count)
    words = len(first.split())
    if separator not in first and words > 1 and all(len(x.split()) == words for x in lines[:9]):
        return r"\s+", first.split()
    fields = next(csv.reader([first], delimiter=separator, skipinitialspace=True), [])
    return separator, [name.strip() for name in fields]


def _check_header(path: Path, header: list[str]) -> None:
    if not any(header):
        raise DataError(f"{path} has no names of columns in its first line. Write them there.")
    if all(_is_number(name) for name in header):
        raise DataError(
            f"Expected names of columns in the first line of {path}, but got numbers: "
            f"{', '.join(header[:5])}. Write a line of names above them."
        )
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(
            f"{path} has several columns called {', '.join(map(repr, twice))}. Give each a name "
            "of its own."
        )


def _read_npz(path: Path) -> dict[str, Any]:
    arrays = _load_numpy(path)
    if not isinstance(arrays, dict):
        raise DataError(f"{path} is named .npz, but holds one array. Save it by numpy.savez.")
    if not arrays:
        raise DataError(f"{path} holds no arrays. Check what wrote it.")
    return arrays


def _load_numpy(path: Path) -> Any:
    """An array, or a dictionary of them; nothing pickled."""
    import numpy as np

    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if hasattr(loaded, "files"):
                return {name: loaded[name] for name in loaded.files}
            return loaded
    except Exception as error:  # what isn't numpy's can fail in any way
        raise DataError(
            f"{path} can't be read as numbers of numpy ({_first_line(error)}). Pickled "
            "objects are not read: save plain arrays."
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} isn't JSON ({_first_line(error)}). Mend it there.") from error
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else repr(value)[:40]
        raise DataError(
            f'Expected {path} to hold names and values, {{"y": [1.5, 2.5]}}, but got {kind}. '
            "Put a name to each."
        )
    return value


def numbers(column: pd.Series, where: str) -> np.ndarray[Any, Any]:
    """A column's numbers as int64, float64 or bool, missing ones NaN.

    Raises:
        DataError: it isn't a column of numbers; says why not.
    """
    import numpy as np
    import pandas as pd

    kind = pd.api.types
    if kind.is_datetime64_any_dtype(column) or kind.is_timedelta64_dtype(column):
        raise DataError(_dates(where))
    if not (kind.is_numeric_dtype(column) or kind.is_bool_dtype(column)):
        raise DataError(f"{where} holds text, but numbers were expected. Leave it out.")
    if kind.is_complex_dtype(column):
        raise DataError(f"{where} holds complex numbers. Give real and imaginary parts apart.")
    if column.isna().any():
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    if kind.is_bool_dtype(column):
        return column.to_numpy(dtype=np.bool_)
    if kind.is_integer_dtype(column):
        if int(column.max()) > np.iinfo(np.int64).max:
            raise DataError(f"{where} holds integers that 64 bits can't. Are they identifiers?")
        return column.to_numpy(dtype=np.int64)
    return column.to_numpy(dtype=np.float64)


def is_text(column: pd.Series) -> bool:
    """Whether a column holds neither numbers nor times."""
    from pandas.api import types

    return not (
        types.is_numeric_dtype(column)
        or types.is_bool_dtype(column)
        or types.is_datetime64_any_dtype(column)
        or types.is_timedelta64_dtype(column)
    )


def codes(column: pd.Series, where: str) -> tuple[np.ndarray[Any, Any], list[str]]:
    """A column of text as integers, and the categories in order: code 0, 1, ...

    Raises:
        DataError: it holds dates, or numbers written in a way that isn't read as such.
    """
    import numpy as np

    texts = column.dropna()
    if not all(isinstance(value, str) for value in texts):
        raise DataError(f"{where} holds neither numbers nor text. Leave it out, or convert it.")
    trouble = _no_categories(texts, where)
    if trouble:
        raise DataError(trouble)
    categories = sorted(set(texts))
    position = {category: code for code, category in enumerate(categories)}
    return np.array([position.get(value, -1) for value in column], dtype=np.int64), categories


def _no_categories(texts: pd.Series, where: str) -> str | None:
    """Why a column of text should not be read as categories; None if it may be."""
    values = list(texts)
    if values and all(DATE.match(value) for value in values):
        return _dates(where)
    comma = next((value for value in values if COMMA.fullmatch(value)), None)
    if comma and all(COMMA.fullmatch(value) or _is_number(value) for value in values):
        return (
            f"{where} holds numbers with a comma, such as {comma!r}. Write them with a decimal "
            "point, and thousands without a mark."
        )
    strange = [row for row, value in texts.items() if not _is_number(value)]
    if values and not strange:
        return f"{where} holds numbers written as text. Convert them to numbers."
    if len(strange) < len(values) / 2:
        return (
            f"{where} holds numbers, but text in {len(strange)} of {len(values)} rows; the first "
            f"is row {strange[0] + 1}: {texts[strange[0]]!r}. Leave the field empty where there "
            "is no number."
        )
    return None


def _dates(where: str) -> str:
    return (
        f"{where} holds dates, which no model takes. Make them numbers first, such as days since "
        "the first."
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200].rstrip(".") if lines else type(error).__name__
