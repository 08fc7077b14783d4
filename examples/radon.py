# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""How much radon is there in the homes of Minnesota, county by county?

Radon was measured in 919 homes of 85 counties, from 1 to over 100 homes a county (Gelman and
Hill, 2007, chapter 12). The counties' intercepts are drawn towards what uranium in the soil
predicts: much for a county with one home, hardly at all for one with a hundred.

The data are those of posteriordb. Run it with::

    python examples/radon.py --data ../shared/data
    python examples/radon.py --synthetic

With ``--synthetic`` it prints::

    Verdict: corrected
      The guide is close; its draws are corrected by importance resampling.
      gap log evidence - ELBO 0.0012 ± 0.0002 nats.
      k-hat 0.44 (threshold 0.70, 40000 draws); effective share 99.7%.
    ELBO -269.4403 ± 0.0002, log evidence -269.4391 ± 0.0003
    Sites: mean, by_uranium, by_floor, sd_between, sd_within, intercept[20]
    Cost: 788,662 gradients, 3600 steps, 78.0 s
    Stopped: the last 400 steps gained 0.0003 nats on held-out draws
                    mean      sd      5%  median    95%      mcse   khat
    mean           1.465  0.0812  1.3330   1.466  1.597  0.000407  0.439
    by_uranium     1.021  0.1850  0.7240   1.018  1.328  0.000926  0.439
    by_floor      -0.632  0.1410 -0.8630  -0.632 -0.401  0.000705  0.439
    sd_between     0.184  0.1010  0.0276   0.178  0.360  0.000510  0.439
    sd_within      0.798  0.0411  0.7330   0.796  0.869  0.000206  0.439
    ...
    county 1, 1 homes: intercept 0.44 +- 0.27
    county 20, 20 homes: intercept 1.25 +- 0.14
"""

from __future__ import annotations

import argparse
import json
import sys
import zipfile
from pathlib import Path

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_flows import FlowVI

RADON = "posterior_database/data/data/radon_mn.json.zip"


def model(county: Tensor, floor: Tensor, uranium: Tensor, radon: Tensor | None = None) -> None:
    """Log radon by floor (0 basement, 1 first floor), with intercepts by county.

    Args:
        county: The county of each home, of shape ``(homes,)``.
        floor: Where it was measured, of shape ``(homes,)``.
        uranium: Log uranium in the county's soil, of shape ``(counties,)``.
        radon: Log radon in each home, of shape ``(homes,)``.
    """
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    by_uranium = pyro.sample("by_uranium", dist.Normal(0.0, 10.0))
    by_floor = pyro.sample("by_floor", dist.Normal(0.0, 10.0))
    between = pyro.sample("sd_between", dist.HalfNormal(1.0))
    within = pyro.sample("sd_within", dist.HalfNormal(1.0))
    with pyro.plate("county", len(uranium)):
        intercept = pyro.sample("intercept", dist.Normal(mean + by_uranium * uranium, between))
    with pyro.plate("home", len(county)):
        expected = intercept[..., county] + by_floor * floor
        pyro.sample("radon", dist.Normal(expected, within), obs=radon)


def read(data: Path) -> tuple[Tensor, ...]:
    """Reads the homes of Minnesota from a checkout of posteriordb."""
    found = [path for path in (data / "posteriordb" / RADON, data / RADON) if path.is_file()]
    if not found:
        sys.exit(
            f"There is no {RADON} under {data}. Get it by `git clone "
            "https://github.com/stan-dev/posteriordb` and give --data that folder, or use "
            "--synthetic."
        )
    with zipfile.ZipFile(found[0]) as archive:
        stan = json.loads(archive.read(archive.namelist()[0]))
    county = torch.tensor(stan["county_idx"]) - 1
    names = ("floor_measure", "log_uppm", "log_radon")
    floor, by_home, radon = (torch.tensor(stan[name], dtype=torch.float64) for name in names)
    uranium = torch.zeros(stan["J"], dtype=torch.float64).scatter(0, county, by_home)
    return county, floor, uranium, radon


def synthetic(seed: int, n_counties: int = 20) -> tuple[Tensor, ...]:
    """Makes homes like those of Minnesota, the first counties with few, the last with many."""
    rng = torch.Generator().manual_seed(seed)
    county = torch.repeat_interleave(torch.arange(n_counties), 1 + torch.arange(n_counties))
    uranium, effect = 0.4 * torch.randn(2, n_counties, generator=rng, dtype=torch.float64)
    floor = (torch.rand(len(county), generator=rng) < 0.2).double()
    noise = torch.randn(len(county), generator=rng, dtype=torch.float64)
    intercept = 1.5 + 0.7 * uranium + 0.4 * effect
    return county, floor, uranium, intercept[county] - 0.7 * floor + 0.8 * noise


def main(args: argparse.Namespace) -> None:
    """Fits the model and prints how far the counties were drawn towards the regression."""
    if args.data is None and not args.synthetic:
        sys.exit(
            "Radon needs data: give --data a folder with posteriordb (git clone "
            "https://github.com/stan-dev/posteriordb), or use --synthetic."
        )
    county, floor, uranium, radon = synthetic(args.seed) if args.synthetic else read(args.data)
    flow_vi = FlowVI(model, seed=args.seed, num_steps=args.num_steps)
    posterior = flow_vi.run(county, floor, uranium, radon=radon)
    print(posterior)
    print(posterior.summary())

    intercept = posterior.draws(4000)["intercept"]
    homes = torch.bincount(county, minlength=len(uranium))
    for index in (int(homes.argmin()), int(homes.argmax())):
        print(f"county {index + 1}, {int(homes[index])} homes: intercept ", end="")
        print(f"{intercept[:, index].mean():.2f} +- {intercept[:, index].std():.2f}")
    if args.plot:
        posterior.plot().savefig(args.plot)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Radon with intercepts by county")
    parser.add_argument("-n", "--num-steps", type=int, help="by default it stops by itself")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="for example ../shared/data")
    parser.add_argument("--synthetic", action="store_true", help="make up a small data set")
    parser.add_argument("--plot", metavar="FILE.png", help="write a figure of the posterior")
    main(parser.parse_args())
