# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""How close are FlowVI's posteriors? Gap, share, k-hat and errors on posteriors that are known.

Fit and score, a JSON line for each target and seed (run again, it goes on where it stopped)::

    python tests/benchmarks/posterior_quality.py --data ../shared/data --out results.jsonl

Print what is there as a table::

    python tests/benchmarks/posterior_quality.py --out results.jsonl --table

Without ``--data`` only the two forms of eight schools are run. Each fit is ``FlowVI(model,
seed=seed).run(...)`` with no other setting; what is scored is its raw guide, by 100,000 fresh
draws. Definitions: scoring.py.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from posteriordb import MissingData, Target
from posteriordb.models import targets
from scoring import meets, moment_errors, quantile_errors, score

Row = dict[str, Any]

S = 100_000
EVALUATION_SEED = 12345  # of a stream used for nothing else
N_CHECKED = 500  # draws whose log p is computed a second time, without the package
N_DELIVERED = 10_000


@dataclass(frozen=True)
class Bars:
    """What a target has to reach; None where nothing is asked."""

    gap: float | None = None
    share: float | None = None
    khat: float | None = None
    seconds: float | None = None


_GAUSSIAN = Bars(gap=0.005, share=0.95)
BARS = {
    "eight_schools_centered": Bars(gap=0.02, khat=0.7, seconds=30.0),
    "eight_schools_noncentered": Bars(gap=0.002),
    "nes2000": _GAUSSIAN,
    "mesquite": _GAUSSIAN,
    "kidscore_momiq": _GAUSSIAN,
    "arK": _GAUSSIAN,
    "earn_height": _GAUSSIAN,
}


# Fitting and scoring


def fit_and_score(target: Target, seed: int) -> Row:
    """Runs FlowVI on a target and scores what it delivers."""
    from pyro_flows import FlowVI

    pyro.clear_param_store()
    start = time.perf_counter()
    posterior = FlowVI(target.model, seed=seed, progress=False).run(*target.args, **target.kwargs)
    seconds = time.perf_counter() - start
    z, log_p, log_q = posterior.sample_guide(S, seed=EVALUATION_SEED)
    return {
        "status": str(posterior.verdict.status),
        "user_khat": _number(posterior.khat),
        "seconds": seconds,
        "gradients": posterior.cost["gradients"],
        "cost": {name: _number(value) for name, value in posterior.cost.items()},
        "d": target.dim,
        "log_z": target.log_z,
        "log_z_se": target.log_z_se,
        **score(log_p, log_q, target.log_z, target.log_z_se),
        "log_p_error": _log_p_error(target, z, log_p),
        **_errors(target, z, posterior),
    }


def _log_p_error(target: Target, z: np.ndarray, log_p: np.ndarray) -> float:
    """The largest difference between the package's log joint and one made without it."""
    ours = target.log_joint(torch.as_tensor(z[:N_CHECKED], dtype=torch.float64)).numpy()
    theirs = log_p[:N_CHECKED]
    both = np.isfinite(ours) & np.isfinite(theirs)
    scale = np.maximum(1.0, np.abs(ours[both]))
    return float(np.max(np.abs(ours[both] - theirs[both]) / scale, initial=0.0))


def _errors(target: Target, z: np.ndarray, posterior: Any) -> Row:
    """Errors of the raw guide and of the delivered draws against the reference draws."""
    try:
        reference = target.unconstrain(target.reference()).numpy()
    except MissingData:
        return {"raw_errors": None, "delivered_errors": None}
    delivered = target.unconstrain(posterior.draws(N_DELIVERED)).numpy()
    return {
        "raw_errors": _summary(z[np.isfinite(z).all(-1)], reference),
        "delivered_errors": _summary(delivered, reference),
    }


def _summary(draws: np.ndarray, reference: np.ndarray) -> Row:
    moments = moment_errors(draws, reference)
    return {
        "mean": float(np.abs(moments["mean_error"]).max()),
        "log_sd": float(np.abs(moments["log_sd_error"]).max()),
        "moments_met": moments["met"],
        # The maps to these supports act on one coordinate at a time, so that either scale will do.
        "quantile": float(np.abs(quantile_errors(draws, reference)).max()),
    }


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


def run(chosen: dict[str, Target], seeds: list[int], out: Path) -> None:
    """Appends a row for each target and seed that ``out`` doesn't have yet."""
    done = {(row["target"], row["seed"]) for row in read(out) if "error" not in row}
    for name, target in chosen.items():
        for seed in seeds:
            if (name, seed) in done:
                continue
            row: Row = {"target": name, "seed": seed}
            try:
                row |= fit_and_score(target, seed)
            except Exception as error:
                # One target that fails shouldn't cost the night's other fits.
                traceback.print_exc()
                row["error"] = f"{type(error).__name__}: {error}"
            row["machine"] = machine()
            with out.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
            shown = {k: row.get(k) for k in ("status", "gap", "share", "khat", "seconds", "error")}
            print(f"{name} seed {seed}: {shown}", flush=True)


def read(out: Path) -> list[Row]:
    """Reads the rows of a file; of two for one target and seed the later counts."""
    if not out.exists():
        return []
    rows = [json.loads(line) for line in out.read_text().splitlines() if line.strip()]
    return list({(row["target"], row["seed"]): row for row in rows}.values())


def _number(value: Any) -> Any:
    if isinstance(value, np.generic | torch.Tensor):
        return value.item()
    return value if isinstance(value, bool | int | float | str | None) else str(value)


# The table

