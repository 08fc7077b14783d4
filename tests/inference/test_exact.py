# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Exact refinement: right draws from guides that aren't, and a warning where they can't be had."""

import functools
import json
import math
import random
import re
import warnings
from types import SimpleNamespace

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
)
from torch.distributions import constraints

from pyro_flows import (
    AutoFlow,
    FlowVI,
    assess,
    importance_resampling,
    independence_metropolis,
    neutra_nuts,
)
from pyro_flows.diagnostics import group_dataset, load_netcdf, save_netcdf
from pyro_flows.errors import GuideError, OptionError
from pyro_flows.guides import LogJoint
from pyro_flows.inference import neutra

from .test_posterior import attributes, group, group_names

MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)
COVARIANCE = torch.tensor([[1.0, 0.8], [0.8, 2.0]], dtype=torch.float64)
METHODS = [importance_resampling, independence_metropolis, neutra_nuts]
SHORT = {"num_samples": 40, "warmup_steps": 20, "num_chains": 2}


def pair():
    """Two correlated normals."""
    pyro.sample("x", dist.MultivariateNormal(MEAN, COVARIANCE))


def with_normal(model, loc, scale_tril, *args):
    """A posterior whose guide is the given normal, right or not."""
    guide = AutoMultivariateNormal(model)
    with pyro.get_param_store().scope():
        guide(*args)
    with torch.no_grad():
        guide.loc.copy_(loc)
        guide.scale = scale_tril.diagonal()
        guide.scale_tril = scale_tril / scale_tril.diagonal()[:, None]
    return assess(model, guide, *args)


@functools.cache
def wrong():
    """A guide at 0.7 of the standard deviation and shifted by 0.3 of it."""
    scale = torch.linalg.cholesky(COVARIANCE)
    return with_normal(pair, MEAN + 0.3 * COVARIANCE.diagonal().sqrt(), 0.7 * scale)


@functools.cache
def exact_pair():
    return neutra_nuts(wrong(), num_samples=300, warmup_steps=150, progress=False)


def run(method, posterior, **options):
    options = {"progress": False, **options} if method is neutra_nuts else options
    return method(posterior, **options)


def quietly(method, posterior, **options):
    """Whatever it warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return run(method, posterior, **options)


def warned(method, posterior, **options):
    """What it warns of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", UserWarning)
        run(method, posterior, **options)
    return "\n".join(str(warning.message) for warning in said)


def short(method):
    """Options of a run that is only to be looked at."""
    return {"num_samples": 40} if method is importance_resampling else SHORT


def assert_normal(draws, mean, sd, *, mcse_mean=None, errors=4.0):
    """Mean, sd, 5% and 95% of (chain, draw) draws against a normal's, within errors."""
    standard = {
        "mean": float(az.mcse(draws, method="mean")) if mcse_mean is None else mcse_mean,
        "sd": float(az.mcse(draws, method="sd")),
        **{p: float(az.mcse(draws, method="quantile", prob=p)) for p in (0.05, 0.95)},
    }
    worse = 1.0 if mcse_mean is None else mcse_mean / float(az.mcse(draws, method="mean"))
    assert abs(draws.mean() - mean) < errors * standard["mean"]
    assert abs(draws.std() - sd) < errors * worse * standard["sd"]
    for p, z in ((0.05, -1.6449), (0.95, 1.6449)):
        assert abs(np.quantile(draws, p) - (mean + z * sd)) < errors * worse * standard[p]


