# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Effective draws per gradient: exact refinement of a fit against plain Pyro NUTS.

Three hierarchies written the natural, centred way: eight schools, radon in the homes of Minnesota,
and Neal's funnel in 100 dimensions. Run them, a JSON line for each target, method and seed (run
again, it goes on where it stopped), and print what is there as a table::

    python tests/benchmarks/refinement.py --data ../shared/data --out refinement.jsonl
    python tests/benchmarks/refinement.py --out refinement.jsonl --table

Methods: "nuts" is 4 chains of ``MCMC(NUTS(model), 1000, warmup_steps=1000)``, all defaults of
Pyro's but ``jit_compile=True``, which takes the same gradients in half the time; "neutra_nuts" and
"independence_metropolis" are the package's, all defaults, after ``FlowVI(model, seed=seed).run``,
also all defaults; with "@20k" after a fit of at most 20,000 gradients. An effective draw is the
least bulk (or tail) ESS among all elements of all latents, constrained. Gradients of one chain and
point: of NUTS each call of its potential, of training each draw; an evaluation without gradient
(Metropolis) counts as one. Without ``--data`` radon, which needs posteriordb's file, is left out.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer import MCMC, NUTS

from pyro_flows import FlowVI, Posterior, independence_metropolis, neutra_nuts
from pyro_flows.diagnostics import convergence, group_dataset

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
import radon  # noqa: E402 (an example, which isn't installed)

Row = dict[str, Any]
CHAINS, DRAWS = 4, 1000


class Target(NamedTuple):
    """A model, its arguments, and an element with its true mean and sd, where they are known."""

    model: Callable[..., Any]
    args: tuple[Any, ...] = ()
    known: tuple[str, float, float] | None = None


def eight_schools(sigma: torch.Tensor, y: torch.Tensor) -> None:
    """Rubin's eight schools, centred."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def funnel() -> None:
    """Neal's funnel in 100 dimensions (Neal, Slice sampling, Annals of Statistics, 2003)."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("x_plate", 99):
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))


def targets(data: Path | None) -> dict[str, Target]:
    """Targets by name."""
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    found = {
        "eight_schools": Target(eight_schools, (sigma, y)),
        "funnel_100": Target(funnel, known=("v", 0.0, 3.0)),
    }
    if data is not None:
        found["radon"] = Target(radon.model, radon.read(data))
    return found


# Methods


class _Counting(NUTS):
    """Pyro's NUTS, which counts calls of its potential."""

    gradients = 0

    def _initialize_model_properties(self, model_args: Any, model_kwargs: Any) -> None:
        super()._initialize_model_properties(model_args, model_kwargs)
        potential = self.potential_fn

        def counted(params: Any) -> torch.Tensor:
            self.gradients += 1
            return potential(params)

        self.potential_fn = counted


def nuts(target: Target, seed: int) -> Row:
    """Plain Pyro, chains one after the other."""
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    begun = time.perf_counter()
    values: dict[str, list[np.ndarray]] = {}
    gradients = divergences = 0
    # One MCMC a chain: with several it would fork where there are processors enough, and the
    # counter would stay in the children.
    for _ in range(CHAINS):
        kernel = _Counting(target.model, jit_compile=True, ignore_jit_warnings=True)
        mcmc = MCMC(kernel, DRAWS, warmup_steps=DRAWS, disable_progbar=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit
            mcmc.run(*target.args)
        for name, value in mcmc.get_samples().items():
            values.setdefault(name, []).append(value.numpy())
        gradients += kernel.gradients
        divergences += len(mcmc.diagnostics()["divergences"]["chain 0"])
    seconds = time.perf_counter() - begun
    return {
        **figures(target, {name: np.stack(chains) for name, chains in values.items()}),
        "gradients": gradients,
        "gradients_training": 0,
        "seconds": seconds,
        "seconds_training": 0.0,
        "divergences": divergences,
    }


@functools.lru_cache(maxsize=2)
def fit(target: Target, seed: int, budget: int | None) -> Posterior:
    """A fit, once for all methods that refine it."""
    pyro.clear_param_store()
    vi = FlowVI(target.model, seed=seed, max_gradients=budget, progress=False)
    return vi.run(*target.args)


def refined(method: Callable[..., Any], budget: int | None) -> Callable[[Target, int], Row]:
    """One of the package's, after a fit."""

    def run(target: Target, seed: int) -> Row:
        posterior = fit(target, seed, budget)
        options = {"progress": False} if method is neutra_nuts else {}
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            data = method(posterior, num_samples=DRAWS, num_chains=CHAINS, **options)
        draws = group_dataset(data, "posterior")
        attrs = data.attrs
        return {
            **figures(target, {name: draws[name].values for name in draws.data_vars}),
            "gradients": attrs["gradients"] + attrs.get("evaluations", 0),
            "gradients_training": attrs["gradients_training"],
            "seconds": attrs["seconds"],
            "seconds_training": attrs["seconds_training"],
            "divergences": attrs.get("divergences"),
            "acceptance_rate": attrs["acceptance_rate"],
            "verdict": posterior.verdict.status,
            "khat": posterior.khat,
            "warnings": [str(warning.message) for warning in said],
        }

    return run


METHODS: dict[str, Callable[[Target, int], Row]] = {
    "neutra_nuts": refined(neutra_nuts, None),
    "independence_metropolis": refined(independence_metropolis, None),
    "neutra_nuts@20k": refined(neutra_nuts, 20_000),
    "independence_metropolis@20k": refined(independence_metropolis, 20_000),
    "nuts": nuts,
}


def figures(target: Target, values: dict[str, np.ndarray]) -> Row:
    """R-hat and ESS of the worst element; errors in standard deviations where truth is known."""
    found = convergence(values)
    row = {
        "rhat_max": found.rhat_max,
        "rhat_where": found.rhat_where,
        "ess_bulk_min": found.ess_bulk_min,
        "ess_bulk_where": found.ess_bulk_where,
        "ess_tail_min": found.ess_tail_min,
    }
    if target.known is not None:
        name, mean, sd = target.known
        row["mean_error"] = float((values[name].mean() - mean) / sd)
        row["sd_ratio"] = float(values[name].std() / sd)
    return row


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
        "pyro_flows": pyro_flows.__version__,
    }


