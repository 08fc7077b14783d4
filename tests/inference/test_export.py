# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""All of ArviZ's groups: what they hold, how their axes are named, what is left out and why."""

import json
import warnings

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_flows import FlowVI
from pyro_flows.diagnostics import load_netcdf, save_netcdf
from pyro_flows.errors import GuideError, OptionError
from pyro_flows.inference import per_draw

from .models import flat
from .test_posterior import attributes, group, group_names

SIGMA = torch.tensor([1.0, 2.0, 1.5, 1.0], dtype=torch.float64)
COUNTS = torch.tensor([[1, 0, 2], [3, 1, 0], [0, 0, 1], [2, 2, 2]])


def rates(sigma, exposure, y=None, *, words=("a", "b")):
    """Groups with a constant by argument, an event dim with a name, a deterministic site."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    kind = pyro.sample(
        "kind",
        dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1),
        infer={"event_dims": ["colour"]},
    )
    simplex = pyro.sample("simplex", dist.Dirichlet(torch.ones(3, dtype=torch.float64)))
    with pyro.plate("place", len(sigma)):
        theta = pyro.sample("theta", dist.Normal(mu, sigma))
        pyro.deterministic("doubled", 2 * theta)
        rate = (theta[..., None] + kind + simplex).exp() * exposure
        pyro.sample("y", dist.Poisson(rate).to_event(1), obs=y)


@pytest.fixture(scope="module")
def posterior():
    torch.set_default_dtype(torch.float64)
    vi = FlowVI(rates, num_steps=20, progress=False)
    return vi.run(SIGMA, 2.5, COUNTS)


@pytest.fixture(scope="module")
def complete(posterior):
    torch.set_default_dtype(torch.float64)
    new = {"sigma": SIGMA, "exposure": 7.0}
    labels = {"place": ["N", "E", "S", "W"], "colour": ["red", "green", "blue"]}
    return posterior.to_arviz(200, prior=50, predictions=new, coords=labels)


def test_every_group_is_there(complete):
    assert group_names(complete) >= {
        *("posterior", "unconstrained_posterior", "sample_stats", "log_likelihood", "log_prior"),
        *("posterior_predictive", "predictions", "predictions_constant_data"),
        *("prior", "prior_predictive", "observed_data", "constant_data", "training"),
    }


def test_axes_have_names_and_labels(complete):
    found = group(complete, "posterior")
    assert found["theta"].dims == ("chain", "draw", "place")
    assert found["doubled"].dims == ("chain", "draw", "place")
    assert found["kind"].dims == ("chain", "draw", "colour")
    assert found["simplex"].dims == ("chain", "draw", "simplex_dim_0")
    assert found["place"].values.tolist() == ["N", "E", "S", "W"]
    assert found["colour"].values.tolist() == ["red", "green", "blue"]
    assert group(complete, "observed_data")["y"].dims == ("place", "y_dim_1")
    assert group(complete, "log_likelihood")["y"].dims == ("chain", "draw", "place")
    assert group(complete, "prior")["theta"].dims == ("chain", "draw", "place")


def test_dims_may_be_given(posterior):
    found = posterior.to_arviz(20, dims={"y": ["place", "kind_of_y"], "simplex": ["share"]})
    assert group(found, "observed_data")["y"].dims == ("place", "kind_of_y")
    assert group(found, "posterior")["simplex"].dims == ("chain", "draw", "share")
    with pytest.raises(ValueError, match="Expected 3 elements along 'place'"):
        posterior.to_arviz(20, coords={"place": ["too", "few", "names"]})


def test_constants_are_the_other_arguments(complete):
    constant = group(complete, "constant_data")
    assert set(constant.data_vars) == {"sigma", "exposure"}
    assert constant["sigma"].dims == ("place",)
    assert float(constant["exposure"]) == 2.5
    assert float(group(complete, "predictions_constant_data")["exposure"]) == 7.0


def test_log_prior_by_element(complete, posterior):
    found, values = group(complete, "log_prior"), group(complete, "posterior")
    assert {n: v.shape for n, v in found.data_vars.items()} == {
        "mu": (1, 200),
        "kind": (1, 200),
        "simplex": (1, 200),
        "theta": (1, 200, 4),
    }
    theta, mu = (torch.as_tensor(values[name].values) for name in ("theta", "mu"))
    expected = dist.Normal(mu[..., None], SIGMA).log_prob(theta)
    np.testing.assert_allclose(found["theta"].values, expected.numpy())


def test_prior_and_likelihood_make_up_the_log_joint(complete, posterior):
    # lp is on the unconstrained scale: the simplex adds its Jacobian.
    found = posterior.to_arviz(200, prior=0)
    total = sum(
        group(found, "log_prior")[name].values.reshape(200, -1).sum(-1)
        for name in ("mu", "kind", "simplex", "theta")
    )
    total += group(found, "log_likelihood")["y"].values.reshape(200, -1).sum(-1)
    unconstrained = torch.as_tensor(group(found, "unconstrained_posterior")["simplex"].values[0])
    to_simplex = torch.distributions.biject_to(dist.Dirichlet(torch.ones(3)).support)
    jacobian = to_simplex.log_abs_det_jacobian(unconstrained, to_simplex(unconstrained))
    lp = group(found, "sample_stats")["lp"].values[0]
    np.testing.assert_allclose(total + jacobian.numpy(), lp, rtol=1e-9)
    assert "prior" not in group_names(found)


def test_unconstrained_draws(complete):
    found, values = group(complete, "unconstrained_posterior"), group(complete, "posterior")
    assert found["simplex"].shape == (1, 200, 2)
    np.testing.assert_allclose(found["theta"].values, values["theta"].values)
    assert found["theta"].dims == ("chain", "draw", "place")


def test_prior_draws_are_from_the_prior(posterior):
    prior = group(posterior.to_arviz(20, prior=4000), "prior")
    assert float(prior["mu"].std()) == pytest.approx(1, abs=0.05)
    spread = np.sqrt(1 + SIGMA.numpy() ** 2)
    np.testing.assert_allclose(prior["theta"].values[0].std(0), spread, rtol=0.06)
    np.testing.assert_allclose(prior["doubled"].values, 2 * prior["theta"].values)


def test_predictions_for_other_sizes():
    def line(x, y=None):
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    x = torch.linspace(0, 1, 20)
    posterior = FlowVI(line, num_steps=20, progress=False).run(x, 3 * x)
    found = posterior.to_arviz(300, predictions=(torch.tensor([10.0, 20.0]),), prior=0)
    assert group(found, "posterior_predictive")["y"].shape == (1, 300, 20)
    new = group(found, "predictions")["y"]
    assert new.shape == (1, 300, 2)
    assert new.dims == ("chain", "draw", "data")
    slope = float(group(found, "posterior")["slope"].mean())
    np.testing.assert_allclose(new.values[0].mean(0) / slope, [10, 20], rtol=0.1)
    assert group(found, "predictions_constant_data")["x"].values.tolist() == [10, 20]


def test_what_is_left_out_says_why():
    def model(y):
        loc = flat("loc")
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    found = FlowVI(model, num_steps=5, progress=False).run(torch.ones(9)).to_arviz(20)
    assert not {"prior", "prior_predictive"} & group_names(found)
    assert "flat prior" in attributes(found)["prior_left_out"]
    assert group(found, "posterior_predictive")["y"].shape == (1, 20, 9)


def test_what_follows_from_a_site_summed_out_is_left_out():
    @pyro.infer.config_enumerate
    def model(y):
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-2.0, 2.0]), 1.0).to_event(1))
        pyro.deterministic("distance", loc[..., 1] - loc[..., 0])
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Categorical(torch.ones(2)))
            pyro.deterministic("mean", loc[..., k])
            pyro.sample("y", dist.Normal(loc[..., k], 1.0), obs=y)

    posterior = FlowVI(model, num_steps=2, progress=False).run(torch.tensor([-2.0, 2.0, 1.9]))
    found = posterior.to_arviz(40, predictive=False)
    assert attributes(found)["deterministic_left_out"] == "mean"
    assert set(group(found, "posterior").data_vars) == {"loc", "distance"}


def test_a_prior_at_which_the_model_fails(posterior, monkeypatch):
    def fails(*args, **kwargs):
        raise OverflowError("too large")

    monkeypatch.setattr(per_draw, "prior_draws", fails)
    found = posterior.to_arviz(20)
    assert "too large" in attributes(found)["prior_left_out"]


def test_names_that_clash():
    def model(county, y):
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("county", 3):
            effect = pyro.sample("effect", dist.Normal(level, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(effect[county], 1.0), obs=y)

    county = torch.tensor([0, 1, 2, 1, 0])
    found = FlowVI(model, num_steps=5, progress=False).run(county, torch.zeros(5)).to_arviz(20)
    assert group(found, "posterior")["effect"].dims == ("chain", "draw", "county")
    assert group(found, "constant_data")["county_data"].values.tolist() == county.tolist()


def test_a_predictor_that_equals_the_data():
    def line(x, y, again):
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 1.0), obs=y * 1 if again else y)

    x = torch.tensor([1.0, 2.0, 3.0])
    for again in (False, True):  # the data themselves, or a copy that the model makes
        posterior = FlowVI(line, num_steps=2, progress=False).run(x, x.clone(), again)
        found = posterior.to_arviz(20, prior=0, predictive=False)
        assert set(group(found, "constant_data").data_vars) == {"x", "again"}


def test_data_of_two_sites_that_are_equal_and_a_sparse_argument():
    def model(x, sparse, a, b):
        mean = pyro.sample("mean", dist.Normal(x, 10.0))
        with pyro.plate("data", len(a)):
            pyro.sample("s1", dist.Normal(mean, 1.0), obs=a * 1)
            pyro.sample("s2", dist.Normal(mean, 1.0), obs=b * 1)

    a = torch.tensor([1.0, 2.0, 3.0])
    args = torch.tensor(0.0), torch.eye(2).to_sparse(), a, a.clone()
    found = FlowVI(model, num_steps=2, progress=False).run(*args).to_arviz(20, prior=0)
    assert set(group(found, "constant_data").data_vars) == {"x"}


def test_data_of_numpy_in_another_shape():
    def line(y, x):
        slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)), pyro.plate("one", 1):
            pyro.sample(
                "z", dist.Normal(slope * torch.as_tensor(x), 1.0), obs=torch.as_tensor(y)[None]
            )

    y = np.array([1.0, 2.0, 3.0])
    found = FlowVI(line, num_steps=2, progress=False).run(y, y.copy()).to_arviz(20, prior=0)
    assert set(group(found, "constant_data").data_vars) == {"x"}


@pytest.mark.parametrize("draws", [0, -3, 2.0])
def test_no_number_of_draws(posterior, draws):
    with pytest.raises(GuideError, match=f"to_arviz expected draws >= 1, but got {draws}"):
        posterior.to_arviz(draws)
    with pytest.raises(GuideError, match=f"predict expected draws >= 1, but got {draws}"):
        posterior.predict(draws=draws)


def test_arviz_and_files(complete, tmp_path):
    again = load_netcdf(save_netcdf(complete, tmp_path / "fit.nc"))
    assert group_names(again) >= group_names(complete)
    assert json.loads(attributes(again)["reasons"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert "theta[N]" in az.summary(again, kind="stats").index
        loo = az.loo(again)
    elpd = getattr(loo, "elpd_loo", None) or loo.elpd
    assert np.isfinite(elpd)


def test_data_without_a_plate():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    y = torch.tensor([1.0, 2.0, 0.5])
    posterior = FlowVI(model, num_steps=5, progress=False).run(y)
    found = posterior.to_arviz(400)
    new = group(found, "posterior_predictive")["y"]
    assert new.dims == ("chain", "draw", "y_dim_0")
    noise = new.values[0] - group(found, "posterior")["mean"].values[0][:, None]
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.2  # each point's own
    assert group(found, "log_likelihood")["y"].shape == (1, 400, 3)
    assert posterior.predict(draws=7)["y"].shape == (7, 3)


@pytest.mark.parametrize("rows", [2, 3])
def test_data_that_are_broadcast_against_their_plates(rows):
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        with pyro.plate("row", rows, dim=-2), pyro.plate("column", 3, dim=-1):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    y = torch.tensor([1.0, 2.0, 0.5])
    found = FlowVI(model, num_steps=5, progress=False).run(y).to_arviz(20)
    for name in ("log_likelihood", "posterior_predictive"):
        assert group(found, name)["y"].dims == ("chain", "draw", "row", "column")
    observed = group(found, "observed_data")["y"]
    assert observed.dims == ("row", "column")
    np.testing.assert_array_equal(observed.values, y.expand(rows, 3).numpy())


def test_a_deterministic_site_with_an_event():
    def model(y):
        with pyro.plate("group", 3):
            x = pyro.sample("x", dist.Normal(torch.zeros(3, 3), 1.0).to_event(1))
            pyro.deterministic("twice", 2 * x, event_dim=1)
        pyro.sample("y", dist.Normal(x.sum(), 1.0), obs=y)

    found = FlowVI(model, num_steps=5, progress=False).run(torch.tensor(1.0)).to_arviz(20)
    assert group(found, "posterior")["twice"].dims == ("chain", "draw", "group", "twice_dim_1")


def test_arguments_that_make_no_sense(posterior):
    with pytest.raises(OptionError, match=r"Put a single one in a tuple: \(x,\)"):
        posterior.to_arviz(20, predictions=SIGMA)
    with pytest.raises(OptionError, match="got -1"):
        posterior.to_arviz(20, prior=-1)
