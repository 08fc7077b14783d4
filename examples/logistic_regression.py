# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""How likely was damage to the Challenger's O-rings at 31 degrees Fahrenheit?

On 28 January 1986 the space shuttle was launched at 31 F, far below any earlier launch. The 23
launches before it whose boosters were recovered tell whether any of six O-rings in the field
joints had been damaged. A logistic regression on the raw temperature has a posterior in which
intercept and slope are almost one line (a correlation of about -0.99).

Data: launch temperatures and O-ring damage from the report of the Presidential Commission on the
Space Shuttle Challenger Accident (1986), a work of the US government in the public domain; as
tabulated by Dalal, Fowlkes and Hoadley (1989), J. Am. Stat. Assoc. 84, 945-957.

Run it with::

    python examples/logistic_regression.py --plot o_rings.png

It prints::

    Verdict: reliable
      The guide's draws can be used as they are.
      gap log evidence - ELBO 0.0003 ± 0.0001 nats.
      k-hat 0.98 (threshold 0.70, 40000 draws); effective share 99.9%.
      That k-hat is of weights that no draw is given here; the largest is 3.4 times their mean.
    ELBO -16.3547 ± 0.0001, log evidence -16.3544 ± 0.0001
    Sites: intercept, slope
    Cost: 62,636 gradients, 800 steps, 12.0 s
    Stopped: the gap to the log evidence is as small as is asked for
                 mean     sd     5%  median      95%     mcse   khat
    intercept  15.645  6.946  5.316  15.049  27.9490  0.03470  0.985
    slope      -0.242  0.102 -0.423  -0.233  -0.0907  0.00051  0.985
    P(damage | 31 F) = 1.000, 90 % interval 0.914 to 1.000
    P(damage | 53 F) = 0.939, 90 % interval 0.584 to 0.997
    P(damage | 65 F) = 0.481, 90 % interval 0.246 to 0.731
    P(damage | 75 F) = 0.083, 90 % interval 0.016 to 0.248
"""

from __future__ import annotations

import argparse

import pyro
import pyro.distributions as dist
import torch

from pyro_flows import FlowVI

# In the order of the launches: temperature of the joints (F), and whether any O-ring was damaged.
TEMPERATURE = (66, 70, 69, 68, 67, 72, 73, 70, 57, 63, 70, 78, 67, 53, 67, 75, 70, 81, 76, 79)
TEMPERATURE += (75, 76, 58)
DAMAGE = (0, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 0, 1)


def model(temperature: torch.Tensor, damage: torch.Tensor | None = None) -> None:
    """Logistic regression of damage on the temperature in Fahrenheit, not centred."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 20.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("launch", len(temperature)):
        logits = intercept + slope * temperature
        pyro.sample("damage", dist.Bernoulli(logits=logits), obs=damage)


def main(args: argparse.Namespace) -> None:
    """Fits the model and prints the probability of damage at a few temperatures."""
    temperature = torch.tensor(TEMPERATURE, dtype=torch.float64)
    damage = torch.tensor(DAMAGE, dtype=torch.float64)
    flow_vi = FlowVI(model, seed=args.seed, num_steps=args.num_steps)
    posterior = flow_vi.run(temperature, damage=damage)
    print(posterior)
    print(posterior.summary())

    draws = posterior.draws(4000)
    levels = torch.tensor([0.05, 0.5, 0.95], dtype=draws["slope"].dtype)
    for degrees in (31, 53, 65, 75):
        probability = torch.sigmoid(draws["intercept"] + draws["slope"] * degrees)
        low, middle, high = probability.quantile(levels).tolist()
        print(f"P(damage | {degrees} F) = {middle:.3f}, 90 % interval {low:.3f} to {high:.3f}")

    if args.plot:
        posterior.plot().savefig(args.plot)
        print(f"Wrote {args.plot}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Logistic regression of O-ring damage")
    parser.add_argument(
        "-n", "--num-steps", type=int, help="training steps; by default it stops by itself"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="FILE.png", help="write a figure of the posterior")
    main(parser.parse_args())