_COLUMNS = (
    *("target", "seeds", "gap + 2 s.e.", "judged", "gap_IS", "gap_known", "share", "k-hat"),
    *("seconds", "gradients", "errors met", "status", "bars"),
)


def table(rows: list[Row]) -> str:
    """Gives a markdown table: median / worst over seeds, and whether each bar is met."""
    head = (
        "| target | seeds | gap + 2 s.e. | judged | gap_IS | gap_known | share | k-hat | seconds"
    )
    head += " | gradients | errors met | status | bars |"
    lines = [head, "|---|" + "---|" * (head.count("|") - 2)]
    names = sorted({row["target"] for row in rows}, key=_order)
    lines += [_line(name, [row for row in rows if row["target"] == name]) for name in names]
    return "\n".join(
        [
            *lines,
            "",
            "Figures are median / worst over seeds. A bar is met if estimate + 2 s.e. <= bar; "
            "*median only* says that the worst seed doesn't meet it. errors met: seeds whose "
            "delivered means and sds are within their bars of the reference draws.",
        ]
    )


def _order(name: str) -> tuple[int, str]:
    return (list(BARS).index(name) if name in BARS else len(BARS), name)


def _line(name: str, rows: list[Row]) -> str:
    fitted = [row for row in rows if "error" not in row]
    upper = [_upper_gap(row) for row in fitted]
    judged = sorted({row["judged"] for row in fitted})
    errors = [e["moments_met"] for row in fitted if (e := row["delivered_errors"]) is not None]
    statuses = [row["status"] for row in fitted] + ["error"] * (len(rows) - len(fitted))
    cells = [
        name,
        str(len(rows)),
        _cell(upper, "{:.4f}"),
        ", ".join(judged),
        _cell([row["gap_is"] for row in fitted], "{:.4f}"),
        _cell([row["gap_known"] for row in fitted], "{:.4f}"),
        _cell([row["share"] for row in fitted], "{:.3f}", worst=min),
        _cell([_khat(row) for row in fitted], "{:.2f}"),
        _cell([row["seconds"] for row in fitted], "{:.1f}"),
        _cell([row["gradients"] for row in fitted], "{:.0f}"),
        f"{sum(errors)} of {len(errors)}" if errors else "no reference",
        ", ".join(f"{statuses.count(s)} {s}" for s in dict.fromkeys(statuses)),
        _verdicts(BARS.get(name, Bars()), rows),
    ]
    return "| " + " | ".join(cells) + " |"


def _upper_gap(row: Row) -> float | None:
    return None if row["gap"] is None else row["gap"] + 2 * (row["gap_se"] or 0.0)


def _khat(row: Row) -> float | None:
    # Constant weights have no k-hat, which is a pass.
    return -np.inf if row["khat_applicable"] is False else row["khat"]


def _cell(values: list[float | None], form: str, worst: Any = max) -> str:
    if not values or any(value is None for value in values):
        return "none"

    def shown(value: float) -> str:
        return "n/a" if value == -np.inf else form.format(value)

    return f"{shown(statistics.median(values))} / {shown(worst(values))}"


def _verdicts(bars: Bars, rows: list[Row]) -> str:
    met = {
        "gap": lambda row: meets(row["gap"], row["gap_se"], bars.gap),
        "share": lambda row: row["share"] is not None and row["share"] >= bars.share,
        "khat": lambda row: _khat(row) is not None and _khat(row) < bars.khat,
        "seconds": lambda row: row["seconds"] <= bars.seconds,
    }
    parts = []
    for name, passes in met.items():
        bar = getattr(bars, name)
        if bar is None:
            continue
        passed = ["error" not in row and passes(row) for row in rows]
        # The median seed meets a bar if more than half of the seeds do.
        most = sum(passed) * 2 > len(passed)
        verdict = "pass" if all(passed) else "median only" if most else "FAIL"
        sign = {"share": ">=", "khat": "<"}.get(name, "<=")
        parts.append(f"{name} {sign} {bar:g}: {verdict}")
    return "; ".join(parts) or "none set"


# The command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="folder that holds posteriordb, and posteriordb_logz.csv for log Z; for example "
        "../shared/data. Without it only eight schools is run, without reference draws",
    )
    parser.add_argument(
        "--targets", nargs="+", default=["all"], help="names of targets, 'bars', or 'all'"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("posterior_quality.jsonl"))
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--table", action="store_true", help="print the rows of --out as a table")
    parser.add_argument("--list", action="store_true", help="print the names of the targets")
    return parser


def _choose(names: list[str], available: dict[str, Target]) -> dict[str, Target]:
    if names == ["all"]:
        return available
    if names == ["bars"]:
        names = [name for name in BARS if name in available]
    unknown = [name for name in names if name not in available]
    if unknown:
        sys.exit(
            f"There is no target named {', '.join(unknown)}. Without --data there are only the "
            f"two forms of eight schools. Available: {', '.join(available)}."
        )
    return {name: available[name] for name in names}


def main(args: argparse.Namespace) -> None:
    """Lists, fits and scores, or prints the table."""
    if args.table:
        rows = read(args.out)
        if not rows:
            sys.exit(f"There are no rows in {args.out} yet: run this command without --table.")
        print(table(rows))
        return
    try:
        available = targets(args.data)
    except MissingData as error:
        sys.exit(str(error))
    if args.list:
        print("\n".join(available))
        return
    torch.set_num_threads(args.threads)
    run(_choose(args.targets, available), args.seeds, args.out)


if __name__ == "__main__":
    main(_parser().parse_args())
