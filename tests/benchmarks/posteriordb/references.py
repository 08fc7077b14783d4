# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Makes reference moments by long runs of NUTS, for posteriors without reference draws.

It needs NumPyro and ArviZ 0.23 beside Pyro, in an environment of its own::

    python -m venv refenv
    refenv/bin/pip install -c constraints.txt torch pyro-ppl arviz numpyro
    refenv/bin/python tests/benchmarks/posteriordb/references.py --data ../shared/data radon_mn

It writes ``references/NAME.json`` for the centred and the non-centred target. Without names all
five posteriors are run. Each is a Gaussian linear model whose effects have scales of their own:
y = fixed part + z . effect of the row's group + noise. So there are three forms, which sample

- ``centered``: the scales and the effects;
- ``noncentered``: the scales and the effects in units of their scales;
- ``marginal``: the scales, with the effects integrated out. These are then drawn from their
  Gaussian given the scales. No funnel is left, so this form is the second opinion where one of
  the others diverges;
- ``auxiliary`` (horseshoe): the same with each half-Cauchy as a half-normal over the square root
  of a gamma.

Every twin is first compared with the target's own log joint. Then the rules: 4 chains, R-hat
below 1.01, bulk and tail ESS above 4,000 in every unconstrained coordinate, no divergences, and
two forms that agree. The moments are those of the form with the largest ESS.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

# One thread: the arrays are small. It must be said before JAX is imported.
os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import torch
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import log_density
from scoring import QUANTILES

from posteriordb import Target, targets
from posteriordb.checks import constrain
from posteriordb.twins import WITHOUT_EFFECTS, Twin, twin

Row: TypeAlias = dict[str, Any]

CHAINS, WARMUP, SEED = 4, 2_000, 20_260
FOLDER = Path(__file__).with_suffix("")
MAX_TWIN_ERROR = 1e-8
MAX_RHAT, MIN_ESS = 1.01, 4_000
# Two forms agree if the differences of 99 % of their means and sds are within MAX_Z standard
# errors, their root mean square is below MAX_RMS (not closer to 1, since the coordinates depend on
# one another), and none is above MAX_DIFFERENCE sds.
MAX_Z, MAX_RMS, MAX_DIFFERENCE = 4.0, 2.0, 0.05
# By posterior: draws of each chain, and the acceptance NUTS aims at, by form.
SETTINGS: dict[str, dict[str, tuple[int, float]]] = {
    "horseshoe": {
        "marginal": (10_000, 0.95),
        "auxiliary": (10_000, 0.95),
        "noncentered": (2_000, 0.99),
        "centered": (2_000, 0.99),
    },
    "radon_mn": {"marginal": (20_000, 0.95), "noncentered": (20_000, 0.95)},
    "radon_mn_slopes": {"marginal": (20_000, 0.95), "noncentered": (20_000, 0.95)},
    "radon_all": {"marginal": (10_000, 0.95), "noncentered": (15_000, 0.95)},
    "radon_all_slopes": {"marginal": (10_000, 0.95), "centered": (10_000, 0.95)},
}


# The twins are the targets


def check(target: Target) -> float:
    """The largest difference of the log joint of a target and that of its twins, at 5 points.

    To the form without effects, the density of the effects given all else is added. The form
    with auxiliary sites has another prior, so there it is the likelihoods that are compared.
    """
    plain, auxiliary = twin(target, "marginal"), twin(target, "auxiliary")
    raw = any(name.endswith("_raw") for name in target.latents)
    rng = torch.Generator().manual_seed(SEED)
    z = torch.randn(5, target.dim, generator=rng, dtype=torch.float64)
    sites, _ = constrain(target, z)
    errors = []
    for i, expected in enumerate(target.log_joint(z).tolist()):
        values = plain.values({name: value[i].numpy() for name, value in sites.items()})
        ladj = sum(float(jnp.log(values[name]).sum()) for name in plain.positive)
        form = "noncentered" if raw else "centered"
        errors.append(float(log_density(plain.model, (form,), {}, values)[0]) + ladj - expected)
        if raw:
            effect = values.pop("effect")
            found = float(log_density(plain.model, ("marginal",), {}, values)[0]) + ladj
            errors.append(found + float(plain.effects_density(values, effect)) - expected)
        if "local" in values:
            more = {"size": values["local"] * 1.5, "rate": jnp.full_like(values["local"], 2.25)}
            errors.append(plain.marginal(values)[0] - auxiliary.marginal(values | more)[0])
    return float(np.abs(errors).max())


