# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""How close are the posteriors? Gap, share, k-hat and errors of guides on targets that are known.

Fit and score, a JSON line for each guide, target and seed (run again, it goes on where it
stopped)::

    python tests/benchmarks/posterior_quality.py --data ../shared/data --out results.jsonl

Print what is there as a table, and draw it::

    python tests/benchmarks/posterior_quality.py --out results.jsonl --bars --table
    python tests/benchmarks/posterior_quality.py --out results.jsonl --picture quality.png

Without ``--data`` only the targets that need no files are run. The guide "flow" is
``FlowVI(model, seed=seed).run(...)`` with no other setting; "flow_70k" and the like have a budget
of gradients; the others are Pyro's, see posteriordb/fits.py. What is scored is the raw guide, by
100,000 fresh draws. Definitions: scoring.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from posteriordb import MissingData, Target, bars, targets
from posteriordb.checks import constrain
from posteriordb.errors import errors
from posteriordb.fits import GUIDES
from posteriordb.tables import picture, read, table
from scoring import MAX_FAULTS, evidence_error, judge_truth, score

Row = dict[str, Any]

S = 100_000
EVALUATION_SEED = 12345  # of a stream used for nothing else
N_CHECKED = 500  # draws whose log p is computed a second time, without the package
N_DELIVERED = 10_000
N_DELIVERED_MODES = 40_000  # shares of many modes need more


# Fitting and scoring


def fit_and_score(target: Target, guide: str, seed: int) -> Row:
    """Fits a guide to a target and scores what it delivers."""
    fit = GUIDES[guide](target, seed)
    z, log_p, log_q = fit.sample(S, EVALUATION_SEED)
    scores = score(log_p, log_q, target.log_z, target.log_z_se)
    delivered = errors(target, fit.draws(N_DELIVERED_MODES if target.modes else N_DELIVERED))
    inside = torch.as_tensor(z[np.isfinite(z).all(-1)][:N_DELIVERED_MODES], dtype=torch.float64)
    raw = errors(target, constrain(target, inside)[0]) if len(inside) else None
    return {
        "status": fit.status,
        "seconds": fit.seconds,
        "gradients": fit.gradients,
        "d": target.dim,
        "group": target.group,
        "improper": target.improper,
        "log_z": target.log_z,
        "log_z_se": target.log_z_se,
        **scores,
        "log_p_error": _log_p_error(target, z, log_p),
        "evidence_error": _evidence_error(target, log_p - log_q),
        "raw_errors": raw,
        "delivered_errors": delivered,
        "truth": _truth(target, scores, delivered),
        **fit.details,
    }


def _truth(target: Target, scores: Row, delivered: Row) -> str:
    if target.improper:
        return "wrong"
    found = {name: delivered[name] for name in ("mean", "log_sd", "quantile", "modes")}
    if target.log_z is not None and scores["ln_z_is"] is not None:
        found["log_z"] = scores["ln_z_is"] - target.log_z
    return judge_truth(found)


def _evidence_error(target: Target, lw: np.ndarray) -> float | None:
    sound = lw[~np.isnan(lw) & (lw < np.inf)]
    if target.log_z is None or len(lw) - len(sound) > MAX_FAULTS * len(lw):
        return None
    return evidence_error(sound, target.log_z)


def _log_p_error(target: Target, z: np.ndarray, log_p: np.ndarray) -> float:
    """The largest difference between the package's log joint and one made without it."""
    ours = target.log_joint(torch.as_tensor(z[:N_CHECKED], dtype=torch.float64)).numpy()
    theirs = log_p[:N_CHECKED]
    both = np.isfinite(ours) & np.isfinite(theirs)
    scale = np.maximum(1.0, np.abs(ours[both]))
    return float(np.max(np.abs(ours[both] - theirs[both]) / scale, initial=0.0))


def machine() -> Row:
    """Says where the figures come from."""
    import pyro_flows

    return {
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pyro": pyro.__version__,
        "pyro_flows": getattr(pyro_flows, "__version__", "unknown"),
    }


def run(chosen: dict[str, Target], guides: list[str], seeds: list[int], out: Path) -> None:
    """Appends a row for each guide, target and seed that ``out`` doesn't have yet."""
    done = {(r["guide"], r["target"], r["seed"]) for r in read([out]) if "error" not in r}
    wanted = [(g, t, s) for s in seeds for g in guides for t in chosen]
    for guide, name, seed in wanted:
        if (guide, name, seed) in done:
            continue
        row: Row = {"guide": guide, "target": name, "seed": seed, "group": chosen[name].group}
        row |= {"log_z": chosen[name].log_z}
        try:
            row |= fit_and_score(chosen[name], guide, seed)
        except Exception as error:
            # One target that fails shouldn't cost the night's other fits.
            traceback.print_exc()
            row["error"] = f"{type(error).__name__}: {error}"
        row["machine"] = machine()
        with out.open("a") as lines:
            lines.write(json.dumps(row) + "\n")
        keys = ("status", "gap", "share", "khat", "seconds", "truth", "error")
        shown = {k: round(v, 5) if isinstance(v := row.get(k), float) else v for k in keys}
        print(f"{guide} {name} seed {seed}: {shown}", flush=True)


# The command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="folder that holds posteriordb, and posteriordb_logz.csv for log Z; for example "
        "../shared/data. Without it only targets that need no files are run",
    )
    parser.add_argument(
        "--targets", nargs="+", default=["all"], help="names of targets or groups, or 'all'"
    )
    parser.add_argument("--guides", nargs="+", default=["flow"], choices=list(GUIDES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", nargs="+", type=Path, default=[Path("posterior_quality.jsonl")])
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--part", default="1/1", help="only this part of the targets, as in 1/2")
    parser.add_argument("--table", action="store_true", help="print the rows of --out as a table")
    parser.add_argument("--bars", action="store_true", help="print what was asked and measured")
    parser.add_argument("--picture", type=Path, help="draw the rows of --out to this file")
    parser.add_argument("--list", action="store_true", help="print the names of the targets")
    return parser


def _choose(names: list[str], available: dict[str, Target]) -> dict[str, Target]:
    chosen: dict[str, Target] = {}
    for name in names:
        found = {
            key: target for key, target in available.items() if name in ("all", key, target.group)
        }
        if not found:
            sys.exit(
                f"There is no target or group named {name}. Without --data there are only those "
                f"that need no files. Available: {', '.join(available)}."
            )
        chosen |= found
    return chosen


def main(args: argparse.Namespace) -> None:
    """Lists, fits and scores, or shows what there is."""
    if args.table or args.bars or args.picture:
        rows = read(args.out)
        if not rows:
            sys.exit(f"There are no rows in {args.out} yet: run this command without --table.")
        if args.bars:
            print(bars.table(rows))
        if args.table:
            print(table(rows))
        if args.picture:
            picture(rows, args.picture)
        return
    try:
        available = targets(args.data)
    except MissingData as error:
        sys.exit(str(error))
    chosen = _choose(args.targets, available)
    if args.list:
        print("\n".join(f"{name} ({target.group})" for name, target in chosen.items()))
        return
    torch.set_num_threads(args.threads)
    part, parts = (int(number) for number in args.part.split("/"))
    names = list(chosen)[part - 1 :: parts]
    run({name: chosen[name] for name in names}, args.guides, args.seeds, args.out[0])


if __name__ == "__main__":
    main(_parser().parse_args())
