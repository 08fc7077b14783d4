# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Every named flow as a guide: a name works wherever a flow is asked for."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_flows import AutoFlow, flows, transforms
from pyro_flows.errors import GuideError

NAMES = [name for name in flows.available() if flows.facts(name).space == "real numbers"]


def model():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    pyro.sample("y", dist.Normal(mu, 1 + tau), obs=torch.tensor(2.0))


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_svi(name):
    guide = AutoFlow(model, flow=name)
    guide.setup()
    before = {key: value.clone() for key, value in guide.state_dict().items()}
    elbo = Trace_ELBO(4, vectorize_particles=True, max_plate_nesting=0)
    svi = SVI(model, guide, pyro.optim.ClippedAdam({"lr": 0.01}), elbo)
    losses = [svi.step() for _ in range(2)]
    assert all(abs(loss) < 100 for loss in losses)
    after = guide.state_dict()
    assert any((after[key] != value).any() for key, value in before.items())
    assert set(guide.median()) == {"mu", "tau"}


def test_a_flow_of_angles_is_refused():
    guide = AutoFlow(model, flow="ncsf")
    with pytest.raises(GuideError, match="AutoFlow expected a flow of real vectors, but got one"):
        guide.setup()


class OwnConstraint(transforms.Shift):
    """A univariate of the real line that says so by a constraint of its own."""

    domain = codomain = torch.distributions.constraints.independent(
        torch.distributions.constraints.real, 0
    )


def test_the_real_line_by_any_name():
    """A layer of another package may spell its space in its own way."""
    guide = AutoFlow(model, flow=lambda dim: [transforms.Elementwise(dim, OwnConstraint())])
    assert guide().keys() == {"mu", "tau"}