class TestDrawsAreThePosteriors:
    """Of a guide at 0.7 of the sd, shifted by 0.3 of it; its own draws fail the same test."""

    def elements(self, data):
        draws = group(data, "posterior")["x"].values
        for i in range(2):
            yield draws[..., i], float(MEAN[i]), float(COVARIANCE[i, i].sqrt())

    def test_the_guides_own_draws_fail(self):
        raw = wrong().pool.z[None, :4000]
        for i in range(2):
            with pytest.raises(AssertionError):
                assert_normal(raw[..., i], float(MEAN[i]), float(COVARIANCE[i, i].sqrt()))

    def test_neutra(self):
        for element in self.elements(exact_pair()):
            assert_normal(*element)
        x = group(exact_pair(), "posterior")["x"].values.reshape(-1, 2)
        assert np.corrcoef(x.T)[0, 1] == pytest.approx(0.8 / math.sqrt(2), abs=0.05)

    def test_metropolis(self):
        data = quietly(independence_metropolis, wrong())  # its tails are too short: it may stick
        for element in self.elements(data):
            assert_normal(*element)
        assert attributes(data)["rhat_max"] < 1.02

    def test_resampling(self):
        data = importance_resampling(wrong(), 2000)
        relative = attributes(data)["mcse_mean_max"]
        for draws, mean, sd in self.elements(data):
            error = sd * math.hypot(relative, 1 / math.sqrt(2000))
            assert_normal(draws, mean, sd, mcse_mean=error)

    def test_more_than_the_pool_holds(self):
        data = importance_resampling(wrong(), 6000)
        assert attributes(data)["evaluations"] == 60_000 - len(wrong().pool)
        for draws, mean, sd in self.elements(data):
            error = sd * math.hypot(attributes(data)["mcse_mean_max"], 1 / math.sqrt(6000))
            assert_normal(draws, mean, sd, mcse_mean=error)


class TestWhatIsHandedOver:
    def test_neutra(self):
        data, attrs = exact_pair(), attributes(exact_pair())
        stats = group(data, "sample_stats")
        wanted = {"lp", "acceptance_rate", "diverging", "n_steps", "tree_depth", "step_size"}
        assert wanted == set(stats.data_vars)
        assert all(stats[name].shape == (4, 300) for name in wanted)
        assert attrs["inference_method"] == "NeuTra-NUTS"
        assert attrs["divergences"] == int(stats["diverging"].sum()) == 0
        assert attrs["acceptance_rate"] == pytest.approx(float(stats["acceptance_rate"].mean()))
        assert 0.6 < attrs["acceptance_rate"] < 0.99
        steps, depth = stats["n_steps"].values, stats["tree_depth"].values
        assert ((2 ** (depth - 1) <= steps) & (steps < 2**depth)).all()
        # The warm-up and the search for a step size come on top.
        assert attrs["gradients"] > int(steps.sum()) + 4 * 150
        assert attrs["gradients_training"] == wrong().cost["gradients"]

    def test_lp_is_the_unconstrained_log_joint(self):
        data = exact_pair()
        x = torch.as_tensor(group(data, "posterior")["x"].values)
        log_p = dist.MultivariateNormal(MEAN, COVARIANCE).log_prob(x).numpy()
        np.testing.assert_allclose(group(data, "sample_stats")["lp"].values, log_p)

    def test_the_worst_element_counts(self):
        attrs = attributes(exact_pair())
        table = az.summary(exact_pair(), var_names=["x"], round_to="none")
        assert attrs["rhat_max"] == pytest.approx(float(table["r_hat"].astype(float).max()))
        assert attrs["ess_bulk_min"] == pytest.approx(float(table["ess_bulk"].astype(float).min()))

    def test_metropolis(self):
        data = quietly(independence_metropolis, wrong(), num_samples=300, thin=5)
        attrs, stats = attributes(data), group(data, "sample_stats")
        assert {"lp", "log_weight", "accepted", "acceptance_rate"} == set(stats.data_vars)
        assert attrs["gradients"] == 0
        assert attrs["evaluations"] == 4 * (500 + 5 * 300)
        assert attrs["acceptance_rate"] == pytest.approx(float(stats["acceptance_rate"].mean()))
        assert 0.4 < attrs["acceptance_rate"] < 0.9
        assert 3 < attrs["longest_stay"] < 500
        x = group(data, "posterior")["x"].values
        moved = (np.diff(x[..., 0], axis=1) != 0).astype(bool)
        assert (moved == stats["accepted"].values[:, 1:]).all()

    def test_resampling(self):
        data = importance_resampling(wrong(), 1000)
        attrs = attributes(data)
        assert attrs["khat"] == wrong().khat
        assert attrs["kish_ess"] == wrong().weights.kish_ess
        assert attrs["n_unique"] == len(np.unique(group(data, "posterior")["x"].values[..., 0]))
        assert "posterior.summary()" in attrs["remark"]

    @pytest.mark.parametrize("method", METHODS)
    def test_groups_with_data(self, method):
        def model(x, y):
            slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
            pyro.deterministic("double", 2 * slope)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

        x = torch.linspace(-1, 1, 5)
        args = x, 2 * x
        precision = 1 + float(x.square().sum())
        loc, scale = 2 * (1 - 1 / precision), precision**-0.5
        normal = torch.tensor([loc]), torch.tensor([[scale]])
        data = quietly(method, with_normal(model, *normal, *args), **short(method))
        wanted = {"posterior", "sample_stats", "log_likelihood", "log_prior", "observed_data"}
        assert wanted | {"posterior_predictive", "constant_data"} <= group_names(data)
        posterior, likelihood = group(data, "posterior"), group(data, "log_likelihood")["y"]
        chains = 1 if method is importance_resampling else 2
        assert posterior["slope"].shape == (chains, 40)
        np.testing.assert_allclose(posterior["double"], 2 * posterior["slope"])
        assert likelihood.dims == ("chain", "draw", "data")
        expected = dist.Normal(torch.as_tensor(posterior["slope"].values)[..., None] * x, 1.0)
        np.testing.assert_allclose(likelihood.values, expected.log_prob(2 * x).numpy())

    @pytest.mark.parametrize("method", METHODS)
    def test_arviz_and_files(self, method, tmp_path):
        data = quietly(method, wrong(), **short(method))
        again = load_netcdf(save_netcdf(data, tmp_path / "exact.nc"))
        np.testing.assert_array_equal(
            group_dataset(again, "posterior")["x"], group_dataset(data, "posterior")["x"]
        )
        assert attributes(again)["inference_method"] == attributes(data)["inference_method"]
        assert len(az.summary(again, var_names=["x"], kind="stats")) == 2