# The runs


def run(
    double: Twin, form: str, draws: int, accept: float, seed: int
) -> tuple[dict[str, np.ndarray], Row]:
    """Runs NUTS: draws by site of both targets, ``(CHAINS * draws, *shape)``, and its figures."""
    key, effects_key = jax.random.split(jax.random.key(seed))
    # Few sites that lean on one another; a dense matrix for all would cost more than it gives.
    few = tuple(name for name, prior in double.priors.items() if np.prod(prior.event_shape) <= 2)
    kernel = NUTS(double.model, target_accept_prob=accept, dense_mass=[few])
    mcmc = MCMC(
        kernel,
        num_warmup=WARMUP,
        num_samples=draws,
        num_chains=CHAINS,
        chain_method="sequential",
        progress_bar=False,
    )
    mcmc.run(key, form, extra_fields=("diverging", "num_steps"))
    values, extra = mcmc.get_samples(), mcmc.get_extra_fields()
    if form in WITHOUT_EFFECTS:
        keys = jax.random.split(effects_key, CHAINS * draws)
        # One at a time: with one thread XLA waits for ever on a large batch of triangular solves.
        values["effect"] = jax.lax.map(lambda pair: double.effects(*pair), (values, keys))
    figures = {
        "draws_per_chain": draws,
        "seed": seed,
        "target_accept": accept,
        "divergences": int(extra["diverging"].sum()),
        "mean_steps": round(float(extra["num_steps"].mean()), 1),
    }
    return double.sites(values, form), figures


def summarise(target: Target, sites: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Row]:
    """Moments of every unconstrained coordinate with their errors, ``(D,)``, and figures."""
    z = target.unconstrain({name: sites[name] for name in target.latents}).numpy()
    z = z.reshape(CHAINS, -1, target.dim)
    mean = z.mean((0, 1))
    square = (z - mean) ** 2
    sd = np.sqrt(square.mean((0, 1)))
    # The error of a mean square over 2 sd is that of the sd, whatever the kurtosis.
    square_se = square.std((0, 1)) / np.sqrt(_by_arviz(az.ess, square, method="mean"))
    moments = {
        "mean": mean,
        "sd": sd,
        "mean_se": sd / np.sqrt(_by_arviz(az.ess, z, method="mean")),
        "sd_se": square_se / (2 * sd),
    }
    # The maps are increasing: the quantiles of the sites are those of the coordinates, mapped.
    at = torch.as_tensor(np.quantile(z.reshape(-1, target.dim), QUANTILES, axis=0))
    flat = [value.reshape(len(at), -1) for value in constrain(target, at)[0].values()]
    moments["quantiles"] = torch.cat(flat, -1).numpy()
    figures = {
        "largest_rhat": _short(float(_by_arviz(az.rhat, z).max())),
        "least_bulk_ess": round(float(_by_arviz(az.ess, z, method="bulk").min())),
        "least_tail_ess": round(float(_by_arviz(az.ess, z, method="tail").min())),
    }
    return moments, figures


def _by_arviz(function: Callable[..., Any], z: np.ndarray, **options: str) -> np.ndarray:
    return function(az.convert_to_dataset({"z": z}), **options)["z"].values


def meets_rules(figures: Row) -> bool:
    """Whether a run of NUTS is long and good enough."""
    least = min(figures["least_bulk_ess"], figures["least_tail_ess"])
    converged = figures["largest_rhat"] < MAX_RHAT and least > MIN_ESS
    return converged and figures["divergences"] == 0


