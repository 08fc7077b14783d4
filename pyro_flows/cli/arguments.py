# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Columns, arrays and words become the arguments of a model, by name."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_flows.cli.models import Model
from pyro_flows.cli.tables import is_text, read_named
from pyro_flows.cli.values import Reader, described
from pyro_flows.errors import DataError, OptionError

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

BY_NAME = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


@dataclass
class Choices:
    """What the command line says of the arguments.

    Attributes:
        files: the data.
        columns: argument to the columns that make it; one is a vector, several a matrix.
        matrix: the argument that takes all other columns of numbers.
        values: argument to a plain value.
        floats: names that are passed as floating point though they are whole numbers.
        missing: "refuse", "drop" the rows, or "keep" NaN.
    """

    files: Sequence[Path] = ()
    columns: dict[str, list[str]] = field(default_factory=dict)
    matrix: str | None = None
    values: dict[str, Any] = field(default_factory=dict)
    floats: Sequence[str] = ()
    missing: str = "refuse"


@dataclass
class Arguments:
    """A model's arguments, and what is to say about them.

    Attributes:
        values: by name, arrays of numpy and plain values.
        sources: by name, where each comes from, in words.
        categories: by name, the texts that codes 0, 1, ... stand for.
        unused: names in the data that the model doesn't take.
        defaults: arguments left at their default, in words.
        dropped: rows left out because something was missing, by file.
    """

    values: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    categories: dict[str, list[str]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    defaults: list[str] = field(default_factory=list)
    dropped: dict[str, int] = field(default_factory=dict)

    def notes(self) -> list[str]:
        """What the user should know of them, a line each."""
        lines = [f"  {name}: {source}" for name, source in self.sources.items()]
        for name, texts in self.categories.items():
            shown = ", ".join(f"{code} = {text}" for code, text in enumerate(texts[:8]))
            more = f", ... up to {len(texts) - 1}" if len(texts) > 8 else ""
            lines.append(f"  {name} holds text; its codes are {shown}{more}")
        if self.unused:
            lines.append(f"  not used: {', '.join(self.unused)}")
        lines += [f"  not in the data: {text}" for text in self.defaults]
        lines += [
            f"  {file}: left out {count} rows with missing values"
            for file, count in self.dropped.items()
        ]
        return lines


def arguments_of(model: Model, choices: Choices) -> Arguments:
    """The arguments that the data and the command line give a model.

    Raises:
        DataError: a column is missing, or can't be used.
        OptionError: an option names what isn't there.
    """
    return _Binding(model, choices).bound()


def signature_of(function: Callable[..., Any]) -> inspect.Signature:
    """The signature of what is called in the end: of a module, its ``forward``."""
    return inspect.signature(getattr(function, "forward", function))


class _Binding:
    def __init__(self, model: Model, choices: Choices) -> None:
        self.choices = choices
        self.reader = Reader(choices.floats, keep_gaps=choices.missing == "keep")
        self.found = Arguments(categories=self.reader.categories)
        self.name, self.signature = model.name, signature_of(model.function)
        self.parameters = self.signature.parameters.values()
        self.takes_all = any(p.kind is Parameter.VAR_KEYWORD for p in self.parameters)
        # Name to where it is: a table with its file, or a value with its file.
        self.tables: dict[str, pd.DataFrame] = {}
        self.columns: dict[str, str] = {}
        self.plain: dict[str, tuple[Any, str]] = {}
        for path in choices.files:
            self._read(path)

    def _read(self, path: Path) -> None:
        file, data = str(path), read_named(path)
        for name in data:
            if name in self.columns or name in self.plain:
                other = self.columns.get(name) or self.plain[name][1]
                raise DataError(
                    f"{name!r} is in {other} and in {file}. Rename one of them, or leave it out."
                )
        if isinstance(data, dict):
            self.plain.update({name: (value, file) for name, value in data.items()})
        else:
            self.tables[file] = data
            self.columns.update(dict.fromkeys(data.columns, file))

    def bound(self) -> Arguments:
        self._check_options()
        self._drop_rows()
        chosen = self.choices
        for parameter in self.parameters:
            name = parameter.name
            if parameter.kind in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL):
                continue
            if parameter.kind is Parameter.POSITIONAL_ONLY:
                raise DataError(
                    f"{self._call()} takes {name!r} by position only. Take the '/' out of its "
                    "definition, so that it can be given by name."
                )
            if self._give(name):
                continue
            if parameter.default is Parameter.empty:
                raise DataError(self._missing(name))
            self.found.defaults.append(_default(parameter))
        if self.takes_all:
            matrix = [chosen.matrix] if chosen.matrix else []
            for name in [*chosen.values, *chosen.columns, *matrix, *self.columns, *self.plain]:
                if name not in self.found.values and name not in self._taken():
                    self._give(name)
        used = {*self.found.values, *self._taken(), *self._rest()}
        self.found.unused = [n for n in [*self.columns, *self.plain] if n not in used]
        return self.found

    def _give(self, name: str) -> bool:
        """Give the model the argument of that name, if there is any."""
        chosen = self.choices
        if name in chosen.values:
            value, source = chosen.values[name], "--set"
        elif name in chosen.columns:
            wanted = chosen.columns[name]
            value, source = self._stacked(name, wanted), f"columns {', '.join(wanted)}"
        elif name == chosen.matrix:
            value, source = self._stacked(name, [*self._rest(), ""]), ", ".join(self._rest())
            source = f"columns {source}"
        elif name in self.columns:
            value, source = self._column(name), self.columns[name]
        elif name in self.plain:
            value, source = self.plain[name][0], self.plain[name][1]
            value = self.reader.plain(name, value, f"{name!r} of {source}")
        else:
            return False
        self.found.values[name] = value
        self.found.sources[name] = f"{described(value)}, from {source}"
        return True

    def _column(self, name: str) -> np.ndarray[Any, Any]:
        file = self.columns[name]
        return self.reader.column(name, self.tables[file][name], f"Column {name!r} of {file}")

    def _stacked(self, argument: str, columns: list[str]) -> np.ndarray[Any, Any]:
        """A column by another name, or a matrix of several, always floating point."""
        import numpy as np

        names = [name for name in columns if name]
        if len(columns) == 1:
            values = self._column(names[0])
            if names[0] in self.reader.categories:
                self.reader.categories[argument] = self.reader.categories.pop(names[0])
            return values.astype(np.float64) if argument in self.choices.floats else values
        texts = [n for n in names if is_text(self.tables[self.columns[n]][n])]
        if texts:
            raise DataError(
                f"The matrix {argument!r} can't hold the text of {', '.join(map(repr, texts))}. "
                "Leave it out, or give it as an argument of its own, where it becomes codes."
            )
        parts = [self._column(name) for name in names]
        lengths = {len(part) for part in parts}
        if len(lengths) > 1:
            raise DataError(
                f"The columns of {argument!r} have {' and '.join(map(str, sorted(lengths)))} "
                "rows. Stack columns of one table."
            )
        return np.stack(parts, axis=-1).astype(np.float64)

    def _check_options(self) -> None:
        """Raise if an option names an argument or a column that isn't there, or names it twice."""
        chosen = self.choices
        options = {
            "--set": list(chosen.values),
            "--columns": list(chosen.columns),
            "--matrix": [chosen.matrix] if chosen.matrix else [],
        }
        given: dict[str, str] = {}
        for option, arguments in options.items():
            for name in arguments:
                if name in given:
                    raise OptionError(
                        f"{name!r} is given by {given[name]} and {option}. Say it once."
                    )
                given[name] = option
                if not self.takes_all and name not in self._names():
                    raise OptionError(
                        f"{option} names {name!r}, but the model is {self._call()}."
                        f"{_close(name, self._names())}"
                    )
        clash = [n for n in chosen.values if n in self.columns or n in self.plain]
        if clash:
            raise OptionError(f"{clash[0]!r} is given by --set and in the data. Say it once.")
        for argument, columns in chosen.columns.items():
            for name in columns:
                if name and name not in self.columns:
                    raise OptionError(
                        f"--columns {argument}=... names the column {name!r}, but the tables have "
                        f"{', '.join(self.columns) or 'none'}.{_close(name, list(self.columns))}"
                    )
        if chosen.matrix and not self._rest():
            raise OptionError(
                f"--matrix {chosen.matrix} takes the columns of numbers that are left, but there "
                "are none. Give a table by --data."
            )
        known = {*self._names(), *self.columns, *self.plain}
        for name in chosen.floats:
            if name not in known:
                raise OptionError(
                    f"--float names {name!r}, which isn't there.{_close(name, list(known))}"
                )

    def _drop_rows(self) -> None:
        if self.choices.missing != "drop":
            return
        used = {*self._names(), *self._taken(), *self._rest()}
        for file, table in self.tables.items():
            columns = [name for name in table if self.takes_all or name in used]
            kept = table.dropna(subset=columns)
            if not len(kept):
                raise DataError(f"No row of {file} is complete in {', '.join(columns)}.")
            if len(kept) < len(table):
                self.found.dropped[file] = len(table) - len(kept)
                self.tables[file] = kept

    def _names(self) -> list[str]:
        return [p.name for p in self.parameters if p.kind in BY_NAME]

    def _taken(self) -> set[str]:
        """Columns that --columns names."""
        return {name for columns in self.choices.columns.values() for name in columns}

    def _rest(self) -> list[str]:
        """Columns of numbers that --matrix takes: those that no other argument does."""
        if not self.choices.matrix:
            return []
        busy = {*self._names(), *self._taken()} - {self.choices.matrix}
        return [
            name
            for name, file in self.columns.items()
            if name not in busy and not is_text(self.tables[file][name])
        ]

    def _call(self) -> str:
        return f"{self.name}{self.signature}"

    def _missing(self, name: str) -> str:
        here = [*self.columns, *self.plain]
        if not here:
            return (
                f"The model is {self._call()}, and nothing gives it {name!r}. Give data by --data "
                f"FILE, or a value by --set {name}=..."
            )
        text = (
            f"The model is {self._call()}, but the data has no {name!r}; it has "
            f"{', '.join(here)}.{_close(name, here)}"
        )
        if not self.columns:
            return f"{text} Rename it in the data, or say --set {name}=..."
        return (
            f"{text} Say --columns {name}=COLUMN (a vector), --columns {name}=A,B,... (a matrix "
            f"of those columns), or --matrix {name} (a matrix of all columns of numbers)."
        )


def _default(parameter: Parameter) -> str:
    text = f"{parameter.name} = {parameter.default!r}, its default"
    if parameter.default is None:
        text += " (a site that it would be observed at is inferred instead)"
    return text


def _close(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
