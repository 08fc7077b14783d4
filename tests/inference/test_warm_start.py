# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The Gaussian a fit starts from: exact where it can be, never worse, honest where it can't."""

import math
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoMultivariateNormal

from pyro_flows import AutoFlow, FlowVI, warm_start
from pyro_flows.errors import GuideError, InfeasibleModelError
from pyro_flows.guides import LogJoint
from pyro_flows.inference import Objective, checks, find_gaussian
from pyro_flows.inference.gaussian import Gaussian, divergence, elbos_of, natural_gradient
from pyro_flows.inference.newton import eigh
from pyro_flows.inference.randomness import seeded
from pyro_flows.inference.warm_start import find_start

from .models import LINE, SCORES, X, Y, flat, groups


def search(model, *args):
    guide = AutoFlow(model).setup(*args)
    log_joint = LogJoint(model, guide, args, through=guide.noncentring)
    return find_gaussian(log_joint, guide), guide, log_joint


def elbo_of(guide, log_joint, args=(), draws=4000):
    """By the guide's own draws, so that it rests on nothing that the search computed."""
    _, log_p, log_q = Objective(guide, log_joint, args).draw(draws)
    return float((log_p - log_q).mean())


LOC = torch.tensor([3.0, -200.0, 5e4, 0.001], dtype=torch.float64)
SDS = torch.tensor([0.01, 1.0, 1e4, 30.0], dtype=torch.float64)


def covariance(correlation):
    r = torch.full((4, 4), correlation, dtype=torch.float64).fill_diagonal_(1.0)
    return SDS[:, None] * r * SDS


class TestGaussianPosterior:
    @pytest.mark.parametrize("correlation", [0.0, 0.9, 0.999])
    @pytest.mark.parametrize("opaque", [True, False], ids=["flat prior and factor", "sample site"])
    def test_it_is_found_exactly(self, correlation, opaque):
        cov = covariance(correlation)
        target = torch.distributions.MultivariateNormal(LOC, cov)

        def model():
            if opaque:
                pyro.factor("target", target.log_prob(flat("x", (4,))))
            else:
                pyro.sample("x", dist.MultivariateNormal(LOC, cov))

        found, guide, log_joint = search(model)
        torch.testing.assert_close((found.loc - LOC) / SDS, torch.zeros(4), atol=1e-6, rtol=0)
        torch.testing.assert_close(
            found.scale_tril / SDS[:, None], target.scale_tril / SDS[:, None], atol=1e-6, rtol=0
        )
        assert found.growing is None
        # And the guide is it: the ELBO is the log evidence, which is 0.
        assert elbo_of(guide, log_joint) == pytest.approx(0.0, abs=1e-6)

    def test_a_regression_with_flat_priors(self):
        def model(x, y):
            a, b = flat("a"), flat("b")
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(a + b * x, 0.3), obs=y)

        found, guide, _ = search(model, X, LINE)
        design = torch.stack([torch.ones_like(X), X], 1)
        cov = 0.09 * torch.linalg.inv(design.T @ design)
        mean = cov @ design.T @ LINE / 0.09
        torch.testing.assert_close(found.loc, mean)
        torch.testing.assert_close(found.scale_tril @ found.scale_tril.T, cov)
        assert found.growing is None

    def test_what_the_guide_holds_is_what_was_found(self):
        found, guide, _ = search(funnel)
        assert torch.equal(guide.affine.loc, found.loc)
        torch.testing.assert_close(guide.affine.scale_tril, found.scale_tril)


