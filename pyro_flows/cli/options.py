# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Options that several commands share, and how their words are read."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Commands = Any  # what argparse's add_subparsers returns has no public name


def add_command(
    commands: Commands, name: str, summary: str, text: str, usage: str | None = None
) -> argparse.ArgumentParser:
    """A command with its help: ``text`` up to a line "examples:", then options, then the rest.

    ``usage`` is what follows the command's name, where all options in a row would say too much.
    """
    description, mark, examples = text.strip("\n").partition("examples:\n")
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        usage=None if usage is None else f"%(prog)s {usage}",
        description=description,
        epilog=mark + examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


def add_messages(parser: argparse.ArgumentParser) -> None:
    """Options that every command has, after its own."""
    group = parser.add_argument_group("messages")
    group.add_argument("-q", "--quiet", action="store_true", help="no progress bar, no notes")
    group.add_argument(
        "--traceback",
        action="store_true",
        help="show where in the code an error happened; PYRO_FLOWS_TRACEBACK=1 does, too",
    )


def add_json(parser: Any) -> None:
    """``--json``."""
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object in place of the text"
    )


def add_training(parser: argparse.ArgumentParser, flow: str) -> Any:
    """Options of every training: flow, seed, steps, device. Returns their group, for more."""
    group = parser.add_argument_group("training")
    group.add_argument(
        "--flow",
        metavar="NAME",
        default=flow,
        help=f"a registered flow; 'pyro-flows flows' lists them (default: {flow})",
    )
    group.add_argument(
        "--seed", type=at_least(0), default=0, help="of all random numbers (default: 0)"
    )
    group.add_argument(
        "--num-steps",
        type=at_least(1),
        metavar="N",
        help="exactly so many steps (default: until there is no more gain)",
    )
    group.add_argument(
        "--device", metavar="DEVICE", help="such as cuda, cuda:1 or mps (default: cpu)"
    )
    group.add_argument(
        "--threads",
        type=at_least(1),
        metavar="N",
        help="of the processor (default: all for 100,000 numbers and more; 1 for fewer, which is "
        "about as fast, and many times as fast where other programs are busy)",
    )
    group.add_argument(
        "--checkpoint",
        metavar="FOLDER",
        type=Path,
        help="keep there what an interrupted run needs: the same command then goes on from there; "
        "a run that ends removes it",
    )
    return group


def at_least(least: int) -> Callable[[str], int]:
    """A reader of integers that are not smaller."""

    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"expected an integer >= {least}, but got {text!r}")
        return value

    return integer


def positive(text: str) -> float:
    """A reader of numbers above zero."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number > 0, but got {text!r}")
    return value


def assignment(text: str) -> tuple[str, str]:
    """A reader of ``name=value``."""
    name, mark, value = text.partition("=")
    if not mark or not name.strip():
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE, but got {text!r}")
    return name.strip(), value


def names(text: str) -> list[str]:
    """A reader of ``a,b,c``."""
    found = [name.strip() for name in text.split(",") if name.strip()]
    if not found:
        raise argparse.ArgumentTypeError(f"expected names with commas between, but got {text!r}")
    return found


def joined(lists: Sequence[list[str]] | None) -> list[str]:
    """All names of an option that may be given several times."""
    return [name for part in lists or () for name in part]


def value_of(text: str) -> Any:
    """What a word stands for: 3, 2.5, true, none, [1, 2], and else itself."""
    known = {"true": True, "false": False, "none": None, "null": None}
    if text.strip().lower() in known:
        return known[text.strip().lower()]
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return text
