# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""``pyro-flows flows``: the registered architectures, and what each costs and takes."""

from __future__ import annotations

import argparse
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from pyro_flows.cli.console import DONE, Console
from pyro_flows.cli.options import Commands, add_command, add_json, add_messages

HELP = """
List the flows that --flow takes, or say what there is to know of one.

Without a name: a line for each, those of installed plugins too. With a name:
the cost of scoring and of sampling, whether it takes a context, the paper,
and its options with their defaults ('pyro-flows density fit --flow-option').

examples:
  pyro-flows flows
  pyro-flows flows nsf
"""


def add(commands: Commands) -> None:
    """Add ``flows`` to the program."""
    parser = add_command(commands, "flows", "list the flows there are", HELP)
    parser.set_defaults(run=run)
    parser.add_argument("name", metavar="NAME", nargs="?", help="one of them, in full")
    add_json(parser)
    add_messages(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Print the list, or the facts of one."""
    from pyro_flows.flows import available, facts
    from pyro_flows.flows.registry import constructor_of

    if args.name is None:
        found = available()
        width = max(map(len, found))
        for name, summary in found.items():
            console.say(f"{name:<{width}}  {summary}")
        console.give(found)
        return DONE
    stated, constructor = facts(args.name), constructor_of(args.name)
    options = _options(constructor)
    console.say(str(stated))
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    console.say(
        textwrap.fill(
            f"options: {given or 'none'}",
            width=79,
            initial_indent="  ",
            subsequent_indent="    ",
            break_on_hyphens=False,
        )
    )
    console.give({**asdict(stated), "options": {k: str(v) for k, v in options.items()}})
    return DONE


def _options(constructor: Callable[..., Any]) -> dict[str, Any]:
    """The constructor's options with their defaults; the sizes are no options."""
    parameters = list(inspect.signature(constructor).parameters.values())[2:]
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return {p.name: p.default for p in parameters if p.kind not in kinds}