def compare(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> Row:
    """The differences of means and sds, in standard errors and in sds."""
    keys = ("mean", "sd")
    each = [np.abs(one[key] - two[key]) for key in keys]
    errors = [np.hypot(one[f"{key}_se"], two[f"{key}_se"]) for key in keys]
    z = np.concatenate(each) / np.concatenate(errors)
    return {
        "largest_z": _short(float(z.max()), 3),
        "rms_z": _short(float(np.sqrt((z**2).mean())), 3),
        "share_within_4": _short(float((z <= MAX_Z).mean()), 4),
        "largest_difference": _short(float(np.max(each / one["sd"])), 3),
    }


# The files


def names(posterior: str) -> tuple[str, str]:
    """The centred and the non-centred target of a posterior."""
    if posterior == "horseshoe":
        return posterior, "horseshoe_noncentered"
    return f"{posterior}_centered", f"{posterior}_noncentered"


def make(posterior: str, pair: list[Target]) -> list[Row]:
    """Runs every form of a posterior and gives the records of its two targets."""
    runs, found = {}, [{}, {}]
    error = max(check(target) for target in pair)
    print(f"{posterior}: the log joint of the twin is off by at most {error:.1e}", flush=True)
    if error > MAX_TWIN_ERROR:
        raise ValueError(f"The twin of {posterior} isn't its target: off by {error:.1e}.")
    for seed, (form, settings) in enumerate(SETTINGS[posterior].items(), SEED):
        sites, runs[form] = run(twin(pair[0], form), form, *settings, seed)
        for target, mine in zip(pair, found, strict=True):
            mine[form] = summarise(target, sites)
            print(f"{target.name} {form}: {runs[form] | mine[form][1]}", flush=True)
    return [record(target, runs, mine) for target, mine in zip(pair, found, strict=True)]


def record(target: Target, runs: Row, found: Row) -> Row:
    """What is written of one target: moments if the rules are met, and how they were made."""
    figures = {form: runs[form] | found[form][1] for form in runs}
    good = sorted((form for form in figures if meets_rules(figures[form])), key=_ess(figures))
    how: Row = {"chains": CHAINS, "warmup": WARMUP, "runs": figures, "versions": _versions()}
    if len(good) < 2:
        return {"how": how | {"counts": False}}
    second, first = good[-2:]
    how |= {"moments_from": first, "compared_with": second}
    how |= compare(found[first][0], found[second][0])
    how["counts"] = (
        how["share_within_4"] >= 0.99
        and how["rms_z"] < MAX_RMS
        and how["largest_difference"] < MAX_DIFFERENCE
    )
    return {"how": how} | by_site(target, found[first][0])


def by_site(target: Target, moments: dict[str, np.ndarray]) -> Row:
    """Splits vectors over the sites; each of these targets' maps acts on single numbers."""
    out: Row = {}
    for key, value in moments.items():
        out[key], start = {}, 0
        for name, (_, shape) in target.latents.items():
            stop = start + math.prod(shape)
            part = value[..., start:stop].reshape((*value.shape[:-1], *shape))
            out[key][name] = np.vectorize(_short, otypes=[float])(part).tolist()
            start = stop
    return out


def _ess(figures: Row) -> Callable[[str], float]:
    return lambda form: min(figures[form]["least_bulk_ess"], figures[form]["least_tail_ess"])


def _short(value: float, digits: int = 6) -> float:
    return float(f"{value:.{digits}g}")


def _versions() -> dict[str, str]:
    modules = (numpyro, jax, az, np)
    return {"python": platform.python_version()} | {m.__name__: m.__version__ for m in modules}


def write(name: str, made: Row) -> None:
    """Writes a record, a line for each key; one that doesn't count gets another name."""
    lines = [f" {json.dumps(key)}: {json.dumps(value)}" for key, value in made.items()]
    suffix = ".json" if made["how"]["counts"] else ".refused.json"
    (FOLDER / (name + suffix)).write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print(f"{name}: {'counts' if made['how']['counts'] else 'does NOT count'}", flush=True)


def main() -> None:
    """Runs the posteriors that are named, or all."""
    parser = argparse.ArgumentParser(description="Makes reference moments by long runs of NUTS.")
    parser.add_argument("posteriors", nargs="*", help=f"of {', '.join(SETTINGS)}; or all")
    parser.add_argument("--data", required=True, help="the folder that holds posteriordb")
    chosen = parser.parse_args()
    numpyro.enable_x64()
    torch.set_num_threads(1)
    made = targets(chosen.data)
    for posterior in chosen.posteriors or SETTINGS:
        pair = [made[name] for name in names(posterior)]
        for target, found in zip(pair, make(posterior, pair), strict=True):
            write(target.name, found)


if __name__ == "__main__":
    main()
