# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Training never waits for the device: nothing but the looks every 50 steps asks for a value."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_flows import FlowDensity, FlowVI
from pyro_flows.training import loop, steps

aten = torch.ops.aten
TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
Y = torch.tensor([2.0, -1.0, 0.5, 3.0])


class Waits(TorchDispatchMode):
    """Counts the operations of which Python asks for a value, or for a shape that needs one."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
            self.count += any(i is not None and i.dtype == torch.bool for i in args[1])
        else:
            self.count += func is aten._linalg_check_errors.default or not TAGS.isdisjoint(
                func.tags
            )
        return func(*args, **(kwargs or {}))


def schools(y):
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("groups", len(y)):
        effect = pyro.sample("effect", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal(effect, 1.0), obs=y)


def constrained(y):
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))  # picks elements by a mask
    edge = pyro.sample("edge", dist.Uniform(-1.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(factor[..., 2, 0] * share[..., 1], edge.exp()), obs=y)


def discrete(y):
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    scale = pyro.sample("scale", dist.HalfCauchy(1.0))
    with pyro.plate("rows", len(y)):
        kind = pyro.sample("kind", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(loc + 2 * kind, scale), obs=y)


class Enough(BaseException):
    """No ``Exception``, so that nothing takes it for a step that failed."""


@pytest.fixture
def waits(monkeypatch):
    """Counts waits inside of steps, and ends training after a few."""
    waits = Waits()

    def counted(*args):
        step, left = steps.StepByStep(*args), iter(range(5))

        def take(rate):
            if next(left, None) is None:
                raise Enough
            with waits:
                return step(rate)

        return take

    monkeypatch.setattr(loop, "StepByStep", counted)
    return waits


def test_waits_are_seen(waits):
    mask = torch.tensor([True, False])
    with waits:
        torch.zeros(2)[mask], float(torch.ones(2).sum()), torch.zeros(2).nonzero()
        torch.zeros(2)[torch.tensor([1])]
    assert waits.count == 3


@pytest.mark.parametrize(
    ("model", "flow"),
    [
        *((schools, flow) for flow in ("default", "nsf", "maf")),
        (constrained, "default"),
        (discrete, "nsf"),
    ],
)
def test_a_step_of_inference(waits, model, flow):
    with pytest.raises(Enough):
        FlowVI(model, flow=flow, seed=1, progress=False).run(Y)
    assert waits.count == 0


@pytest.mark.parametrize("flow", ["nsf", "maf"])
def test_a_step_of_density_estimation(waits, flow):
    rows = torch.randn(256, 3, generator=torch.Generator().manual_seed(0))
    with pytest.raises(Enough):
        FlowDensity(flow, seed=1, progress=False).fit(rows)
    assert waits.count == 0
