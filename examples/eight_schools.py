# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What can be said about eight schools when the model is written the natural way?

Eight schools coached pupils for a test; each reports an effect and its standard error (Rubin,
1981). The natural hierarchical model is a funnel: where ``tau`` is small, all effects ``theta``
must lie close together. Gaussian guides, and HMC without a reparametrisation, have trouble there.

Run it with::

    python examples/eight_schools.py --plot eight_schools.png --netcdf eight_schools.nc

It prints what the README shows, from data in float64, and the probability of a question.
"""

from __future__ import annotations

import argparse

import pyro
import pyro.distributions as dist
import torch

from pyro_flows import FlowVI

Y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], dtype=torch.float64)
SIGMA = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], dtype=torch.float64)


def model(sigma: torch.Tensor, y: torch.Tensor | None = None) -> None:
    """Effects ``theta`` of the schools around a common mean ``mu``, with spread ``tau``."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


def main(args: argparse.Namespace) -> None:
    """Fits the model, prints the verdict and the summary, and writes what was asked for."""
    posterior = FlowVI(model, seed=args.seed, num_steps=args.num_steps).run(SIGMA, y=Y)
    print(posterior)
    print(posterior.summary())

    draws = posterior.draws(4000)
    coached = (draws["theta"][:, 0] > draws["theta"][:, 2]).double().mean()
    print(f"P(school 1 gained more than school 3 | y) = {coached:.2f}")

    if args.plot:
        posterior.plot().savefig(args.plot)
        print(f"Wrote {args.plot}.")
    if args.netcdf:
        posterior.to_arviz().to_netcdf(args.netcdf)
        print(f"Wrote {args.netcdf}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Eight schools, centred")
    parser.add_argument(
        "-n", "--num-steps", type=int, help="training steps; by default it stops by itself"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="FILE.png", help="write a figure of the posterior")
    parser.add_argument("--netcdf", metavar="FILE.nc", help="write the posterior for ArviZ")
    main(parser.parse_args())