class TestRandomNumbers:
    @pytest.mark.parametrize("method", METHODS)
    def test_a_seed_gives_the_same_draws(self, method):
        def draws(**seed):
            data = quietly(method, wrong(), **short(method), **seed)
            return group(data, "posterior")["x"].values

        first = draws(seed=1)
        torch.randn(3)
        assert (first == draws(seed=1)).all()
        assert (first != draws(seed=2)).any()
        assert (draws() == draws()).all()

    @pytest.mark.parametrize("method", METHODS)
    def test_the_worlds_are_left_as_they_were(self, method):
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        quietly(method, wrong(), **short(method))
        assert random.getstate() == before[0]
        assert np.random.get_state()[1].tolist() == before[1]
        assert torch.equal(torch.get_rng_state(), before[2])
        assert pyro.settings.get("validate_distributions_pyro")

    def test_neighbouring_seeds_share_no_proposals(self):
        draws = [
            group(quietly(independence_metropolis, wrong(), seed=seed, **SHORT), "posterior")["x"]
            for seed in (0, 1)
        ]
        assert not set(draws[0].values.ravel()) & set(draws[1].values.ravel())


def two_modes():
    """Normals at -6 and 6, of which the second holds a quarter."""
    prior = dist.Normal(0.0, 6.0)
    x = pyro.sample("x", prior)
    left, right = dist.Normal(-6.0, 1.0).log_prob(x), dist.Normal(6.0, 1.0).log_prob(x)
    both = torch.logaddexp(math.log(0.75) + left, math.log(0.25) + right)
    pyro.factor("in place of the prior", both - prior.log_prob(x))


class TestModes:
    def test_chains_that_disagree_show(self):
        wide = with_normal(two_modes, torch.zeros(1), 6.0 * torch.eye(1))
        with pytest.warns(UserWarning, match=r"R-hat of 'x' is .*#chains-disagree") as said:
            data = neutra_nuts(
                wide, num_samples=100, warmup_steps=80, num_chains=2, progress=False
            )
        assert said[0].filename == __file__
        assert attributes(data)["rhat_max"] > 1.05
        assert "The chains disagree" in json.loads(attributes(data)["warnings"])[0]

    def test_metropolis_jumps(self):
        wide = with_normal(two_modes, torch.zeros(1), 6.0 * torch.eye(1))
        data = independence_metropolis(wide)
        self.assert_shares(data)

    def test_a_mixture_of_flows(self):
        posterior = FlowVI(two_modes, num_steps=100, progress=False).run()
        assert posterior.guide.modes == 2
        with pytest.raises(GuideError, match=r"a mixture of 2, .*independence_metropolis"):
            neutra_nuts(posterior)
        self.assert_shares(independence_metropolis(posterior))

    def assert_shares(self, data):
        x = group(data, "posterior")["x"].values
        right = (x > 0).astype(float)
        assert attributes(data)["rhat_max"] < 1.01
        assert abs(right.mean() - 0.25) < 4 * float(az.mcse(right, method="mean"))
        assert abs(x[x > 0].mean() - 6.0) < 0.15
        assert abs(x[x > 0].std() - 1.0) < 0.1


