# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""``pyro-flows fit``: a model and its data in, a judged posterior and its page out."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_flows.cli import folder as folders
from pyro_flows.cli.arguments import Arguments, Choices, arguments_of, signature_of
from pyro_flows.cli.console import INTERRUPTED, Console
from pyro_flows.cli.models import Model, model_named
from pyro_flows.cli.options import (
    Commands,
    add_command,
    add_json,
    add_messages,
    add_training,
    assignment,
    at_least,
    joined,
    names,
    value_of,
)
from pyro_flows.cli.results import as_json, exit_code, say_where, shown, write_all
from pyro_flows.cli.settling import settle
from pyro_flows.cli.values import as_tensors
from pyro_flows.errors import OptionError, PyroFlowsError

if TYPE_CHECKING:
    from pyro_flows.inference import Posterior

USAGE = "MODEL --data FILE [--data FILE ...] [options]"
HELP = """
Fit a Pyro model to data: find its posterior, judge it, write it down.

MODEL is FILE.py:NAME, the file with your model and the name of the function
in it, or package.module:NAME. Its code is run. Data go to the function's
arguments by name:

  .csv .tsv .parquet  a column is a vector. Whole numbers stay integers, text
                      becomes codes 0, 1, ... in the order of the alphabet,
                      and which is which is printed; dates are refused.
  .npz                an array each
  .json               {"name": value}: lists are arrays, the rest is as it is

Columns that the model doesn't take are left out, and named. All is computed
in float64, the model's own constants too, unless --dtype says otherwise.

Prints the verdict (reliable, corrected or not reliable; why; what to try),
then a table with mean, standard deviation and quantiles of every latent
value. Writes a folder, NAME_fit unless -o says otherwise, with

  report.html   the page to look at and to pass on: all in one file
  summary.csv   the table, in full
  posterior.nc  draws and all else for ArviZ
  posterior/    for Posterior.load in Python, and for 'pyro-flows report'
  fit.json      what was fitted to what

A folder of an earlier fit is written over; any other is left alone.
Ctrl-C stops training, and judges and writes the best so far (exit code 130),
beside an earlier fit if there is one.
Of a fit that isn't reliable all is written, too; the exit code is then 3.

No model at hand? 'pyro-flows demo' writes schools.py and schools.csv.

examples:
  pyro-flows fit schools.py:schools --data schools.csv
  pyro-flows fit wells.py:logistic --data wells.csv --columns X=dist,arsenic
  pyro-flows fit ode.py:model --data data.npz --set steps=50 -o ode
"""