# Running and printing


def read(out: Path) -> list[Row]:
    """Rows of a file that may not be there."""
    return [json.loads(line) for line in out.read_text().splitlines()] if out.is_file() else []


def run(chosen: dict[str, Target], methods: list[str], seeds: list[int], out: Path) -> None:
    """Appends a row for each target, method and seed that ``out`` doesn't have yet."""
    for seed in seeds:
        for name, target in chosen.items():
            for method in methods:
                done = {
                    (r["target"], r["method"], r["seed"]) for r in read(out) if "error" not in r
                }
                if (name, method, seed) in done:
                    continue
                row: Row = {"target": name, "method": method, "seed": seed}
                try:
                    row |= METHODS[method](target, seed)
                except Exception as error:
                    # One that fails shouldn't cost the night's other runs.
                    traceback.print_exc()
                    row["error"] = f"{type(error).__name__}: {error}"
                # What makes this row again, whatever folders it is run from and writes to.
                chosen_ones = f"--targets {name} --methods {method} --seeds {seed}"
                row |= {
                    "machine": machine(),
                    "command": f"python tests/benchmarks/refinement.py {chosen_ones} --out FILE",
                }
                with out.open("a") as lines:
                    lines.write(json.dumps(row) + "\n")
                print(
                    {k: v for k, v in row.items() if k not in ("machine", "command")}, flush=True
                )


def table(rows: list[Row]) -> str:
    """Markdown: means over seeds."""
    head = (
        "target",
        "method",
        "gradients, training",
        "gradients, sampling",
        "R-hat",
        "ESS bulk",
        "ESS tail",
        "ESS per 1,000 gradients",
        "the same with training",
        "divergences",
    )
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(["---"] * len(head)) + "|"]
    sound = [row for row in rows if "error" not in row]
    for key in dict.fromkeys((row["target"], row["method"]) for row in sound):
        same = [row for row in sound if (row["target"], row["method"]) == key]

        def mean(name: str, same: list[Row] = same) -> float:
            return float(np.mean([row[name] for row in same]))

        ess, own, training = mean("ess_bulk_min"), mean("gradients"), mean("gradients_training")
        diverged = [row["divergences"] for row in same if row["divergences"] is not None]
        cells = (
            *key,
            f"{training:,.0f}",
            f"{own:,.0f}",
            f"{max(row['rhat_max'] for row in same):.3f}",
            f"{ess:,.0f}",
            f"{mean('ess_tail_min'):,.0f}",
            f"{1000 * ess / own:.3g}",
            f"{1000 * ess / (own + training):.3g}",
            f"{np.mean(diverged):.0f}" if diverged else "",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder of posteriordb, e.g. ../shared/data")
    parser.add_argument("--out", type=Path, required=True, help="the JSON lines")
    parser.add_argument("--targets", nargs="*", help="eight_schools, radon, funnel_100")
    parser.add_argument("--methods", nargs="*", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--table", action="store_true", help="print what is there, run nothing")
    options = parser.parse_args()
    if options.table:
        print(table(read(options.out)))
        return
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    found = targets(options.data)
    chosen = {name: found[name] for name in options.targets or found}
    run(chosen, options.methods, options.seeds, options.out)


if __name__ == "__main__":
    main()
