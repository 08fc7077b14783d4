# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""``pyro-flows demo``: a model file and a data file to start from, and their fit."""

from __future__ import annotations

import argparse
from pathlib import Path

from pyro_flows.cli import folder as folders
from pyro_flows.cli.arguments import Choices, arguments_of
from pyro_flows.cli.console import DONE, Console
from pyro_flows.cli.fit import add_output, fit
from pyro_flows.cli.models import model_named
from pyro_flows.cli.options import Commands, add_command, add_messages, add_training
from pyro_flows.errors import OptionError

HELP = """
Write a small model and its data, fit them, and say what to do next.

Eight schools coached pupils for a test; each reports the effect y, in points,
and its standard error sigma (Rubin, 1981). Written the natural way, the model
is a funnel, which Gaussian guides and plain HMC have trouble with.

Writes FOLDER, schools_demo unless -o says otherwise, with

  schools.py    the model, to edit
  schools.csv   the data
  fit/          what 'pyro-flows fit' writes: the page, the table, the draws

and prints what 'pyro-flows fit' prints. Takes about half a minute. Files that
you have edited are never written over.

examples:
  pyro-flows demo --open         fit, and look at the page
  pyro-flows demo --files-only   the two files, to fit yourself
"""

MODEL = '''\
"""Eight schools: how much does coaching for a test help?"""

import pyro
import pyro.distributions as dist


def schools(sigma, y=None):
    """Effects of the schools, around a common mean mu with spread tau.

    The arguments are columns of schools.csv, by name.
    """
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)
'''

DATA = """\
school,y,sigma
A,28,15
B,8,10
C,-3,16
D,7,11
E,-1,9
F,1,11
G,18,10
H,12,18
"""


def add(commands: Commands) -> None:
    """Add ``demo`` to the program."""
    summary = "see it work, and get files to edit"
    parser = add_command(commands, "demo", summary, HELP, "[options]")
    parser.set_defaults(run=run, max_steps=None, max_gradients=None, dtype="float64")
    parser.add_argument(
        "--files-only", action="store_true", help="write the two files, and fit nothing"
    )
    add_training(parser, "default")
    add_output(parser)
    add_messages(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Write the files, fit them as the user would, and say how to go on."""
    home = args.output or Path("schools_demo")
    model, data = home / "schools.py", home / "schools.csv"
    for path, text in ((model, MODEL), (data, DATA)):
        if path.exists() and path.read_text(encoding="utf-8", errors="replace") != text:
            raise OptionError(
                f"{path} is there already, and isn't the demo's: it was edited. Fit it by "
                f"'pyro-flows fit {model}:schools --data {data}', or choose another folder by -o."
            )
    target = home / "fit"
    folders.check_free(target, "posterior")
    for path, text in ((model, MODEL), (data, DATA)):
        folders.write_text(path, text)
    console.say(f"Wrote {model} and {data}.")
    code = DONE
    if not args.files_only:
        args.model, args.data = f"{model}:schools", [data]
        with model_named(args.model) as found:
            arguments = arguments_of(found, Choices(files=args.data))
            code = fit(found, arguments, target, args, console)
    console.note(
        f"\nNow edit the model and the data, and fit them yourself:\n"
        f"  cd {home}\n"
        "  pyro-flows fit schools.py:schools --data schools.csv"
    )
    return code
