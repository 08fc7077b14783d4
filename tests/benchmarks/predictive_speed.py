# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Time 2,000 draws of new data beside Pyro's ``Predictive``, of models without a particle plate.

In turns, medians, one thread. One JSON line a model:
``python tests/benchmarks/predictive_speed.py``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import Predictive

from pyro_flows import predictive

DRAWS = 2000


def regression(x, y=None):
    """A plain linear regression, its mean a matrix product."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(5), 1.0).to_event(1))
    sd = pyro.sample("sd", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(intercept + x @ slopes, sd), obs=y)


def counts(x, y=None):
    """A Poisson regression with an intercept for each of 20 groups."""
    level = pyro.sample("level", dist.Normal(0.0, 1.0))
    with pyro.plate("group", 20):
        effect = pyro.sample("effect", dist.Normal(level, 1.0))
    with pyro.plate("data", len(x)):
        group = torch.arange(len(x)) % 20
        pyro.sample("y", dist.Poisson((effect[group] + 0.1 * x[:, 0]).exp()), obs=y)


SAMPLES = {
    regression: {
        "intercept": torch.Size([]),
        "slopes": torch.Size([5]),
        "sd": torch.Size([]),
    },
    counts: {"level": torch.Size([]), "effect": torch.Size([20])},
}


def seconds(run, *args):
    """How long a call takes."""
    start = time.perf_counter()
    run(*args)
    return time.perf_counter() - start


def compare(model, x, repeats):
    """Both in turns, after one round to warm up."""
    samples = {name: torch.rand(DRAWS, *shape) + 0.1 for name, shape in SAMPLES[model].items()}
    pyros, ours = [], []
    for _ in range(repeats + 1):
        pyros.append(seconds(Predictive(model, samples), x))
        ours.append(seconds(predictive, model, samples, x))
    theirs, mine = statistics.median(pyros[1:]), statistics.median(ours[1:])
    return {
        "figure": f"{DRAWS} draws of new data, {model.__name__}",
        "rows": len(x),
        "pyro_seconds": round(theirs, 5),
        "seconds": round(mine, 5),
        "times_as_fast": round(theirs / mine, 1),
        "torch": str(torch.__version__),
        "pyro": pyro.__version__,
        "threads": 1,
    }


def main(args):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(args.rows, 5)
    for model in SAMPLES:
        print(json.dumps(compare(model, x, args.repeats)), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", default=100, type=int, help="of data")
    parser.add_argument("--repeats", default=5, type=int)
    main(parser.parse_args())