def schools():
    """A hierarchy, whose scale an AutoFlow undoes by a layer of its own."""
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfCauchy(5.0))
    with pyro.plate("school", 3):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, 10.0), obs=torch.tensor([28.0, 8.0, -3.0]))


class TestGuides:
    """Every guide that is a transform of a base: the log joint there is p(x) |dx/du|."""

    @pytest.mark.parametrize(
        "make",
        [
            AutoDiagonalNormal,
            AutoIAFNormal,
            AutoLowRankMultivariateNormal,
            AutoMultivariateNormal,
            AutoFlow,
        ],
    )
    def test_the_log_joint_in_its_base(self, make):
        guide = make(schools)
        with pyro.get_param_store().scope():
            guide()
            with torch.no_grad():
                for parameter in guide.parameters():
                    parameter += 0.2 * torch.randn_like(parameter)
            posterior = SimpleNamespace(
                guide=guide, args=(), kwargs={}, log_joint=LogJoint(schools, guide)
            )
            base = neutra._Base(posterior)
            u = base.base.sample((5,))
            z, log_p = base.out(u)
            x = torch.as_tensor(z)
            ladj = base.base.log_prob(u) - guide.get_posterior().log_prob(x)
            value, gradient = base.log_joint.value_and_grad(u)
        torch.testing.assert_close(value, torch.as_tensor(log_p) + ladj)
        torch.testing.assert_close(torch.as_tensor(log_p), posterior.log_joint(x))
        step = 1e-5 * torch.randn_like(u)
        change = base.log_joint(u + step) - base.log_joint(u - step)
        torch.testing.assert_close(change, 2 * (gradient * step).sum(-1), rtol=1e-4, atol=1e-9)

    def test_a_guide_without_a_base(self):
        class Opaque(AutoMultivariateNormal):
            def get_base_dist(self):
                raise NotImplementedError

            def get_posterior(self, *args, **kwargs):
                return dist.Independent(dist.Normal(self.loc, self.scale), 1)

        guide = Opaque(pair)
        with pyro.get_param_store().scope():
            guide()
            posterior = assess(pair, guide)
        with pytest.raises(
            GuideError, match="a transform of a base, but got Opaque.*independence"
        ):
            neutra_nuts(posterior)


def half_line():
    """A normal of which only what is positive counts."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("positive", torch.where(x > 0, 0.0, -math.inf))


def spoilt():
    """A normal whose density can't be computed above 1."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("fault", torch.where(x > 1, math.nan, 0.0))


def infinite():
    """A normal whose density is infinite above 1."""
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("fault", torch.where(x > 1, math.inf, 0.0))


