# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""``pyro-flows density``: its commands and what they teach."""

from __future__ import annotations

from pathlib import Path

from pyro_flows.cli.density_runs import fit, sample, score
from pyro_flows.cli.options import (
    Commands,
    add_command,
    add_json,
    add_messages,
    add_training,
    assignment,
    at_least,
    names,
    positive,
)

HELP = """
The density of rows of data: how likely each is, and more like them.

examples:
  pyro-flows density fit rides.csv
  pyro-flows density score rides_density new.csv -o scores.csv
  pyro-flows density sample rides_density -n 1000 -o more.csv
"""

FIT = """
Fit a density to the rows of DATA (.csv, .tsv, .parquet or .npy).

All columns are taken unless --columns says which; they must hold numbers that
vary continuously. With --context-columns it is the density of the other
columns given those. A tenth of the rows is held out to know when to stop.

Prints the mean log density of the rows held out, in nats. Writes a folder,
DATA's name with _density unless -o says otherwise, with

  density/      for FlowDensity.load in Python, 'score' and 'sample'
  density.png   rows held out against draws
  fit.json      what was fitted to what

A folder of an earlier fit is written over; any other is left alone. It holds
up to 1,000 of the rows: mind that if they are confidential. Ctrl-C stops
training, and writes the best so far (exit code 130), beside an earlier fit if
there is one.

examples:
  pyro-flows density fit rides.csv --support fare=positive
  pyro-flows density fit homes.csv --columns price --context-columns area,rooms
  pyro-flows density fit x.npy --flow maf --max-seconds 300
"""

SCORE = """
The log density of each row of DATA, in nats, in the units of the data.

FOLDER is what 'density fit' wrote, or FlowDensity.save in Python. Columns are
found by name, in any order; those it wasn't fitted to are left out. Outside
the support the log density is -inf.

Prints CSV with a column log_density, a line for each row in order, and a
summary on standard error; with -o FILE (.csv, .parquet or .npy) the column
goes there, and the summary is printed.

examples:
  pyro-flows density score rides_density new.csv | head
  pyro-flows density score rides_density new.csv -o scores.csv
"""

SAMPLE = """
Draw rows from a density.

FOLDER is what 'density fit' wrote, or FlowDensity.save in Python. If it was
fitted with a context, --context FILE gives rows of context, and -n rows are
drawn for each; the context is repeated beside them.

Prints CSV; with -o FILE (.csv, .parquet or .npy) the rows go there. The same
seed gives the same rows.

examples:
  pyro-flows density sample rides_density -n 1000 -o more.csv
  pyro-flows density sample homes_density -n 50 --context area.csv
"""


def add(commands: Commands) -> None:
    """Add ``density`` and its three commands to the program."""
    parser = add_command(commands, "density", "fit, score and sample densities", HELP)
    own = parser.add_subparsers(metavar="COMMAND", title="commands", required=True)
    _add_fit(own)
    _add_score(own)
    _add_sample(own)


def _add_fit(own: Commands) -> None:
    parser = add_command(own, "fit", "fit a density to rows", FIT, "DATA [options]")
    parser.set_defaults(run=fit)
    parser.add_argument("data", metavar="DATA", type=Path, help="the rows")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--columns",
        metavar="A,B,...",
        type=names,
        action="append",
        help="columns to take, by name (of .npy by number, from 0)",
    )
    data.add_argument(
        "--context-columns",
        metavar="A,B,...",
        type=names,
        action="append",
        help="columns that are given: fit the density of the others given these",
    )
    data.add_argument(
        "--support",
        metavar="[COLUMN=]BOUNDS",
        action="append",
        default=[],
        help="what is known of the columns' bounds: positive, negative, unit, or LOW,HIGH where "
        "either may be empty; of all columns, or of one",
    )
    group = add_training(parser, "nsf")
    group.add_argument(
        "--flow-option",
        metavar="NAME=VALUE",
        type=assignment,
        action="append",
        default=[],
        help="an option of the flow; 'pyro-flows flows NAME' lists them",
    )
    group.add_argument(
        "--max-epochs",
        type=at_least(1),
        metavar="N",
        default=1000,
        help="at most so many passes over the data (default: 1000)",
    )
    group.add_argument(
        "--max-seconds",
        type=positive,
        metavar="SECONDS",
        help="stop after so long; the result then depends on the machine (default: no limit)",
    )
    group.add_argument(
        "--dtype",
        choices=("float64", "float32"),
        default="float32",
        help="of the flow (default: float32)",
    )
    output = parser.add_argument_group("results")
    output.add_argument("-o", "--output", metavar="FOLDER", type=Path, help="where to write")
    add_json(output)
    add_messages(parser)


def _add_score(own: Commands) -> None:
    parser = add_command(own, "score", "the log density of rows", SCORE)
    parser.set_defaults(run=score)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the folder of a fit")
    parser.add_argument("data", metavar="DATA", type=Path, help="the rows")
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="where to write")
    add_json(parser)
    add_messages(parser)


def _add_sample(own: Commands) -> None:
    parser = add_command(own, "sample", "draw rows", SAMPLE)
    parser.set_defaults(run=sample)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the folder of a fit")
    parser.add_argument(
        "-n", type=at_least(1), default=1000, metavar="N", help="how many (default: 1000)"
    )
    parser.add_argument("--context", metavar="FILE", type=Path, help="rows of context")
    parser.add_argument(
        "--seed", type=at_least(0), metavar="SEED", help="of the draws (default: that of the fit)"
    )
    parser.add_argument("-o", "--output", metavar="FILE", type=Path, help="where to write")
    add_messages(parser)
