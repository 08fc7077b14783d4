# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The user's model: found by file and name, and blamed where it is to blame."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import linecache
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from pyro_flows.cli.console import users_code
from pyro_flows.errors import ModelError, PyroFlowsError

EXPECTED = "Expected the model as FILE.py:NAME or package.module:NAME"
# Errors of torch and Pyro show a wrong value with the whole tensor it stands in.
TENSOR = re.compile(r"tensor\(\[[^()]*\)")
SHOWN = 200


@dataclass(frozen=True)
class Model:
    """A model that was found.

    Attributes:
        function: the callable.
        name: what it is called.
        file: where it is written.
    """

    function: Callable[..., Any]
    name: str
    file: str


@contextmanager
def model_named(text: str) -> Iterator[Model]:
    """Load ``FILE.py:NAME`` or ``package.module:NAME``; errors of its code say where inside.

    The file's folder (for a package: the current one) comes first among the places that imports
    look in while the file is loaded, and last from then on, up to the end of the block.

    Raises:
        ModelError: there is no such file or name, or its code fails.
    """
    where, name = _parts(text)
    by_path = where.endswith(".py") or "/" in where or "\\" in where
    folder = str(Path(where).resolve().parent if by_path else Path.cwd())
    sys.path.insert(0, folder)
    try:
        with users_code(), _blamed(where):
            module = _from_path(Path(where)) if by_path else _imported(where)
    finally:
        sys.path.remove(folder)
    function = _found(module, name, where)
    file = getattr(module, "__file__", None) or where
    sys.path.append(folder)
    try:
        with users_code(), _blamed(file):
            yield Model(function, name.rpartition(".")[2], file)
    finally:
        sys.path.remove(folder)


def _parts(text: str) -> tuple[str, str]:
    where, mark, name = text.rpartition(":")
    if mark and where and name and not set(name) & set("/\\"):
        return where, name
    where = text.rstrip(":") or "my_model.py"
    functions = _functions(Path(where))
    there = f" It defines {', '.join(functions)}." if functions else ""
    raise ModelError(
        f"{EXPECTED}, but got {text!r}.{there} Say which function it is, as in "
        f"{where}:{functions[-1] if functions else 'model'}."
    )


def _functions(path: Path) -> list[str]:
    """Functions that a file defines, read without running it."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    return [part.name for part in tree.body if isinstance(part, ast.FunctionDef)]


def _from_path(path: Path) -> ModuleType:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "doesn't exist"
        raise ModelError(
            f"{EXPECTED}, but the file {path} {what}. The path counts from {Path.cwd()}."
        )
    # A name of its own: a user's statistics.py must not stand in for Python's.
    name = f"pyro_flows_model_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise ModelError(f"{EXPECTED}, but {path} doesn't end in .py. Rename it.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # where dataclasses and pickle look for it
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # it is there, and imports something that isn't
        raise ModelError(
            f"{EXPECTED}, but there is no module {name!r}. For a file say {name}.py:NAME; a "
            f"package must be installed, or lie in {Path.cwd()}."
        ) from None


def _found(module: ModuleType, name: str, where: str) -> Callable[..., Any]:
    thing: Any = module
    for part in name.split("."):
        if not hasattr(thing, part):
            here = _candidates(module)
            close = difflib.get_close_matches(name, here, n=1)
            hint = f" Did you mean {where}:{close[0]}?" if close else ""
            raise ModelError(
                f"Expected a model {name!r} in {where}, but it has "
                f"{', '.join(here) or 'no function'}.{hint or ' Say one that is there.'}"
            )
        thing = getattr(thing, part)
    expected = f"Expected {where}:{name} to be a function that calls pyro.sample"
    if isinstance(thing, type):
        raise ModelError(
            f"{expected}, but it is a class. Make an object of it in the file (model = "
            f"{name}(...)), and name that."
        )
    if not callable(thing):
        raise ModelError(f"{expected}, but it is of type {type(thing).__name__}. Name a function.")
    function: Callable[..., Any] = thing
    return function


def _candidates(module: ModuleType) -> list[str]:
    """What could be a model: callables that the module makes itself."""
    return [
        name
        for name, value in vars(module).items()
        if callable(value)
        and not isinstance(value, type)
        and not name.startswith("_")
        and getattr(value, "__module__", None) in (module.__name__, None)
    ]


@contextmanager
def _blamed(file: str) -> Iterator[None]:
    """Turn errors that come out of the user's file into sentences with the line."""
    try:
        yield
    except PyroFlowsError:
        raise
    except SystemExit as error:
        raise ModelError(
            f"{file} ends the program while it is loaded (SystemExit). Put what runs it under "
            'if __name__ == "__main__":'
        ) from error
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        raise ModelError(
            f"{error.filename or file}{line}: {error.msg}. Mend that line."
        ) from error
    except Exception as error:
        place = _place(error, file)
        if place is None:
            raise
        text = f"{type(error).__name__}: {_brief(error)}".rstrip(": ")
        raise ModelError(f"The model's code raised {text}\n  {place}") from error


def _brief(error: Exception) -> str:
    """What an error says, without the rest of a long tensor."""

    def cut(match: re.Match[str]) -> str:
        text = match[0]
        return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."

    return TENSOR.sub(cut, str(error))


def _place(error: BaseException, file: str) -> str | None:
    """The last line of the file that the error came through, in words."""
    path = str(Path(file).resolve())
    frames = [
        (frame.f_code.co_name, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if frame.f_code.co_filename == path
    ]
    if not frames:
        return None
    name, line = frames[-1]
    where = "" if name == "<module>" else f", in {name}"
    code = linecache.getline(path, line).strip()
    return f"at {Path(file).name}, line {line}{where}: {code}"
