# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The program: its parser, its exit codes, and errors as sentences."""

from __future__ import annotations

import argparse
import os
import traceback
from collections.abc import Sequence

from pyro_flows._version import __version__
from pyro_flows.cli import check, demo, density, fit, flows, report
from pyro_flows.cli.console import (
    INTERRUPTED,
    PROGRAM,
    USAGE,
    WRONG,
    Console,
    short_warnings,
)
from pyro_flows.errors import PyroFlowsError

TRACEBACK = "PYRO_FLOWS_TRACEBACK"

DESCRIPTION = """\
Normalizing-flow posteriors for Pyro models, and densities for rows of data.

  pyro-flows demo                                   see it work, in a minute
  pyro-flows fit model.py:model --data data.csv     the posterior of your model
  pyro-flows density fit data.csv                   the density of your rows
"""

EPILOG = f"""\
exit codes:
  0    done; of a fit: its draws are reliable, or were corrected
  1    something is wrong with the input, or failed; a sentence says what
  2    the command line can't be understood
  3    the fit ran and was written, but its verdict is "not reliable"
  130  interrupted (Ctrl-C); what was fitted so far is written, if there is any

Each command explains itself: {PROGRAM} fit --help
Results go to standard output, progress and notes to standard error.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``pyro-flows``.

    Args:
        argv: the words after the program's name; by default those of the process.

    Returns:
        The exit code: 0 done, 1 wrong input, 2 usage, 3 not reliable, 130 interrupted.

    Raises:
        SystemExit: the words can't be parsed (2), or help was asked for (0), as argparse does.

    Example:
        >>> main(["flows", "nice"])
        nice: Additive couplings, volume preserving.
        ...
        0
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return USAGE
    console = Console(quiet=args.quiet, as_json=getattr(args, "json", False))
    try:
        with short_warnings():
            code: int = args.run(args, console)
    except KeyboardInterrupt:
        console.error("interrupted.")
        return INTERRUPTED
    except Exception as error:  # whatever it is, people see a sentence
        show_all = args.traceback or os.environ.get(TRACEBACK, "0") not in ("", "0")
        if show_all:
            traceback.print_exc()
        console.error(_sentence(error, hint=not show_all))
        return WRONG
    return code


def _sentence(error: Exception, *, hint: bool) -> str:
    """What went wrong; what isn't an error of ours also says how to see where."""
    if isinstance(error, PyroFlowsError):
        return str(error)
    if isinstance(error, OSError) and error.strerror:
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}."
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return f"{text}\nSay --traceback to see where it happened." if hint else text


def build_parser() -> argparse.ArgumentParser:
    """The parser of the whole program; it imports neither torch nor Pyro."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pyro_flows {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in (demo, fit, report, density, flows, check):
        command.add(commands)
    return parser