def skewed(y):
    rate = pyro.sample("rate", dist.Gamma(0.3, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Exponential(rate), obs=y)


def two_modes():
    x = pyro.sample("x", dist.Normal(0.0, 10.0))
    pyro.factor("two", torch.logaddexp(-2 * (x - 4) ** 2, -2 * (x + 4) ** 2))


def banana():
    x = pyro.sample("x", dist.Normal(torch.zeros(2, dtype=torch.float64), 3.0).to_event(1))
    pyro.factor("bend", -5 * (x[..., 1] - x[..., 0] ** 2) ** 2)


def box():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("edge", torch.where(x.abs() < 0.05, 0.0, -math.inf))


def funnel():
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("five", 5):
        pyro.sample("x", dist.Normal(0.0, (v / 2).exp()))


@pytest.mark.parametrize(
    ("model", "args"),
    [(skewed, (Y,)), (two_modes, ()), (banana, ()), (groups, (SCORES,)), (funnel, ())],
)
def test_never_worse_than_the_plain_start(model, args):
    plain = AutoFlow(model).setup(*args)
    before = elbo_of(plain, LogJoint(model, plain, args, through=plain.noncentring), args)
    found, guide, log_joint = search(model, *args)
    assert elbo_of(guide, log_joint, args) >= before
    assert found.elbo >= found.plain_elbo


def test_a_hard_edge_leaves_the_guide_usable():
    found, guide, log_joint = search(box)
    assert bool(torch.isfinite(found.scale_tril).all())
    assert bool((guide.affine.scale_tril.diagonal() > 0).all())


class TestCentring:
    def test_a_funnel_is_not_centred_and_then_exact(self):
        found, guide, log_joint = search(funnel)
        assert found.centring.tolist() == [0.0] * 6
        assert not guide.noncentring.centred
        assert elbo_of(guide, log_joint) == pytest.approx(0.0, abs=1e-6)
        draws = guide.sample_posterior(20_000)
        assert float(draws["v"].std()) == pytest.approx(3.0, rel=0.05)

    def test_much_data_a_group_is_centred(self):
        torch.manual_seed(0)
        y = torch.tensor([-3.0, 0.0, 4.0]) + 0.1 * torch.randn(200, 3)

        def model(y):
            mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
            tau = pyro.sample("tau", dist.HalfNormal(5.0))
            with pyro.plate("group", 3):
                theta = pyro.sample("theta", dist.Normal(mu, tau))
                with pyro.plate("data", len(y)):
                    pyro.sample("y", dist.Normal(theta, 0.1), obs=y)

        found, guide, _ = search(model, y)
        assert found.centring.tolist() == [1.0] * 5
        assert guide.noncentring.centred

    def test_without_a_hierarchy_there_is_none(self):
        found, guide, _ = search(skewed, Y)
        assert found.centring is None
        assert guide.noncentring is None


def separated(x, y):
    a, b = flat("intercept"), flat("slope")
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=a + b * x), obs=y)


def ridge(x, y):
    a, b, c = flat("a"), flat("b"), flat("slope")
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a + b + c * x, 0.3), obs=y)


def flat_log_sigma(y):
    mean, log_sigma = flat("mean"), flat("log_sigma")
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, log_sigma.exp()), obs=y)


def logistic(x, y):
    separated(x, y)


def flat_regression(x, y):
    a, b, log_sigma = flat("a"), flat("b"), flat("log_sigma")
    with pyro.plate("data", len(x)):
        pyro.sample("y", dist.Normal(a + b * x, log_sigma.exp()), obs=y)


SEPARATED = (X > 0.3).to(X)
MIXED = torch.tensor([0, 0, 1, 0, 0, 1, 1, 0, 1, 1, 0, 1], dtype=torch.float64)


class TestImproperPosterior:
    @pytest.mark.parametrize(
        ("model", "args", "sites"),
        [
            (separated, (X, SEPARATED), ["intercept", "slope"]),
            (ridge, (X, LINE), ["a", "b"]),
        ],
    )
    def test_it_is_flagged_by_site(self, model, args, sites):
        posterior = FlowVI(model, num_steps=5, progress=False).run(*args)
        assert posterior.verdict.status == "not reliable"
        reason = posterior.verdict.reasons[0]
        assert "improper" in reason
        assert any(f"'{site}'" in reason for site in sites)
        others = {"intercept", "slope", "a", "b"} - set(sites)
        assert not any(f"'{site}'" in reason for site in others)
        assert "prior" in posterior.verdict.advice[0]
        assert posterior.report.steps == 0, "there is nothing to train towards"
        assert not any("may be missing" in reason for reason in posterior.verdict.reasons)

    @pytest.mark.parametrize("seed", [0, 1])
    def test_in_float32_too(self, seed):
        # What is flat in float64 is rounding noise in float32, and stops growing there.
        posterior = FlowVI(ridge, seed=seed, num_steps=5, progress=False).run(X, LINE)
        single = FlowVI(ridge, seed=seed, num_steps=5, progress=False).run(X.float(), LINE.float())
        assert "improper" in single.verdict.reasons[0]
        assert posterior.verdict.reasons[0] == single.verdict.reasons[0]

    def test_a_large_scale_is_no_sign_of_it(self, monkeypatch):
        # More latents than second derivatives are taken of, so that the search starts at 0.1.
        monkeypatch.setattr(sys.modules[find_start.__module__], "LARGEST_HESSIAN", 10)

        def wide():
            pyro.sample("x", dist.Normal(torch.zeros(11), 1e4).to_event(1))

        posterior = FlowVI(wide, num_steps=5, progress=False).run()
        assert not any("improper" in reason for reason in posterior.verdict.reasons)

    def test_one_observation_of_unknown_mean_and_scale_is_not_reliable(self):
        # Improper along a curve on which a Gaussian neither grows nor settles.
        posterior = FlowVI(flat_log_sigma, num_steps=30, progress=False).run(Y[:1])
        assert posterior.verdict.status == "not reliable"

    @pytest.mark.parametrize(
        ("model", "args"),
        [
            (logistic, (X, MIXED)),
            (flat_regression, (X, LINE)),
            (flat_regression, (1000 * X, 1e4 * LINE)),
            (flat_log_sigma, (Y,)),
        ],
    )
    def test_a_proper_one_with_flat_priors_is_not(self, model, args):
        found, _, _ = search(model, *args)
        assert found.growing is None


