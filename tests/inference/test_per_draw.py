# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""New data from draws: every distribution right, clean shapes, quick; discrete sites, too."""

import time

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive, config_enumerate
from scipy import stats

from pyro_flows import FlowVI, predictive
from pyro_flows.errors import ChangedModelError, DataError
from pyro_flows.inference.per_draw import PerDraw


def regression(x, y=None):
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    sd = pyro.sample("sd", dist.HalfNormal(torch.tensor(1.0)))
    mean = pyro.deterministic("mean", intercept + x @ slopes)
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(mean, sd), obs=y)


def draws_of_regression(n):
    return {
        "intercept": torch.randn(n),
        "slopes": torch.randn(n, 3),
        "sd": 0.1 + torch.rand(n),
    }


def counting(runs):
    """Count how often the model is run."""
    run, count = runs.run, [0]

    def counted(*args, **kwargs):
        count[0] += 1
        return run(*args, **kwargs)

    runs.run = counted
    return count


LIKELIHOODS = {
    "normal": lambda a: dist.Normal(a, 1.0),
    "the same for all": lambda a: dist.Normal(torch.tensor(0.5), 1.0),
    "student t": lambda a: dist.StudentT(4.0, a, 1.0),
    "gamma": lambda a: dist.Gamma(2.0 + a**2, 1.0),
    "beta": lambda a: dist.Beta(2.0 + a**2, 1.5),
    "dirichlet": lambda a: dist.Dirichlet(torch.stack([a**2 + 1, a**2 + 0.5, 0 * a + 2])),
    "poisson": lambda a: dist.Poisson(a.exp()),
    "bernoulli": lambda a: dist.Bernoulli(logits=a),
    "binomial": lambda a: dist.Binomial(10, logits=a),
    "beta binomial": lambda a: dist.BetaBinomial(2 + a**2, torch.tensor(2.0), 10),
    "negative binomial": lambda a: dist.NegativeBinomial(5.0, logits=a),
    "categorical": lambda a: dist.Categorical(logits=torch.stack([a, -a, 0 * a])),
    "multinomial": lambda a: dist.Multinomial(10, logits=torch.stack([a, -a, 0 * a])),
    "ordered logistic": lambda a: dist.OrderedLogistic(a, torch.tensor([-1.0, 1.0])),
    "geometric": lambda a: dist.Geometric(logits=a),
    "exponential": lambda a: dist.Exponential(a.exp()),
    "weibull": lambda a: dist.Weibull(1.0, 2.0 + a**2),
    "laplace": lambda a: dist.Laplace(a, 1.0),
    "lognormal": lambda a: dist.LogNormal(a, 1.0),
    "cauchy": lambda a: dist.Cauchy(a, 1.0),
    "half cauchy": lambda a: dist.HalfCauchy(1.0 + a**2),
    "uniform": lambda a: dist.Uniform(a, a + 1),
    "multivariate": lambda a: dist.MultivariateNormal(a * torch.ones(2), torch.eye(2)),
    "zero inflated": lambda a: dist.ZeroInflatedPoisson(a.exp(), gate=torch.tensor(0.3)),
    "mixture": lambda a: dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2)), dist.Normal(torch.stack([a, a + 3]), 1.0)
    ),
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_every_distribution_is_drawn_from_at_once_and_right(name):
    likelihood = LIKELIHOODS[name]

    def model():
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            fn = likelihood(a)
            pyro.sample("y", fn.expand((3,)))

    a = torch.linspace(-1, 1, 1500)
    runs = PerDraw(model, (), {}, {"a": a})
    count = counting(runs)
    found = runs.new_data()["y"]
    assert count[0] <= 2, "draw by draw"
    expected = torch.stack([likelihood(x).expand((3,)).sample() for x in a])
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    for half in (slice(0, 750), slice(750, None)):  # it follows a
        one, other = (x[half].double().flatten().numpy() for x in (found, expected))
        assert stats.ks_2samp(one, other, method="asymp").pvalue > 1e-4
    # No two draws, and no two elements of a draw, share their random numbers.
    flat = found.double().reshape(1500, 3, -1)[:, :, 0]
    assert len(flat.unique(dim=0)) >= 8
    pairs = np.corrcoef(stats.rankdata(flat.numpy(), axis=0), rowvar=False)
    assert not (flat[:, 0] == flat[:, 1]).all()
    assert abs(pairs[0, 1]) < 0.95


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_same_as_pyros_predictive(dtype):
    torch.set_default_dtype(dtype)
    x, samples = torch.randn(7, 3), draws_of_regression(4000)
    found = predictive(regression, samples, x)
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "mean": (4000, 7),
        "y": (4000, 7),
    }
    assert {value.dtype for value in found.values()} == {dtype}
    mean = samples["intercept"][:, None] + samples["slopes"] @ x.T
    torch.testing.assert_close(found["mean"], mean)
    expected = Predictive(regression, samples)(x)["y"]
    for i in range(7):
        one, other = found["y"][:, i].numpy(), expected[:, i].numpy()
        assert stats.ks_2samp(one, other).pvalue > 1e-4
    noise = ((found["y"] - mean) / samples["sd"][:, None]).numpy()
    assert stats.kstest(noise.flatten(), "norm").pvalue > 1e-4
    assert np.abs(np.corrcoef(noise.T) - np.eye(7)).max() < 0.08