def add(commands: Commands) -> None:
    """Add ``fit`` to the program."""
    parser = add_command(commands, "fit", "fit a Pyro model to data", HELP, USAGE)
    parser.set_defaults(run=run)
    parser.add_argument("model", metavar="MODEL", help="FILE.py:NAME or package.module:NAME")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="a file with the model's arguments; give it several times for several files",
    )
    data.add_argument(
        "--set",
        metavar="NAME=VALUE",
        type=assignment,
        action="append",
        default=[],
        help="an argument that is a plain value: a number, true, none, or text",
    )
    data.add_argument(
        "--columns",
        metavar="NAME=A,B,...",
        type=assignment,
        action="append",
        default=[],
        help="the argument NAME is the matrix (rows, columns) of these columns; of a single "
        "one ('y=height') it is the vector ('X=height,' makes a matrix)",
    )
    data.add_argument(
        "--matrix",
        metavar="NAME",
        help="the argument NAME is the matrix of all columns of numbers that no other takes",
    )
    data.add_argument(
        "--float",
        metavar="A,B,...",
        type=names,
        action="append",
        help="whole numbers that are passed as floating point all the same",
    )
    data.add_argument(
        "--missing",
        choices=("refuse", "drop", "keep"),
        default="refuse",
        help="empty fields and NaN: an error, or leave those rows of tables out, or pass NaN on "
        "(default: refuse)",
    )
    group = add_training(parser, "default")
    group.add_argument(
        "--max-steps",
        type=at_least(1),
        metavar="N",
        help="at most so many steps (default: 6000; fewer where modes seem to be missing)",
    )
    group.add_argument(
        "--max-gradients",
        type=at_least(1),
        metavar="N",
        help="at most so many gradients of the log density in search and training, for models "
        "that are slow to evaluate (default: no limit)",
    )
    group.add_argument(
        "--dtype",
        choices=("float64", "float32"),
        default="float64",
        help="of data, model and flow (default: float64)",
    )
    add_output(parser)
    add_messages(parser)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Options of what is written."""
    output = parser.add_argument_group("results")
    output.add_argument("-o", "--output", metavar="FOLDER", type=Path, help="where to write")
    output.add_argument(
        "--draws",
        type=at_least(2),
        metavar="N",
        default=4000,
        help="draws in posterior.nc (default: 4000)",
    )
    output.add_argument("--open", action="store_true", help="open the page in a browser")
    add_json(output)


def run(args: argparse.Namespace, console: Console) -> int:
    """Fit, print, write; the exit code says how it went."""
    with model_named(args.model) as model:
        target = args.output or Path(f"{model.name}_fit")
        folders.check_free(target, "posterior")
        from pyro_flows.flows import check_name

        check_name(args.flow)  # only now: the model's file may register one
        arguments = arguments_of(model, _choices(args))
        return fit(model, arguments, target, args, console)


def fit(
    model: Model, arguments: Arguments, target: Path, args: argparse.Namespace, console: Console
) -> int:
    """Fit a model to arguments, print the result, and write it to a folder."""
    import numpy as np

    size = sum(np.size(value) for value in arguments.values.values())
    with (
        folders.precision(args.dtype, args.device) as (dtype, device),
        folders.threads(args.threads, size),
    ):
        values = as_tensors(arguments.values, dtype, device)
        settled = [f"  {line}" for line in settle(model.function, values)]
        head = f"Fitting {model.name}{signature_of(model.function)}"
        for line in [head, *arguments.notes(), *settled]:
            console.note(line)
        posterior = _posterior(model, values, args, console)
        if posterior.report.interrupted:
            if not posterior.report.steps:
                console.error("interrupted before training began; nothing was written.")
                return INTERRUPTED
            target = folders.for_interrupted(target)
        console.say(str(posterior))
        console.say(shown(posterior.summary()))
        facts = {
            "model": args.model,
            "data": [str(path) for path in args.data],
            "arguments": arguments.sources,
            "categories": arguments.categories,
            "dtype": args.dtype,
            "seed": args.seed,
        }
        made = write_all(posterior, target, console, draws=args.draws, facts=facts)
    say_where(target, made, console, show=args.open)
    code = exit_code(posterior, made)
    console.give(as_json(posterior, target, made, code))
    return code


def _choices(args: argparse.Namespace) -> Choices:
    columns = _once("--columns", args.columns)
    return Choices(
        files=args.data,
        columns={name: _parts(name, text) for name, text in columns.items()},
        matrix=args.matrix,
        values={name: value_of(text) for name, text in _once("--set", args.set).items()},
        floats=joined(args.float),
        missing=args.missing,
    )


def _parts(argument: str, text: str) -> list[str]:
    """Names of columns; a comma at the end leaves an empty one, which makes a matrix."""
    parts = [part.strip() for part in text.split(",")]
    if "" in parts[:-1] or parts == [""]:
        raise OptionError(
            f"Expected --columns {argument}=A,B,... with names of columns, but got {text!r}."
        )
    return parts


def _once(option: str, pairs: list[tuple[str, str]]) -> dict[str, str]:
    given = dict(pairs)
    if len(given) < len(pairs):
        raise OptionError(f"{option} gives an argument twice. Say it once.")
    return given


def _posterior(
    model: Model, values: dict[str, Any], args: argparse.Namespace, console: Console
) -> Posterior:
    from pyro_flows.inference import FlowVI

    budgets = {"max_steps": args.max_steps, "max_gradients": args.max_gradients}
    vi = FlowVI(
        model.function,
        flow=args.flow,
        seed=args.seed,
        num_steps=args.num_steps,
        checkpoint=args.checkpoint,
        progress=console.progress,
        **budgets,
    )
    try:
        return vi.run(**values)
    except PyroFlowsError:
        raise
    except Exception as error:
        whole = [name for name, value in values.items() if _is_whole(value)]
        if whole and isinstance(error, (RuntimeError, TypeError)):
            error.args = (
                f"{error}\nThe integers among the arguments ({', '.join(whole)}) were passed as "
                "such; where the model wants floating point, say --float NAME.",
            )
        raise


def _is_whole(value: Any) -> bool:
    dtype = getattr(value, "dtype", None)
    return dtype is not None and not dtype.is_floating_point