class TestEdgesAndFaults:
    @pytest.mark.parametrize("method", METHODS)
    def test_hard_edges(self, method):
        posterior = with_normal(half_line, torch.full((1,), 0.5), torch.eye(1))
        data = quietly(method, posterior, **({} if method is not neutra_nuts else SHORT))
        x = group(data, "posterior")["x"].values
        assert (x > 0).all()
        if method is neutra_nuts:
            assert attributes(data)["divergences"] > 0
        else:
            assert x.mean() == pytest.approx(math.sqrt(2 / math.pi), abs=0.05)

    @pytest.mark.parametrize("model", [spoilt, infinite])
    def test_faults_are_refused_and_counted(self, model):
        posterior = with_normal(model, torch.zeros(1), torch.eye(1))
        data = quietly(independence_metropolis, posterior)
        assert (group(data, "posterior")["x"].values <= 1).all()
        share = attributes(data)["invalid_proposals"] / attributes(data)["evaluations"]
        assert share == pytest.approx(0.159, abs=0.02)
        data = quietly(neutra_nuts, posterior, **SHORT)
        assert (group(data, "posterior")["x"].values <= 1).all()
        assert attributes(data)["divergences"] > 0

    @pytest.mark.parametrize("method", METHODS)
    def test_a_guide_that_is_nowhere_inside(self, method):
        posterior = with_normal(half_line, torch.full((1,), -50.0), 0.1 * torch.eye(1))
        with pytest.raises(GuideError, match=f"{method.__name__} expected a guide that draws"):
            run(method, posterior)

    def test_sticking_is_said(self):
        scale = 0.15 * torch.linalg.cholesky(COVARIANCE)
        posterior = with_normal(pair, MEAN, scale)
        said = warned(independence_metropolis, posterior)
        assert re.search(
            "The proposals don't reach everywhere: .*neutra_nuts.*#chains-stick", said
        )
        said = warned(importance_resampling, posterior)
        assert re.search("Resampling can't mend these draws: k-hat is .*#k-hat-too-high", said)

    def test_divergences_are_said(self):
        def funnel():
            scale = pyro.sample("v", dist.Normal(0.0, 3.0))
            pyro.sample("x", dist.Normal(0.0, (scale / 2).exp()).expand([9]).to_event(1))

        posterior = with_normal(funnel, torch.zeros(10), torch.eye(10))
        said = warned(neutra_nuts, posterior, **SHORT, max_tree_depth=5)
        assert re.search("transitions diverged: .*target_accept_prob=0.95.*#divergences", said)


class TestModels:
    def test_parameters_of_the_model_are_those_of_the_fit(self):
        def model():
            scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
            pyro.sample("x", dist.Normal(0.0, scale))

        posterior = with_normal(model, torch.zeros(1), 2.0 * torch.eye(1))
        pyro.get_param_store()["scale"] = torch.tensor(50.0)
        for method in METHODS:
            options = {"num_samples": 150, "warmup_steps": 80, "num_chains": 2}
            options = options if method is neutra_nuts else {}
            x = group(quietly(method, posterior, **options), "posterior")["x"].values
            assert x.std() == pytest.approx(2.0, rel=0.2)
        assert float(pyro.param("scale").detach()) == pytest.approx(50.0)

    @pytest.mark.parametrize("method", METHODS)
    def test_random_log_joints_are_refused(self, method):
        data = torch.arange(10.0)

        def model():
            mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            with pyro.plate("data", 10, subsample_size=5) as index:
                pyro.sample("y", dist.Normal(mean, 1.0), obs=data[index])

        posterior = with_normal(model, torch.full((1,), 4.5), 0.3 * torch.eye(1))
        with pytest.raises(GuideError, match=f"{method.__name__} expected .* is random"):
            run(method, posterior)

    def test_single_precision(self):
        with pyro.get_param_store().scope():
            mean, scale = MEAN.float(), torch.linalg.cholesky(COVARIANCE).float()

            def model():
                pyro.sample("x", dist.MultivariateNormal(mean, scale_tril=scale))

            torch.set_default_dtype(torch.float32)
            posterior = with_normal(model, mean, 0.8 * scale)
            for method in METHODS:
                options = {"num_samples": 100, "warmup_steps": 60}
                options = options if method is neutra_nuts else {}
                data = quietly(method, posterior, **options)
                draws = group(data, "posterior")["x"].values
                assert draws.dtype == np.float32
                for i in range(2):
                    sd = float(COVARIANCE[i, i].sqrt())
                    assert draws[..., i].mean() == pytest.approx(float(MEAN[i]), abs=0.25 * sd)
                    assert draws[..., i].std() == pytest.approx(sd, rel=0.2)