def test_ten_times_as_fast_as_pyros_predictive():
    x, samples = torch.randn(100, 3), draws_of_regression(2000)
    predictive(regression, samples, x)

    def seconds(run):
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    ours = min(seconds(lambda: predictive(regression, samples, x)) for _ in range(3))
    few = {name: value[:200] for name, value in samples.items()}
    theirs = 10 * seconds(lambda: Predictive(regression, few)(x))
    assert theirs > 10 * ours


def test_scalars_and_events_have_clean_shapes():
    def model():
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("row", 4, dim=-2), pyro.plate("column", 3, dim=-1):
            pyro.sample("matrix", dist.Normal(torch.zeros(5), scale).to_event(1))
        pyro.sample("one", dist.Normal(0.0, scale))
        pyro.sample("simplex", dist.Dirichlet(torch.ones(4)))

    found = predictive(model, {"scale": torch.ones(20)})
    shapes = {name: tuple(value.shape) for name, value in found.items()}
    assert shapes == {"matrix": (20, 4, 3, 5), "one": (20,), "simplex": (20, 4)}


def test_a_deterministic_site_in_a_plate():
    def model(n):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", n):
            twice = pyro.deterministic("twice", (2 * loc).expand(n))
            pyro.sample("y", dist.Normal(twice, 0.1), obs=torch.zeros(n))

    found = predictive(model, {"loc": torch.arange(5.0)}, 3)
    assert found["twice"].tolist() == [[2.0 * i] * 3 for i in range(5)]
    assert float((found["y"] - found["twice"]).abs().max()) < 1


def test_what_cannot_be_vectorised_is_still_right():
    def model(x):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        shift = 5.0 if float(mean) > 0 else -5.0  # a value read out of a tensor
        with pyro.plate("data", len(x)):
            pyro.sample("angle", dist.VonMises(mean, 50.0))
            pyro.sample("y", dist.Normal(shift, 0.1))

    mean = torch.linspace(-1, 1, 40)
    found = predictive(model, {"mean": mean}, torch.zeros(2))
    assert bool((found["y"].sign() == mean.sign()[:, None]).all())
    assert float((found["angle"] - mean[:, None]).abs().max()) < 1.0


