# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""How fast are we, and how fast are the others? Ours and the peers side by side, in turns.

Measure, a JSON line for each contender and case::

    python tests/benchmarks/speed/run.py --out speed.jsonl
    python tests/benchmarks/speed/run.py --out speed.jsonl --groups density --peers zuko flowjax

Print what is there as tables, and draw how a training step grows::

    python tests/benchmarks/speed/run.py --out speed.jsonl --table
    python tests/benchmarks/speed/run.py --out speed.jsonl --picture growth.png

Each contender lives in a process of its own, held to as many cores as it has threads. One works at
a time, and in every round each has its turn, so that what else the machine does hits all alike;
figures are medians over rounds. What comes before the first result (imports, building, the first
call with whatever it compiles) is kept apart. The groups: plan.py.

zuko, nflows and normflows take part where they are installed beside torch. NumPyro and flowjax get
an environment of their own, made the first time (``--jax-env``).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from environment import default_folder, jax_python, machine
from measure import measured
from picture import picture
from plan import GROUPS, JAX, LIBRARIES, Entry
from table import read, table


def run(args: argparse.Namespace) -> None:
    """Measures the chosen groups."""
    chosen = {name: GROUPS[name] for name in args.groups}
    libraries = {entry.library for group in chosen.values() for entry in group.entries}
    peers = libraries & {"ours", *args.peers}
    in_jax = jax_python(args.jax_env) if peers & set(JAX) else None
    if in_jax is None:
        peers -= set(JAX)
    for name, group in chosen.items():
        entries = [entry for entry in group.entries if entry.library in peers]
        for case, sizes in group.cases.items():
            if args.cases and case not in args.cases:
                continue
            specs = {entry: _spec(name, entry, sizes, args.threads) for entry in entries}
            pythons = {e: in_jax if e.library in JAX else sys.executable for e in entries}
            about = {"group": name, "case": case, "sizes": sizes, "threads": args.threads}
            about |= {"machine": machine(), "when": time.strftime("%Y-%m-%d %H:%M:%S")}
            for row in measured(group, specs, pythons, args):
                with args.out.open("a") as lines:
                    lines.write(json.dumps(about | row) + "\n")
                print(f"{name}, {case}: {_said(row)}", flush=True)


def _spec(group: str, entry: Entry, sizes: dict[str, Any], threads: int) -> dict[str, Any]:
    names = {"group": group, "contender": entry.name, "module": entry.module}
    return {**sizes, **names, "threads": threads}


def _said(row: dict[str, Any]) -> str:
    if "left_out" in row:
        return f"{row['contender']} is left out: {row['left_out']}."
    facts = ", ".join(f"{name} {value}" for name, value in row["facts"].items())
    best = min(row["seconds"])
    return f"{row['contender']} {best:.3g} s, first {row['first_seconds']:.3g} s; {facts}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("speed.jsonl"))
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=list(GROUPS))
    parser.add_argument("--cases", nargs="+", help="names of cases, as in the rows; all otherwise")
    parser.add_argument("--peers", nargs="*", default=list(LIBRARIES), choices=LIBRARIES)
    parser.add_argument("--rounds", type=int, default=7, help="batches of each contender's steps")
    parser.add_argument("--fits", type=int, default=3, help="fresh processes of each whole fit")
    parser.add_argument("--seconds", type=float, default=0.3, help="of a batch of steps, about")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--jax-env",
        type=Path,
        default=default_folder(),
        help="folder of the environment that has NumPyro and flowjax, made if it isn't there",
    )
    parser.add_argument("--table", action="store_true", help="print the rows of --out as tables")
    parser.add_argument("--picture", type=Path, help="draw growth, from --out, to this file")
    return parser


def main() -> None:
    """Measures, or shows what there is."""
    args = _parser().parse_args()
    if not (args.table or args.picture):
        run(args)
        return
    rows = read(args.out)
    if not rows:
        sys.exit(f"There are no rows in {args.out} yet: run this command without --table.")
    if args.table:
        print(table(rows))
    if args.picture:
        picture(rows, args.picture)


if __name__ == "__main__":
    main()