@pytest.mark.slow
class TestFlows:
    """An AutoFlow that has hardly been trained, on what is bent, bounded and in plates."""

    def test_a_funnel(self):
        def funnel():
            v = pyro.sample("v", dist.Normal(0.0, 1.5))
            pyro.sample("x", dist.Normal(0.0, (v / 2).exp()).expand([4]).to_event(1))

        posterior = FlowVI(funnel, num_steps=50, progress=False).run()
        data = quietly(neutra_nuts, posterior, num_samples=300, warmup_steps=200)
        assert_normal(group(data, "posterior")["v"].values, 0.0, 1.5)
        x = group(data, "posterior")["x"].values
        assert np.median(np.abs(x)) == pytest.approx(0.61, abs=0.05)

    def test_bounded_sites(self):
        counts = torch.tensor([4.0, 1.0, 7.0])

        def model():
            rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
            weight = pyro.sample("weight", dist.Dirichlet(torch.ones(3)))
            with pyro.plate("data", 4):
                pyro.sample("y", dist.Poisson(rate), obs=torch.tensor([1.0, 3.0, 0.0, 2.0]))
            pyro.sample("n", dist.Multinomial(12, weight), obs=counts)

        posterior = FlowVI(model, num_steps=20, progress=False).run()
        for method in (independence_metropolis, neutra_nuts):
            data = quietly(method, posterior, num_samples=300, warmup_steps=200)
            draws = group(data, "posterior")
            rate, weight = draws["rate"].values, draws["weight"].values
            np.testing.assert_allclose(weight.sum(-1), 1.0)
            error = 4 * float(az.mcse(rate, method="mean"))
            assert abs(rate.mean() - 8 / 5) < error  # Gamma(2 + 6, 1 + 4)
            for k in range(3):
                error = 4 * float(az.mcse(weight[..., k], method="mean"))
                assert abs(weight[..., k].mean() - (counts[k] + 1) / 15) < error

    def test_a_good_flow_takes_few_gradients(self):
        def banana():
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(x**2, 0.1))

        posterior = FlowVI(banana, num_steps=600, progress=False).run()
        size = {"num_samples": 200, "warmup_steps": 150}
        attrs = attributes(quietly(neutra_nuts, posterior, **size))
        affine = assess(banana, normal_like(banana, posterior))
        plain = attributes(quietly(neutra_nuts, affine, **size))
        assert attrs["ess_bulk_min"] / attrs["gradients"] > (
            4 * plain["ess_bulk_min"] / plain["gradients"]
        )


def normal_like(model, posterior):
    """A normal with the moments of a posterior's draws."""
    z = torch.as_tensor(posterior.pool.z)
    guide = AutoMultivariateNormal(model)
    with pyro.get_param_store().scope():
        guide()
    scale = torch.linalg.cholesky(torch.cov(z.T))
    with torch.no_grad():
        guide.loc.copy_(z.mean(0))
        guide.scale = scale.diagonal()
        guide.scale_tril = scale / scale.diagonal()[:, None]
    return guide


class TestArguments:
    @pytest.mark.parametrize("method", METHODS)
    def test_only_posteriors(self, method):
        with pytest.raises(GuideError, match=f"{method.__name__} expected a Posterior, but got"):
            run(method, pair)

    @pytest.mark.parametrize(
        ("method", "options", "words"),
        [
            (neutra_nuts, {"num_samples": 3}, "num_samples >= 4, but got 3"),
            (neutra_nuts, {"num_chains": 0}, "num_chains >= 1, but got 0"),
            (neutra_nuts, {"warmup_steps": -1}, "warmup_steps >= 0, but got -1"),
            (neutra_nuts, {"max_tree_depth": 2.5}, "max_tree_depth >= 1, but got 2.5"),
            (neutra_nuts, {"target_accept_prob": 1.0}, "target_accept_prob < 1, but got 1.0"),
            (neutra_nuts, {"seed": -1}, "seed to be an integer >= 0, but got -1"),
            (independence_metropolis, {"thin": 0}, "thin >= 1, but got 0"),
            (independence_metropolis, {"num_samples": True}, "num_samples >= 4, but got True"),
            (importance_resampling, {"num_samples": "all"}, "num_samples >= 4, but got 'all'"),
        ],
    )
    def test_numbers_that_make_no_sense(self, method, options, words):
        with pytest.raises(OptionError, match=words):
            run(method, wrong(), **options)

    def test_a_single_chain(self):
        data = quietly(neutra_nuts, wrong(), num_samples=100, warmup_steps=50, num_chains=1)
        assert group(data, "posterior")["x"].shape == (1, 100, 2)
        assert attributes(data)["rhat_max"] < 1.5