def test_seeds_and_the_global_state():
    samples, x = draws_of_regression(10), torch.randn(2, 3)
    state = torch.get_rng_state()
    first, again = (predictive(regression, samples, x, seed=3)["y"] for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(first, predictive(regression, samples, x, seed=4)["y"])
    loose = predictive(regression, samples, x)["y"]
    assert not torch.equal(loose, predictive(regression, samples, x)["y"])


def test_draws_of_a_deterministic_site_are_made_anew():
    samples = {**draws_of_regression(5), "mean": torch.full((5, 2), 100.0)}
    found = predictive(regression, samples, torch.zeros(3, 3))
    assert float(found["mean"].max()) < 10


def test_a_latent_that_grows_with_the_data_is_refused():
    def model(y):
        with pyro.plate("data", len(y)):
            theta = pyro.sample("theta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    with pytest.raises(ChangedModelError, match=r"'theta' has shape \(3,\).*have \(8,\)"):
        predictive(model, {"theta": torch.zeros(10, 8)}, torch.zeros(3))


@pytest.mark.parametrize(
    "samples",
    [
        {},
        {"a": torch.tensor(1.0)},
        {"a": torch.zeros(0)},
        {"a": torch.zeros(2), "b": torch.zeros(3)},
    ],
)
def test_no_draws(samples):
    with pytest.raises(DataError, match="expected draws"):
        predictive(regression, samples, torch.zeros(2, 3))


@pytest.mark.parametrize("samples", [{"a": [1.0, 2.0]}, [torch.zeros(2)]])
def test_draws_that_are_no_tensors(samples):
    with pytest.raises(DataError, match=r"dict of site name to tensor.*but got .*list"):
        predictive(regression, samples, torch.zeros(2, 3))


class TestPosterior:
    def test_new_predictors(self):
        x = torch.randn(30, 3)
        y = x @ torch.tensor([1.0, -2.0, 0.5]) + 0.1 * torch.randn(30)
        posterior = FlowVI(regression, num_steps=50, progress=False).run(x, y=y)
        new = posterior.predict(10 * torch.eye(3), draws=500)
        assert new["y"].shape == (500, 3)
        torch.testing.assert_close(
            new["mean"].mean(0), torch.tensor([10.0, -20.0, 5.0]), atol=1.0, rtol=0.0
        )
        assert posterior.predict(draws=50)["y"].shape == (50, 30)
        assert torch.equal(new["y"], posterior.predict(10 * torch.eye(3), draws=500)["y"])

    def test_parameters_are_those_of_the_fit(self):
        def model(y=None):
            shift = pyro.param("shift", torch.tensor(0.0))
            scale = pyro.sample("scale", dist.LogNormal(-3.0, 0.01))
            with pyro.plate("data", 50):
                pyro.sample("y", dist.Normal(shift, scale), obs=y)

        posterior = FlowVI(model, num_steps=400, progress=False).run(y=torch.full((50,), 2.0))
        pyro.get_param_store()["shift"] = torch.tensor(-7.0)
        found = float(posterior.predict(None, draws=100)["y"].mean())
        assert found == pytest.approx(float(posterior.parameters["shift"]), abs=0.1)
        assert found > 1

    def test_a_discrete_site_of_each_point_is_drawn_anew(self):
        @config_enumerate
        def model(y=None):
            share = pyro.sample("share", dist.Beta(30.0, 10.0))
            with pyro.plate("data", 40):
                which = pyro.sample("which", dist.Bernoulli(share))
                pyro.sample("y", dist.Normal(10 * which, 0.1), obs=y)

        y = torch.cat([torch.zeros(10), torch.full((30,), 10.0)])
        posterior = FlowVI(model, num_steps=50, progress=False).run(y)
        new = posterior.predict(draws=400)
        high = (new["y"] > 5).double()
        assert torch.equal(high, new["which"].double())
        assert float(high.mean()) == pytest.approx(0.75, abs=0.06)
        assert 0.6 < float(high[:, 0].mean()) < 0.9  # not 0, as the first point was

    def test_a_discrete_site_of_all_is_drawn_given_the_data(self):
        @config_enumerate
        def model(y=None, n=3):
            which = pyro.sample("which", dist.Bernoulli(0.01))
            loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
            with pyro.plate("data", n):
                pyro.sample("y", dist.Normal(loc + 20 * which, 1.0), obs=y)

        posterior = FlowVI(model, num_steps=50, progress=False).run(torch.full((3,), 20.0))
        new = posterior.predict(None, 5, draws=200)
        assert new["which"].shape == (200,)
        assert bool((new["which"] == 1).all())
        assert new["y"].shape == (200, 5)
        assert float(new["y"].mean()) == pytest.approx(20, abs=1)