class TestInfeasible:
    def test_the_error_says_where_and_what_to_do(self):
        def model():
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.sample("late", dist.Uniform(10.0, 11.0), obs=x.detach() * 0)
            pyro.factor("never", torch.where(x > 1e6, 0.0, -math.inf))

        guide = AutoFlow(model).setup()
        log_joint = LogJoint(model, guide)
        with pytest.raises(InfeasibleModelError) as error, pyro.validation_enabled(False):
            find_gaussian(log_joint, guide)
        text = str(error.value)
        assert "not finite anywhere" in text
        assert "-inf" in text
        assert "'late'" in text
        assert "'never'" in text
        assert "'x'" not in text
        assert "init_loc_fn" in text

    def test_a_bad_start_beside_a_good_place_is_no_error(self):
        def model():
            x = pyro.sample("x", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
            pyro.factor("half", torch.where(x[..., 0] > 0.2, 0.0, -math.inf))

        found, _, _ = search(model)
        assert bool(torch.isfinite(found.loc).all())
        assert bool(torch.isfinite(found.scale_tril).all())


def banana():
    zero = torch.zeros((), dtype=torch.float64)
    x = pyro.sample("x", dist.Normal(zero, 1.0))
    pyro.factor("bend", -0.5 * ((pyro.sample("y", dist.Normal(zero, 3.0)) - x**2) / 0.3) ** 2)


def test_gradients_are_counted(monkeypatch):
    seen = 0
    first, second = LogJoint.value_and_grad, LogJoint.value_grad_hessian

    def value_and_grad(self, z):
        nonlocal seen
        seen += len(z)
        return first(self, z)

    def value_grad_hessian(self, z):
        nonlocal seen
        seen += len(z) * (1 + z.shape[-1])  # a Hessian is D gradients
        return second(self, z)

    monkeypatch.setattr(LogJoint, "value_and_grad", value_and_grad)
    monkeypatch.setattr(LogJoint, "value_grad_hessian", value_grad_hessian)
    found, _, _ = search(banana)
    assert seen > 1000
    # Values in line searches are counted too, so it is more, but not by much.
    assert seen <= found.gradients <= 3 * seen


class TestWarmStartOfAGuide:
    def test_it_sets_the_median(self):
        def model():
            pyro.sample("far", dist.Normal(30.0, 0.01))
            pyro.sample("positive", dist.LogNormal(2.0, 0.1))

        def start(site):
            return torch.ones(())

        guide = AutoFlow(model, init_loc_fn=start)
        found = warm_start(guide)
        assert float(guide.median()["far"]) == pytest.approx(30.0, abs=1e-3)
        assert float(guide.median()["positive"]) == pytest.approx(math.exp(2.0), rel=1e-3)
        low, high = guide.quantiles([0.1587, 0.8413])["far"]
        assert float(high - low) == pytest.approx(0.02, rel=0.05)
        assert found.gradients > 0

    def test_with_the_models_arguments(self):
        def model(x, y=None):
            b = pyro.sample("b", dist.Normal(0.0, 10.0))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(b * x, 0.1), obs=y)

        guide = AutoFlow(model)
        warm_start(guide, X, y=5 * X)
        assert float(guide.median()["b"]) == pytest.approx(5.0, abs=0.01)

    def test_other_guides_are_refused(self):
        with pytest.raises(GuideError, match="expected an AutoFlow, but got AutoMultivariate"):
            warm_start(AutoMultivariateNormal(funnel))


