# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Posterior predictive checks of fits."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal
from scipy import stats

from pyro_flows import AutoFlow, FlowVI, assess, predictive_check
from pyro_flows.errors import ModelError, OptionError
from pyro_flows.transforms import CholeskyAffine

from .models import normal_mean, normal_mean_exact

DATA = torch.tensor([1.0, 2.0, 3.0, 2.5, 0.5, 1.5, 4.0, 2.0], dtype=torch.float64)


def quick(model, *args, **kwargs):
    """A short fit with an affine guide."""
    guide = AutoFlow(model, flow=lambda dim: [CholeskyAffine(dim)])
    return FlowVI(model, guide, seed=0, num_steps=40, progress=False).run(*args, **kwargs)


def poisson(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def exact_pit(y):
    """The predictive distribution function of each point, given the others, there."""
    result = []
    for i in range(len(y)):
        mean, sd, _ = normal_mean_exact(torch.cat([y[:i], y[i + 1 :]]))
        result.append(stats.norm.cdf(float(y[i]), mean, math.hypot(sd, 1.0)))
    return np.array(result)


def test_loo_pit_is_right_where_the_guide_is_wrong():
    mean, sd, _ = normal_mean_exact(DATA)
    guide = AutoDiagonalNormal(normal_mean)
    guide(DATA)
    with torch.no_grad():
        guide.loc.fill_(mean + 0.5 * sd)
        guide.scale = torch.full((1,), 1.3 * sd)
    check = predictive_check(assess(normal_mean, guide, DATA), draws=10_000)
    np.testing.assert_allclose(check.pit, exact_pit(DATA), atol=0.03)
    assert check.replicated.shape == (10_000, 8)
    # The new data are the posterior's, not the guide's.
    assert check.replicated.mean() == pytest.approx(mean, abs=0.1 * sd)
    assert not check.discrete


def test_overdispersed_counts_are_found_out():
    torch.manual_seed(0)
    y = dist.NegativeBinomial(2.0, torch.tensor(0.7)).sample((80,))

    def zeros(y):
        return np.mean(y == 0)

    check = predictive_check(quick(poisson, y), statistics=["mean", "sd", zeros])
    assert check.discrete
    assert list(check.table.index) == ["mean", "sd", "zeros"]
    assert check.table.loc["mean", "p_value"] > 0.5
    assert check.table.loc["sd", "p_value"] < 0.01
    assert check.table.loc["zeros", "p_value"] < 0.01
    assert check.pit_p_value < 0.01
    assert [ax.get_title(loc="left") for ax in check.plot().axes][1].startswith("LOO-PIT")


def test_a_model_that_is_right_passes():
    torch.manual_seed(1)
    y = dist.Poisson(torch.tensor(4.0)).sample((80,))
    posterior = quick(poisson, y)
    check, again = (predictive_check(posterior, draws=1000) for _ in range(2))
    assert (check.table["p_value"] > 0.05).all()
    assert check.pit_p_value > 0.05
    np.testing.assert_array_equal(check.pit, again.pit)


def test_masked_elements_are_left_out():
    mask = torch.tensor([True, True, False, True, True, False, True, True])

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)), poutine.mask(mask=mask):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    y = torch.where(mask, DATA, torch.tensor(1e6))
    check = predictive_check(quick(model, y), draws=500)
    np.testing.assert_array_equal(check.observed, DATA[mask].numpy())
    assert check.replicated.shape == (500, 6)
    assert check.pit.shape == (6,)
    assert check.table.loc["max", "observed"] == 4.0


def test_vectors():
    y = torch.randn(6, 3)

    def model(y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("rows", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

    check = predictive_check(quick(model, y), draws=300)
    assert check.replicated.shape == (300, 6, 3)
    assert check.pit.shape == (6,)  # of one element each, since they may hang together


def test_without_a_pointwise_likelihood_a_note_says_so():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(mean + 3 * k, 1.0), obs=y)

    check = predictive_check(quick(model, DATA), draws=300)
    assert check.pit is None
    assert any("enumerated discrete sites" in note for note in check.notes)
    assert check.table["p_value"].notna().all()
    assert len(check.plot().axes) == 6


def test_refusals():
    def two(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        pyro.sample("a", dist.Normal(mean, 1.0), obs=y[0])
        pyro.sample("b", dist.Normal(mean, 1.0), obs=y[1])

    posterior = quick(two, DATA)
    with pytest.raises(OptionError, match="which of the 2 observed sites"):
        predictive_check(posterior)
    assert predictive_check(posterior, "b", statistics=["mean"], draws=200).observed == DATA[1]

    def none():
        pyro.sample("x", dist.Normal(0.0, 1.0))

    with pytest.raises(ModelError, match="predictive_check expected a model with data"):
        predictive_check(quick(none))


def test_events_that_are_known_in_part():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(y)):
            loc = torch.stack([mean, mean])
            fn = dist.NanMaskedMultivariateNormal(loc, torch.eye(2))
            pyro.sample("y", fn, obs=y)

    y = torch.randn(8, 2)
    y[0, 1] = y[3, 0] = math.nan
    posterior = FlowVI(model, num_steps=5, progress=False).run(y)
    check = predictive_check(posterior, draws=300)
    assert check.observed.shape == (14,)
    assert check.pit.shape == (8,)
    assert check.replicated.shape == (300, 14)
    assert check.table.notna().all(axis=None)
    assert check.table.loc["mean", "observed"] == pytest.approx(float(y.nanmean()))
    assert bool(((check.pit > 0) & (check.pit < 1)).all())


def test_elements_that_hang_together_are_no_evidence():
    """Events that are all high or all low, from the right model."""
    cov = 0.95 + 0.05 * torch.eye(20)

    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.MultivariateNormal(mean.expand(20), cov), obs=y)

    y = dist.MultivariateNormal(torch.zeros(20), cov).sample((8,))
    check = predictive_check(FlowVI(model, num_steps=5, progress=False).run(y), draws=300)
    assert check.pit.shape == (8,)
    assert check.pit_p_value > 0.05
