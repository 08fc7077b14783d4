# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""``pyro-flows report``: the page of a fit that was saved before."""

from __future__ import annotations

import argparse
from pathlib import Path

from pyro_flows.cli import folder as folders
from pyro_flows.cli.console import DONE, Console
from pyro_flows.cli.models import model_named
from pyro_flows.cli.options import Commands, add_command, add_messages
from pyro_flows.cli.results import open_page
from pyro_flows.errors import OptionError, SavedPosteriorError

HELP = """
Write the page of a saved fit again, for example after an update.

FOLDER is what 'pyro-flows fit' wrote, or what Posterior.save wrote in Python.
The model must be named, since its code is run; what the folder says its model
was is never run by itself. Model and data are checked against what was saved.

Prints the verdict. Writes FOLDER/report.html unless -o says otherwise. The
exit code is 0 once the page is written, whatever the verdict.

examples:
  pyro-flows report schools_fit --model schools.py:schools
  pyro-flows report schools_fit --model schools.py:schools -o ~/page.html
"""


def add(commands: Commands) -> None:
    """Add ``report`` to the program."""
    parser = add_command(commands, "report", "write the page of a saved fit", HELP)
    parser.set_defaults(run=run)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="the folder of a fit")
    parser.add_argument(
        "--model", metavar="MODEL", help="FILE.py:NAME or package.module:NAME it was fitted to"
    )
    parser.add_argument("-o", "--output", metavar="FILE.html", type=Path, help="where to write")
    parser.add_argument("--open", action="store_true", help="open the page in a browser")
    add_messages(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Load the posterior with the named model, and write its page."""
    saved, dtype, known = _saved(args.folder)
    if args.model is None:
        hint = f" It was {known}." if known else ""
        raise OptionError(
            f"Expected --model FILE.py:NAME, the model that {args.folder} was fitted to, but got "
            f"none.{hint} Name it, since its code is run."
        )
    page = args.output or args.folder / "report.html"
    if page.is_dir():
        raise OptionError(f"Expected -o to name a file, but {page} is a folder.")
    with model_named(args.model) as model, folders.precision(dtype, None):
        from pyro_flows.inference import Posterior

        posterior = Posterior.load(saved, model=model.function)
        console.say(str(posterior))
        posterior.write_report(page)
    console.say(f"Wrote {page}.")
    if args.open:
        open_page(page, console)
    return DONE


def _saved(folder: Path) -> tuple[Path, str, str]:
    """The folder of the posterior itself; the dtype of the fit; the model's name, if noted."""
    if (folder / folders.MARKER).is_file():
        facts = folders.read_marker(folder)
        if facts.get("kind") == "posterior":
            dtype = "float32" if facts.get("dtype") == "float32" else "float64"
            return folder / "posterior", dtype, str(facts.get("model", ""))
    if (folder / "posterior.json").is_file():
        return folder, "float32", ""  # torch's own default, as a fit in Python has it
    raise SavedPosteriorError(
        f"Expected the folder of a fit at {folder}, but it "
        f"{'is something else' if folder.exists() else 'does not exist'}. Check the path."
    )