class TestRounding:
    """Where tau is so small that mu + tau z is mu to the last digit, no z costs anything."""

    def model(self, y):
        mu = pyro.sample("mu", dist.Normal(y.new_tensor(0.0), 10.0))
        tau = pyro.sample("tau", dist.HalfNormal(y.new_tensor(1.0)))
        with pyro.plate("group", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    def log_joint(self, dtype):
        y = torch.linspace(0.5, 1.5, 40, dtype=dtype)
        guide = AutoFlow(self.model).setup(y)
        guide.noncentring.set_centring(torch.zeros(guide.latent_dim))
        return LogJoint(self.model, guide, (y,), through=guide.noncentring)

    def elbo(self, log_joint, loc, sd):
        return float(elbos_of(log_joint, loc[None], sd.diag()[None], 1024))

    @pytest.mark.parametrize(("dtype", "deep"), [(torch.float64, -45.0), (torch.float32, -26.0)])
    def test_a_wide_gaussian_far_down_the_neck_has_no_elbo(self, dtype, deep):
        log_joint = self.log_joint(dtype)
        loc, sd = torch.zeros(42, dtype=dtype), torch.full((42,), 100.0, dtype=dtype)
        loc[:2], sd[:2] = torch.tensor([1.0, deep]), torch.tensor([0.2, 0.5])
        z = loc + sd * torch.randn(100, 42, dtype=dtype)
        # What rounding makes of it: a density that rises above everything the model has.
        log_q = dist.Normal(loc, sd).to_event(1).log_prob(z)
        honest = self.elbo(log_joint, torch.zeros_like(loc), 0.3 * torch.ones_like(loc))
        assert float((log_joint(z) - log_q).mean()) > honest + 50
        assert not log_joint.resolved(z, log_joint(z)).any()
        assert self.elbo(log_joint, loc, sd) == -math.inf

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_where_the_posterior_is_everything_is_resolved(self, dtype):
        log_joint = self.log_joint(dtype)
        z = torch.randn(1000, 42, dtype=dtype)
        assert log_joint.resolved(z, log_joint(z)).all()

    def proportions(self, dtype):
        """Thirty proportions around one, as hierarchical models of counts have them."""
        trials = torch.tensor([15, 29, 14, 18, 13, 23, 21, 11, 29, 22, 18, 19, 26, 13, 23] * 2)
        successes = torch.tensor([1, 4, 6, 7, 0, 3, 1, 1, 3, 1, 1, 6, 1, 0, 1] * 2)

        def model():
            mean = pyro.sample("mean", dist.Uniform(torch.zeros((), dtype=dtype), 1.0))
            count = pyro.sample("count", dist.Pareto(torch.ones((), dtype=dtype), 1.5))
            with pyro.plate("groups", len(trials)):
                share = pyro.sample("share", dist.Beta(mean * count, (1 - mean) * count))
                pyro.sample("y", dist.Binomial(trials, share), obs=successes.to(dtype))

        guide = AutoFlow(model).setup()
        return guide, LogJoint(model, guide)

    def test_where_terms_cancel_single_precision_knows_nothing(self):
        z = torch.full((50, 32), -1.85) + 0.01 * torch.randn(50, 32)
        shares = {}
        for dtype in (torch.float32, torch.float64):
            log_joint = self.proportions(dtype)[1]
            for log_count in (2.0, 16.0):
                z[:, 1] = log_count
                known = log_joint.resolved(z.to(dtype), log_joint(z.to(dtype)))
                shares[dtype, log_count] = float(known.double().mean())
        far = shares.pop((torch.float32, 16.0))
        assert set(shares.values()) == {1.0}
        assert far < 0.1

    def test_draws_that_rounding_decides_are_named(self):
        guide, log_joint = self.proportions(torch.float32)
        objective = Objective(guide, log_joint, (), heldout=64)
        assert checks.rounding(objective) == []
        loc = torch.full((32,), -1.85)
        loc[1] = 16.0
        guide.affine.set(loc, 0.01 * torch.eye(32))
        (remark,) = checks.rounding(objective)
        assert "of the draws is rounding's" in remark.reason
        assert "torch.set_default_dtype(torch.float64)" in remark.advice

    def test_single_precision_finds_what_double_does(self):
        found = []
        for dtype in (torch.float32, torch.float64):
            guide, log_joint = self.proportions(dtype)
            with seeded(0):
                found.append(find_start(log_joint, guide))
        single, double = found
        assert single.elbo == pytest.approx(double.elbo, abs=0.1)
        assert single.mixture is None

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
    def test_a_gaussian_narrower_than_its_numbers_has_no_elbo(self, dtype):
        def model():
            pyro.sample("x", dist.Normal(torch.tensor(1000.0, dtype=dtype), 1.0))

        log_joint = LogJoint(model, AutoFlow(model).setup())
        loc, eps = torch.tensor([1000.0], dtype=dtype), torch.finfo(dtype).eps
        assert self.elbo(log_joint, loc, 1000 * eps * torch.ones_like(loc)) == -math.inf
        assert self.elbo(log_joint, loc, 1e5 * eps * torch.ones_like(loc)) > -50


NORMAL = dist.Normal(torch.zeros(3).double(), 1.0)


class TestNaturalGradient:
    def found(self, start, prior=NORMAL, **options):
        def model():
            pyro.sample("x", prior.to_event(1))

        log_joint = LogJoint(model, AutoFlow(model).setup())
        torch.manual_seed(0)
        return natural_gradient(log_joint, start, **options)

    def start(self, loc=30.0):
        return Gaussian(torch.full((3,), loc).double(), torch.eye(3).double())

    def test_it_is_given_up_where_it_would_be_of_no_use(self):
        whole = self.found(self.start())
        assert not whole.given_up
        assert math.isclose(whole.history[-1], 0.0, abs_tol=1e-3)
        hopeless = self.found(self.start(1e6), floor=-10.0)
        assert hopeless.given_up
        assert hopeless.gradients < 0.5 * self.found(self.start(1e6)).gradients

    def test_it_is_given_up_on_the_way_to_a_known_one(self):
        known = Gaussian(torch.zeros(3).double(), torch.eye(3).double())
        heavy = dist.StudentT(torch.full((3,), 8.0).double())  # of which no Gaussian is exact
        found = self.found(self.start(2.0), heavy, known=[known])
        assert found.given_up
        assert divergence(found, known) < 0.5
        narrow = Gaussian(torch.zeros(3).double(), 0.05 * torch.eye(3).double())
        assert not self.found(self.start(2.0), heavy, known=[narrow]).given_up

    def test_divergence_is_kullback_and_leiblers(self):
        torch.manual_seed(0)
        one, other = (
            Gaussian(torch.randn(3).double(), torch.randn(3, 3).double().tril() + 3 * torch.eye(3))
            for _ in range(2)
        )
        p, q = (
            torch.distributions.MultivariateNormal(g.loc, scale_tril=g.scale_tril)
            for g in (one, other)
        )
        expected = float(torch.distributions.kl_divergence(p, q))
        assert math.isclose(divergence(one, other), expected, rel_tol=1e-9)


def test_a_prior_median_far_from_the_data_is_left():
    """Gamma(0.01, 0.01), as BUGS models have it: its median is 1e-30."""

    def model(y):
        tau = pyro.sample("tau", dist.Gamma(torch.tensor(0.01).double(), 0.01))
        with pyro.plate("group", len(y)):
            b = pyro.sample("b", dist.Normal(0.0, tau.rsqrt()))
            pyro.sample("y", dist.Binomial(20, logits=b), obs=y)

    y = torch.tensor([3.0, 12.0, 7.0, 15.0, 10.0, 5.0, 8.0, 11.0]).double()
    for seed in range(3):
        with seeded(seed):
            guide = AutoFlow(model).setup(y)
            log_joint = LogJoint(model, guide, (y,), through=guide.noncentring)
            best = find_gaussian(log_joint, guide)
        assert abs(float(guide.median()["tau"].log())) < 4
        assert best.elbo > best.plain_elbo


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300, 1e-300])
def test_eigenvalues_of_what_is_no_matrix(value):
    matrix = torch.eye(3).double().expand(2, 3, 3).clone()
    matrix[0, 0, 1] = matrix[0, 1, 0] = value
    eigenvalues, vectors = eigh(matrix)
    assert bool(torch.isfinite(eigenvalues).all())
    assert bool(torch.isfinite(vectors).all())
    torch.testing.assert_close(eigenvalues[1], torch.ones(3).double())
