# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What the commands print: results on standard output, all else on standard error."""

from __future__ import annotations

import json
import math
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

PROGRAM = "pyro-flows"
DONE, WRONG, USAGE, NOT_RELIABLE, INTERRUPTED = 0, 1, 2, 3, 130


class Console:
    """Prints results and notes; a reader who goes away (``| head``) is no error.

    Args:
        quiet: no notes and no progress bars.
        as_json: results are one JSON object, no text.
    """

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet, self.as_json = quiet, as_json
        self._out = sys.stdout  # also while the user's own prints are sent elsewhere
        for stream in (sys.stdout, sys.stderr):  # a "±" must not end a program under LANG=C
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="replace")

    @property
    def progress(self) -> bool:
        """Whether a progress bar would be seen."""
        return not self.quiet and sys.stderr.isatty()

    def say(self, text: str = "", *, end: str = "\n") -> None:
        """Print a result for people."""
        if not self.as_json:
            self._print(text, end)

    def give(self, value: Any) -> None:
        """Print a result for programs, if that was asked for."""
        if self.as_json:
            self._print(json.dumps(plain(value), indent=1, ensure_ascii=False), "\n")

    def note(self, text: str) -> None:
        """Say on standard error what is good to know."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    def error(self, text: str) -> None:
        """Say on standard error what went wrong."""
        print(f"{PROGRAM}: error: {text}", file=sys.stderr, flush=True)

    def _print(self, text: str, end: str) -> None:
        try:
            print(text, end=end, file=self._out, flush=True)
        except BrokenPipeError:
            # What is printed from now on goes nowhere, also what Python flushes at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._out.fileno())


@contextmanager
def users_code() -> Iterator[None]:
    """Send what the user's own code prints to standard error: results stand alone."""
    with redirect_stdout(sys.stderr):
        yield


@contextmanager
def short_warnings() -> Iterator[None]:
    """Show a warning as one sentence, without the line of code that gave it."""
    with warnings.catch_warnings():
        warnings.showwarning = _show  # type: ignore[assignment]
        yield


def _show(message: Warning | str, *_: Any) -> None:
    print(f"{PROGRAM}: warning: {message}", file=sys.stderr, flush=True)


def plain(value: Any) -> Any:
    """The same for JSON: NaN and infinities are null, numpy's numbers are Python's."""
    if isinstance(value, dict):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
