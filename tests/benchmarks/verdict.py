# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""How often is the verdict right? Guides made wrong on purpose, and good ones, are judged.

Make and judge them, a JSON line for each guide (run again, it goes on where it stopped)::

    python tests/benchmarks/verdict.py --data ../shared/data --out verdict.jsonl

Print the rates, over all targets and over the half on which no threshold was chosen::

    python tests/benchmarks/verdict.py --out verdict.jsonl --table

Definitions of "wrong", "right" and the rates: scoring.py and posteriordb/rates.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyro
import torch
from posteriordb import Target, targets
from posteriordb.defects import guides
from posteriordb.errors import errors
from posteriordb.rates import table
from pyro.infer.autoguide.guides import AutoContinuous
from scoring import judge_truth

from pyro_flows import assess

Row = dict[str, Any]

N_DELIVERED = 10_000
# Quick ones, of every kind; posteriors that don't exist are "wrong" whatever the guide.
DEFAULT = (
    *("eight_schools_centered", "eight_schools_noncentered", "seeds", "brownian"),
    *("gp_pois_regr", "gp_regr", "arK", "mesquite", "logmesquite_logvas", "kidscore_momiq"),
    *("nes1972", "low_dim_gauss_mix_two_modes", "blr", "ionosphere", "slcp_opaque"),
    *("two_moons_opaque", "funnel_10_opaque", "rotated_funnel_10_opaque", "banana_opaque"),
    *("funana_10_opaque", "student_t2_opaque", "student_t5_opaque", "gmm_40_opaque"),
    *("many_well_6_opaque", "horseshoe_noncentered", "mixture_90_10_opaque"),
    *("mixture_98_2_opaque", "unequal_widths_opaque", "cauchy_opaque", "t2_opaque"),
    *("beta_opaque", "gamma_opaque", "label_switching", "sign_flip", "separated_logistic"),
    *("flat_log_sigma", "ridge", "edge_nan", "edge_inf", "explosion"),
)


def judge_all(target: Target, seed: int) -> Iterator[Row]:
    """Judges a target's guides, good and wrong."""
    for defect, guide in guides(target, seed):
        row: Row = {"target": target.name, "seed": seed, "defect": defect}
        try:
            yield row | judge_one(target, guide, seed)
        except Exception as error:
            # One guide that fails shouldn't cost the others.
            traceback.print_exc()
            yield row | {"error": f"{type(error).__name__}: {error}"}


def judge_one(target: Target, guide: AutoContinuous, seed: int) -> Row:
    """The verdict on a guide, and the truth about the draws that are handed over."""
    pyro.clear_param_store()
    start = time.perf_counter()
    posterior = assess(target.model, guide, *target.args, seed=seed, **target.kwargs)
    seconds = time.perf_counter() - start
    found = errors(target, posterior.draws(N_DELIVERED))
    known = {name: found[name] for name in ("mean", "log_sd", "quantile", "modes")}
    if target.log_z is not None:
        known["log_z"] = posterior.log_evidence - target.log_z
    weights = posterior.weights
    return {
        "status": posterior.verdict.status,
        "truth": "wrong" if target.improper else judge_truth(known),
        "errors": known,
        "reasons": list(posterior.verdict.reasons),
        "seconds": seconds,
        "gradients": posterior.cost["gradients"],
        "gap": weights.gap,
        "khat": weights.khat,
        "ess": weights.kish_ess,
    }


def read(path: Path) -> list[Row]:
    """Reads the rows of a file, none if it isn't there yet."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.strip()]


def run(chosen: dict[str, Target], seeds: list[int], out: Path) -> None:
    """Appends the rows of each target and seed that ``out`` doesn't have yet."""
    done = {(row["target"], row["seed"]) for row in read(out) if "error" not in row}
    for seed in seeds:
        for name, target in chosen.items():
            if (name, seed) in done:
                continue
            try:
                rows = list(judge_all(target, seed))
            except Exception as error:
                # One target that fails shouldn't cost the others.
                traceback.print_exc()
                rows = [
                    {"target": name, "seed": seed, "error": f"{type(error).__name__}: {error}"}
                ]
            with out.open("a") as lines:
                lines.writelines(json.dumps(row) + "\n" for row in rows)
            shown = [(r.get("defect"), r.get("status"), r.get("truth")) for r in rows]
            print(f"{name} seed {seed}: {shown}", flush=True)


def main() -> None:
    """Makes and judges guides, or shows how often the verdict was right."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="as of posterior_quality.py")
    parser.add_argument("--targets", nargs="+", default=list(DEFAULT), help="names of targets")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("verdict.jsonl"))
    parser.add_argument("--part", default="1/1", help="only this part of the targets, as in 1/2")
    parser.add_argument("--table", action="store_true", help="print the rates of --out")
    args = parser.parse_args()
    if args.table:
        print(table(read(args.out)))
        return
    torch.set_num_threads(1)
    available = targets(args.data)
    missing = [name for name in args.targets if name not in available]
    if missing:
        print(f"Left out, for want of --data: {', '.join(missing)}.", file=sys.stderr)
    names = [name for name in args.targets if name in available]
    part, parts = (int(number) for number in args.part.split("/"))
    run({name: available[name] for name in names[part - 1 :: parts]}, args.seeds, args.out)


if __name__ == "__main__":
    main()
