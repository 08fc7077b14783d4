# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Which trips in a log of bicycle rides are strange, and what is usual for a ride of 5 km?

Each ride has a distance (positive), a mean speed (positive) and the share of the way spent
standing at lights (between 0 and 1). They depend on one another: long rides are fast and stop
seldom. The log is made up, with three entries that can't be right; each of their numbers is
usual by itself.

Run it with::

    python examples/density_estimation.py --plot rides.png

It fits the joint density, lists the rows with the lowest, and then fits speed given distance.
"""

from __future__ import annotations

import argparse

import numpy as np

from pyro_flows import FlowDensity

COLUMNS = ("km", "km/h", "standing")


def rides(n: int, seed: int) -> np.ndarray:
    """A log of rides, one a row."""
    rng = np.random.default_rng(seed)
    racing = rng.random(n) < 0.3
    km = np.where(racing, rng.gamma(6.0, 6.0, n), rng.gamma(2.5, 1.6, n))
    speed = np.where(racing, 26.0, 15.0) * np.exp(0.12 * rng.normal(size=n)) * km**0.05
    standing = rng.beta(1.5, np.where(racing, 30.0, 6.0) + km)
    return np.stack([km, speed, standing], 1)


def main(args: argparse.Namespace) -> None:
    """Fits both densities and prints what they answer."""
    log = rides(3000, args.seed)
    # An e-bike's speed on a short hop; a racer's way with a commuter's stops; a slow long ride.
    log[:3] = [[2.0, 30.0, 0.05], [45.0, 29.0, 0.30], [40.0, 13.0, 0.02]]
    options = {"seed": args.seed, "num_steps": args.num_steps, "max_seconds": args.max_seconds}

    density = FlowDensity("nsf", support=["positive", "positive", (0, 1)], **options).fit(log)
    print(f"{density.stop_reason_}; log density of held-out rides {density.best_score_:.2f}")
    score = density.score_samples(log)
    print("The strangest rides:")
    for row in np.argsort(score)[:5]:
        numbers = ", ".join(f"{n} {v:.3g}" for n, v in zip(COLUMNS, log[row], strict=True))
        print(f"  row {row}: {numbers}; log density {score[row]:.1f}")

    given = FlowDensity("nsf", support="positive", **options).fit(log[:, 1:2], log[:, :1])
    draws = given.sample(4000, [5.0])
    low, middle, high = np.quantile(draws, [0.05, 0.5, 0.95])
    print(f"Speed over 5 km: {middle:.0f} km/h, nine in ten between {low:.0f} and {high:.0f}")

    if args.plot:
        density.plot().savefig(args.plot)
        print(f"Wrote {args.plot}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Densities of bicycle rides")
    parser.add_argument(
        "-n", "--num-steps", type=int, help="training steps; by default it stops by itself"
    )
    parser.add_argument("--max-seconds", type=float, default=60.0, help="of each of two fits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="FILE.png", help="write a figure of data and draws")
    main(parser.parse_args())
