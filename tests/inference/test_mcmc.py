# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Pyro's MCMC for ArviZ: chains, names of axes, divergences, densities."""

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import HMC, MCMC, NUTS
from pyro.infer.mcmc.util import initialize_model

from pyro_flows import from_mcmc
from pyro_flows.errors import DataError

from .test_posterior import attributes, group, group_names

SIGMA = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
Y = torch.tensor([1.0, -2.0, 4.0], dtype=torch.float64)


def schools(sigma, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.LogNormal(0.0, 1.0))
    with pyro.plate("school", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.deterministic("doubled", 2 * theta)
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


@pytest.fixture(scope="module")
def run():
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    mcmc = MCMC(
        NUTS(schools, step_size=2.5, adapt_step_size=False),
        num_samples=20,
        warmup_steps=5,
        num_chains=1,
        disable_progbar=True,
    )
    mcmc.run(SIGMA, y=Y)
    return mcmc


@pytest.fixture(scope="module")
def converted(run):
    torch.set_default_dtype(torch.float64)
    return from_mcmc(run, coords={"school": ["A", "B", "C"]}, predictions={"sigma": SIGMA})


def test_groups_and_axes(converted):
    assert group_names(converted) >= {
        *("posterior", "sample_stats", "log_likelihood", "log_prior", "posterior_predictive"),
        *("predictions", "prior", "prior_predictive", "observed_data", "constant_data"),
    }
    found = group(converted, "posterior")
    assert found["theta"].dims == ("chain", "draw", "school")
    assert found["theta"].shape == (1, 20, 3)
    assert found["school"].values.tolist() == ["A", "B", "C"]
    np.testing.assert_allclose(found["doubled"].values, 2 * found["theta"].values)
    assert group(converted, "constant_data")["sigma"].values.tolist() == SIGMA.tolist()


def test_values_are_those_of_the_chains(converted, run):
    for name, value in run.get_samples(group_by_chain=True).items():
        np.testing.assert_array_equal(group(converted, "posterior")[name].values, value.numpy())


def test_log_densities(converted):
    values = {n: torch.as_tensor(v.values) for n, v in group(converted, "posterior").items()}
    expected = dist.Normal(values["theta"], SIGMA).log_prob(Y)
    found = group(converted, "log_likelihood")["y"].values
    np.testing.assert_allclose(found, expected.numpy())
    prior = sum(
        v.values.reshape(1, 20, -1).sum(-1) for v in group(converted, "log_prior").values()
    )
    lp = group(converted, "sample_stats")["lp"].values
    np.testing.assert_allclose(lp, prior + found.sum(-1) + values["tau"].log().numpy())


def test_divergences(converted, run):
    marked = group(converted, "sample_stats")["diverging"].values
    assert np.flatnonzero(marked[0]).tolist() == sorted(
        set(run.diagnostics()["divergences"]["chain 0"])
    )
    assert attributes(converted)["inference_method"] == "NUTS"


@pytest.mark.filterwarnings("ignore:num_chains=2 is more than available_cpu")
def test_several_chains():
    mcmc = MCMC(
        HMC(schools, step_size=0.1, num_steps=3),
        num_samples=25,
        warmup_steps=5,
        num_chains=2,
        mp_context="fork",
        disable_progbar=True,
    )
    mcmc.run(SIGMA, Y)
    found = from_mcmc(mcmc, prior=0)
    posterior, samples = group(found, "posterior"), mcmc.get_samples(group_by_chain=True)
    assert posterior["theta"].shape == (2, 25, 3)
    np.testing.assert_array_equal(posterior["theta"].values, samples["theta"].numpy())
    new = group(found, "posterior_predictive")["y"].values
    assert new.shape == (2, 25, 3)
    # A chain's new data belong to that chain's draws.
    for chain in range(2):
        noise = (new[chain] - posterior["theta"].values[chain]) / SIGMA.numpy()
        assert abs(noise.mean()) < 0.5
        assert noise.std() == pytest.approx(1, abs=0.3)
    assert len(attributes(found)["acceptance_rate"]) == 2
    assert az.summary(found, var_names=["mu"]).shape[0] == 1


def test_without_a_model():
    def potential(z):
        return 0.5 * (z["x"] ** 2).sum()

    kernel = NUTS(potential_fn=potential)
    mcmc = MCMC(
        kernel,
        num_samples=10,
        warmup_steps=5,
        initial_params={"x": torch.zeros(2)},
        disable_progbar=True,
    )
    mcmc.run()
    found = from_mcmc(mcmc, dims={"x": ["element"]})
    assert group(found, "posterior")["x"].dims == ("chain", "draw", "element")
    assert group_names(found) == {"posterior", "sample_stats"} | (group_names(found) & {"/", ""})


def test_before_it_was_run():
    with pytest.raises(DataError, match="has no samples"):
        from_mcmc(MCMC(NUTS(schools), num_samples=5, disable_progbar=True))


def test_the_global_state_is_left(run):
    state = torch.get_rng_state()
    first, again = (from_mcmc(run, prior=3) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state)
    one, other = (group(found, "posterior_predictive")["y"].values for found in (first, again))
    np.testing.assert_array_equal(one, other)


def test_lp_is_that_of_nuts():
    def model(x, y):
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
        top = pyro.sample("top", dist.Gamma(2.0, 1.0))
        with pyro.plate("group", 2):
            low = pyro.sample("low", dist.Uniform(-1.0, 3.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ weights + low.sum(), top), obs=y)

    pyro.set_rng_seed(0)
    x, y = torch.randn(5, 3), torch.randn(5)
    mcmc = MCMC(NUTS(model), num_samples=10, warmup_steps=10, disable_progbar=True)
    mcmc.run(x, y)
    _, potential, transforms, _ = initialize_model(model, (x, y))
    draws = mcmc.get_samples()
    expected = [
        -float(potential({name: transforms[name](value[i]) for name, value in draws.items()}))
        for i in range(10)
    ]
    found = group(from_mcmc(mcmc, prior=0, predictive=False), "sample_stats")["lp"].values[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_discrete_sites_that_hmc_sums_out():
    def model(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("y", dist.Normal(mu[k], 1.0), obs=y)

    def vectorised(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("y", dist.Normal(mu[..., k], 1.0), obs=y)

    for each in (model, vectorised):
        mcmc = MCMC(NUTS(each), num_samples=8, warmup_steps=4, disable_progbar=True)
        mcmc.run(torch.tensor([-2.0, 2.0, 1.5]))
        found = from_mcmc(mcmc, prior=0)
        assert set(group(found, "posterior").data_vars) == {"mu"}
        assert "lp" not in group(found, "sample_stats")
        assert not {"log_likelihood", "log_prior"} & group_names(found)
        assert "enumerated discrete sites" in attributes(found)["log_likelihood_left_out"]
        assert group(found, "posterior_predictive")["y"].shape == (1, 8, 3)
