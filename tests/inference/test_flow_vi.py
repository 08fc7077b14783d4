# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""FlowVI from start to judgement, on posteriors that are known."""

import math
import random
import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import Predictive, config_enumerate
from pyro.infer.autoguide import (
    AutoDelta,
    AutoDiagonalNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
)
from pyro.infer.autoguide.initialization import init_to_value

from pyro_flows import AutoFlow, FlowVI, Posterior, assess
from pyro_flows.distributions import Flow
from pyro_flows.errors import GuideError
from pyro_flows.inference import Objective
from pyro_flows.inference import flow_vi as module
from pyro_flows.transforms import AffineCoupling

from .models import Y, fitted, flat, gamma_rate, normal_mean, normal_mean_exact


def run(model, *args, num_steps=30, **options):
    return FlowVI(model, num_steps=num_steps, progress=False, **options).run(*args)


def skewed():
    """No Gaussian fits it well, and a flow takes its time."""
    x = pyro.sample("x", dist.StudentT(3.0, torch.zeros(()).double(), 1.0))
    pyro.sample("y", dist.Normal(x.sinh(), 1.0).expand([3]).to_event(1))


def same_draws(first, second, n=100):
    a, b = first.draws(n), second.draws(n)
    return all(torch.equal(a[name], b[name]) for name in a)


class TestConjugateModels:
    def test_normal(self):
        posterior = fitted("normal")
        mean, sd, evidence = normal_mean_exact(Y)
        assert posterior.verdict.status == "reliable"
        assert posterior.elbo == pytest.approx(evidence, abs=1e-4)
        assert posterior.log_evidence == pytest.approx(evidence, abs=1e-4)
        draws = posterior.draws(20_000)["mean"]
        assert float(draws.mean()) == pytest.approx(mean, abs=4 * sd / math.sqrt(20_000))
        assert float(draws.std()) == pytest.approx(sd, rel=0.03)

    def test_gamma(self):
        posterior = fitted("gamma")
        a, b = 2.0 + len(Y), 1.0 + float(Y.sum())
        evidence = math.lgamma(a) - a * math.log(b)
        assert posterior.verdict.status in ("reliable", "corrected")
        assert posterior.log_evidence == pytest.approx(evidence, abs=5e-3)
        assert posterior.elbo <= evidence + 2 * posterior.elbo_se
        draws = posterior.draws(4000)["rate"]
        assert float(draws.mean()) == pytest.approx(a / b, rel=0.03)
        assert float(draws.std()) == pytest.approx(math.sqrt(a) / b, rel=0.06)


class TestSeed:
    def test_the_same_bit_for_bit_whatever_the_global_state(self):
        first = run(gamma_rate, Y, seed=3)
        torch.manual_seed(99)
        np.random.seed(99)
        random.seed(99)
        torch.randn(7)
        second = run(gamma_rate, Y, seed=3)
        assert same_draws(first, second)
        assert first.elbo == second.elbo
        np.testing.assert_array_equal(first.pool.log_q, second.pool.log_q)
        np.testing.assert_array_equal(first.report.history["elbo"], second.report.history["elbo"])

    def test_another_seed_differs(self):
        first, second = run(gamma_rate, Y, seed=3), run(gamma_rate, Y, seed=4)
        assert not same_draws(first, second)

    def test_the_global_state_is_left_alone(self):
        torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()
        python_before = random.getstate()
        posterior = run(normal_mean, Y)
        posterior.draws(50_000)
        posterior.summary()
        posterior.to_arviz(100)
        assert torch.equal(torch.get_rng_state(), torch_before)
        assert random.getstate() == python_before
        np.testing.assert_array_equal(np.random.get_state()[1], numpy_before[1])


def three():
    pyro.sample("x", dist.Normal(torch.zeros(3, dtype=torch.float64), 1.0).to_event(1))


class TestGuides:
    @pytest.mark.parametrize(
        "make",
        [
            AutoMultivariateNormal,
            AutoDiagonalNormal,
            lambda model: AutoNormalizingFlow(
                model, lambda dim: pyro.distributions.transforms.affine_autoregressive(dim)
            ),
            AutoFlow,
            lambda model: AutoFlow(model, flow=lambda dim: [AffineCoupling(dim)]),
        ],
        ids=["full normal", "diagonal normal", "pyro flow", "AutoFlow", "own flow"],
    )
    def test_any_continuous_guide(self, make):
        def model(y):
            scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
            pyro.sample("slope", dist.Normal(0.0, 1.0))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(0.0, scale), obs=y)

        guide = make(model)
        posterior = run(model, Y, guide=guide, num_steps=5, num_particles=20)
        # An AutoFlow is copied, so that posteriors made from it before stay as they are.
        assert (posterior.guide is guide) != isinstance(guide, AutoFlow)
        assert posterior.draws(10)["scale"].shape == (10,)
        assert posterior.verdict.status in ("reliable", "corrected", "not reliable")
        assert math.isfinite(posterior.elbo)
        if not isinstance(guide, AutoFlow):
            assert posterior.cost["seconds_warm_start"] < 5

    def test_a_gaussian_guide_is_trained(self):
        guide = AutoMultivariateNormal(normal_mean)
        posterior = run(
            normal_mean, Y, guide=guide, num_steps=400, learning_rate=0.05, num_particles=16
        )
        mean, sd, evidence = normal_mean_exact(Y)
        assert posterior.log_evidence == pytest.approx(evidence, abs=0.01)
        draws = posterior.draws(4000)["mean"]
        assert float(draws.mean()) == pytest.approx(mean, abs=0.1)

    @pytest.mark.parametrize("guide", [AutoNormal, AutoDelta, lambda model: model])
    def test_others_are_refused(self, guide):
        with pytest.raises(GuideError, match=r"expected guide= to be an AutoContinuous, but got"):
            FlowVI(normal_mean, guide(normal_mean))

    @pytest.mark.parametrize("flow", ["nsf", "realnvp", Flow([AffineCoupling(3)])])
    def test_flow(self, flow):
        posterior = run(three, flow=flow, num_steps=2, num_particles=16)
        name = flow if isinstance(flow, str) else None
        assert posterior.guide.flow_name == name

    def test_the_guide_serves_in_pyro(self):
        guide = fitted("normal").guide
        samples = Predictive(normal_mean, guide=guide, num_samples=2000)(Y)["mean"]
        mean, sd, _ = normal_mean_exact(Y)
        assert float(samples.mean()) == pytest.approx(mean, abs=0.1 * sd)
        assert float(samples.std()) == pytest.approx(sd, rel=0.1)


class TestSteps:
    def test_num_steps_is_obeyed(self):
        posterior = run(gamma_rate, Y, num_steps=17, num_particles=10)
        assert posterior.report.steps == 17
        assert len(posterior.report.history["elbo"]) == 17

    def test_max_steps_is_obeyed(self):
        posterior = FlowVI(gamma_rate, max_steps=40, progress=False).run(Y)
        assert posterior.report.steps <= 40

    @pytest.mark.parametrize("limit", [1, 499, 500, 1499, 1500, 4000, 20_000])
    def test_cycles_stay_within_the_limit(self, limit):
        cycles = module._cycles(None, limit)
        assert 0.25 * limit <= sum(cycles) <= limit

    @pytest.mark.parametrize("limit", [25_000, pytest.param(100_000, marks=pytest.mark.slow)])
    def test_max_gradients_is_obeyed(self, limit):
        spent = []

        def counted(objective, particles):
            spent.append(particles)
            return gradient(objective, particles)

        gradient = Objective.gradient
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Objective, "gradient", counted)
            posterior = FlowVI(skewed, max_gradients=limit, progress=False).run()
        judging = 6_000
        assert limit / 2 < posterior.cost["gradients"] < limit + judging
        assert sum(spent) < limit
        assert "used up" in posterior.report.stop_reason

    def test_the_search_for_modes_takes_its_share_only(self):
        whole = FlowVI(skewed, num_steps=1, progress=False).run()
        short = FlowVI(skewed, num_steps=1, max_gradients=8_000, progress=False).run()
        assert short.cost["gradients"] < 0.8 * whole.cost["gradients"]
        note = "The search for further modes was cut short"
        assert any(note in line for line in short.verdict.reasons)
        assert not any(note in line for line in whole.verdict.reasons)

    def test_a_search_may_take_all_gradients(self):
        posterior = FlowVI(skewed, max_gradients=1, progress=False).run()
        assert posterior.report.steps == 0
        assert "1 pay for none" in posterior.report.stop_reason
        assert math.isfinite(posterior.elbo)

    @pytest.mark.parametrize("steps", [-50, 0, 1, 400, 1600, 1601, 5000, 100_000])
    @pytest.mark.parametrize("whole", [True, False])
    def test_cycles_of_a_budget(self, steps, whole):
        cycles = module._budgeted(steps, whole=whole)
        assert sum(cycles) == max(0, steps)
        assert all(cycle > 0 for cycle in cycles)
        if whole or steps <= 1600:
            assert len(cycles) == (steps > 0)
        else:
            assert cycles[:2] == [400, 800]
            assert len(cycles) == (3 if steps < 10_000 else 6)

    def test_a_budget_ends_max_steps(self):
        """Steps that the budget pays for are made; not those beyond what was asked for."""
        posterior = FlowVI(skewed, max_gradients=100_000, max_steps=50, progress=False).run()
        assert posterior.report.steps == 50
        posterior = FlowVI(skewed, max_gradients=100_000, num_steps=60, progress=False).run()
        assert posterior.report.steps == 60

    @pytest.mark.parametrize("value", [0, -3, 2.5, "many"])
    @pytest.mark.parametrize("name", ["num_steps", "max_steps", "max_gradients"])
    def test_nonsense_is_refused(self, name, value):
        with pytest.raises(GuideError, match=f"expected {name} >= 1, but got"):
            FlowVI(normal_mean, **{name: value})

    def test_particles(self):
        few = run(gamma_rate, Y, num_particles=10)
        many = run(gamma_rate, Y, num_particles=50)
        assert many.cost["gradients"] - few.cost["gradients"] == 30 * 40

    def test_cost_is_by_stage(self):
        cost = fitted("normal").cost
        stages = [v for k, v in cost.items() if k.startswith("seconds_")]
        assert cost["seconds"] == pytest.approx(sum(stages))
        assert {"seconds_setup", "seconds_warm_start", "seconds_training"} <= set(cost)

    @pytest.mark.parametrize("progress", [True, False])
    def test_progress(self, progress, capfd):
        FlowVI(normal_mean, num_steps=2, progress=progress).run(Y)
        out, err = capfd.readouterr()
        assert out == ""
        assert ("FlowVI" in err) == progress


class TestInterrupt:
    def test_in_training(self, monkeypatch):
        gradient, calls = Objective.gradient, []

        def interrupted(self, particles):
            calls.append(particles)
            if len(calls) > 12:
                raise KeyboardInterrupt
            return gradient(self, particles)

        monkeypatch.setattr(Objective, "gradient", interrupted)
        posterior = run(gamma_rate, Y)
        assert isinstance(posterior, Posterior)
        assert posterior.report.interrupted
        assert posterior.report.steps == 12
        assert "interrupted by the user" in repr(posterior)
        a, b = 2.0 + len(Y), 1.0 + float(Y.sum())
        assert posterior.log_evidence == pytest.approx(math.lgamma(a) - a * math.log(b), abs=0.05)

    def test_before_the_first_step_it_is_not_reliable(self, monkeypatch):
        def interrupted(self, particles):
            raise KeyboardInterrupt

        monkeypatch.setattr(Objective, "gradient", interrupted)
        posterior = run(gamma_rate, Y)
        assert posterior.verdict.status == "not reliable"
        assert "interrupted" in posterior.verdict.reasons[0]

    def test_in_the_warm_start(self, monkeypatch):
        def interrupted(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(module, "find_start", interrupted)
        posterior = run(normal_mean, Y)
        assert posterior.report.interrupted
        assert "in the warm start" in posterior.report.stop_reason
        assert posterior.verdict.status == "not reliable"
        assert posterior.draws(3)["mean"].shape == (3,)

    def test_a_guide_trained_before_is_not_thrown_away(self):
        first = run(normal_mean, Y)
        again = FlowVI(normal_mean, guide=first.guide, seed=1, num_steps=1, progress=False).run(Y)
        assert again.elbo > first.elbo - 1e-3

    def test_the_random_state_is_restored(self, monkeypatch):
        def broken(self, particles):
            raise ValueError("broken")

        monkeypatch.setattr(Objective, "gradient", broken)
        before = torch.get_rng_state()
        with pytest.raises(ValueError, match="broken"):
            run(gamma_rate, Y)
        assert torch.equal(torch.get_rng_state(), before)


MEANS = torch.tensor([0.0, 3.0], dtype=torch.float64)
SHARES = torch.tensor([0.4, 0.6], dtype=torch.float64)


@config_enumerate
def mixture_of_each(y):
    """Each datum from one of two components, which are shifted together."""
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Categorical(SHARES))
        pyro.sample("y", dist.Normal(MEANS[k] + shift, 1.0), obs=y)


@config_enumerate
def mixture_of_all(y):
    """All data from one of two components."""
    shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
    k = pyro.sample("k", dist.Categorical(SHARES))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(MEANS[k] + shift, 1.0), obs=y)


class TestModels:
    def test_one_that_cannot_be_vectorised_says_so(self):
        def branching(y):
            mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            scale = 1.0 if mean.item() > -1e9 else 2.0
            pyro.sample("y", dist.Normal(mean, scale).expand(y.shape).to_event(1), obs=y)

        posterior = run(branching, Y, num_steps=2)
        assert posterior.log_joint.mode == "sequential"
        assert "Log joint: sequential (" in repr(posterior)
        assert posterior.log_evidence == pytest.approx(normal_mean_exact(Y)[2], abs=1e-3)

    @pytest.mark.parametrize(
        ("model", "y"),
        [("local", [0.3, 2.9, 3.2, -0.1]), ("all", [-1.0, -1.4, -0.8, -1.6])],
        ids=["a draw per datum", "one for all"],
    )
    def test_enumerated_discrete_latents(self, model, y):
        y = torch.tensor(y)
        posterior = run(mixture_of_each if model == "local" else mixture_of_all, y)
        grid = torch.linspace(-8, 8, 8001)
        component = dist.Normal(MEANS + grid[:, None, None], 1.0).log_prob(y[:, None])
        if model == "local":
            likelihood = torch.logsumexp(component + SHARES.log(), -1).sum(-1)
        else:
            likelihood = torch.logsumexp(component.sum(-2) + SHARES.log(), -1)
        joint = likelihood + dist.Normal(0.0, 1.0).log_prob(grid)
        evidence = float(torch.logsumexp(joint, 0) + math.log(16 / 8000))
        mean = float((joint.softmax(0) * grid).sum())
        assert posterior.log_joint.mode == "captured"
        assert posterior.log_evidence == pytest.approx(evidence, abs=0.01)
        assert float(posterior.draws(4000)["shift"].mean()) == pytest.approx(mean, abs=0.05)
        assert list(posterior.draws(3)) == ["shift"]

    def test_a_subsampled_plate_cannot_be_judged(self):
        def model(y):
            mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            with pyro.plate("data", len(y), subsample_size=3) as index:
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y[index])

        posterior = run(model, torch.linspace(-2, 3, 10))
        assert posterior.verdict.status == "not reliable"
        assert "'data' is subsampled" in posterior.verdict.reasons[0]
        assert "with all data" in posterior.verdict.advice[0]

    def test_a_random_log_joint_cannot_be_judged(self):
        def model():
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.factor("noise", 0.1 * torch.randn(()) * x)

        posterior = run(model)
        assert posterior.verdict.status == "not reliable"
        assert "random numbers of its own" in posterior.verdict.reasons[0]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_dtype_is_kept(self, dtype):
        torch.set_default_dtype(torch.float32)
        posterior = run(normal_mean, Y.to(dtype))
        assert posterior.draws(10)["mean"].dtype == dtype
        assert {p.dtype for p in posterior.guide.parameters()} == {dtype}
        assert posterior.elbo == pytest.approx(normal_mean_exact(Y)[2], abs=1e-3)
        assert posterior.verdict.status == "reliable"

    def test_keyword_arguments(self):
        def model(x, *, y=None):
            b = pyro.sample("b", dist.Normal(0.0, 10.0))
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(b * x, 0.1), obs=y)

        posterior = FlowVI(model, num_steps=2, progress=False).run(Y, y=2 * Y)
        assert float(posterior.draws(100)["b"].mean()) == pytest.approx(2.0, abs=0.05)


def far_modes():
    """Two modes of equal mass, twelve standard deviations apart."""
    x = flat("x")
    pyro.factor("two", torch.logaddexp(-0.5 * (x - 6) ** 2, -0.5 * (x + 6) ** 2))


class TestMissedModes:
    def test_both_are_found(self):
        posterior = run(far_modes)
        share = float((posterior.draws(4000)["x"] > 0).double().mean())
        assert share == pytest.approx(0.5, abs=0.05)
        expected = math.log(2) + 0.5 * math.log(2 * math.pi)
        assert posterior.log_evidence == pytest.approx(expected, abs=0.01)
        assert posterior.verdict.status == "reliable"

    def test_a_guide_on_one_mode_is_flagged(self, monkeypatch):
        monkeypatch.setattr(AutoFlow, "split", lambda self, *mixture: None)
        posterior = run(far_modes)
        assert posterior.verdict.status == "not reliable"
        assert "modes may be missing" in posterior.verdict.reasons[0]
        assert posterior.verdict.advice

    def test_one_mode_found_from_many_starts_is_not(self):
        posterior = fitted("normal")
        assert not any("may be missing" in reason for reason in posterior.verdict.reasons)

    @pytest.mark.parametrize("guide", [AutoDiagonalNormal, AutoMultivariateNormal])
    def test_also_with_another_guide(self, guide):
        guide = guide(far_modes, init_loc_fn=lambda site: torch.tensor(1.0))
        posterior = run(far_modes, guide=guide, num_steps=200, learning_rate=0.1)
        assert posterior.verdict.status == "not reliable"

    def test_two_modes_of_a_mixture(self):
        posterior = run(mixture_of_all, torch.tensor([0.3, 2.9, 3.2, -0.1]))
        assert posterior.log_evidence == pytest.approx(-9.775, abs=0.01)
        assert posterior.verdict.status == "reliable"


class TestParamStore:
    def test_nothing_is_left_in_it(self):
        pyro.param("mine", torch.tensor(3.0))
        for guide in (None, AutoMultivariateNormal(normal_mean), AutoFlow(normal_mean)):
            posterior = run(normal_mean, Y, guide=guide, num_steps=2)
            posterior.draws(10)
            posterior.to_arviz(10)
            posterior.summary()
        assert list(pyro.get_param_store().keys()) == ["mine"]
        assert pyro.param("mine").tolist() == 3.0

    def test_the_models_own_parameters_stay_where_pyro_keeps_them(self):
        def model(y):
            scale = pyro.param("scale", torch.tensor(1.0))
            mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            pyro.sample("y", dist.Normal(mean, scale.abs()).expand(y.shape).to_event(1), obs=y)

        posterior = run(model, Y, learning_rate=0.05)
        assert list(pyro.get_param_store().keys()) == ["scale"]
        assert torch.equal(posterior.parameters["scale"], pyro.param("scale").detach())
        assert not posterior.parameters["scale"].requires_grad
        assert float(posterior.parameters["scale"]) != 1.0


def test_two_fits_share_nothing():
    first = run(normal_mean, Y)
    before = first.draws(100)
    run(normal_mean, Y + 5, seed=1)
    after = first.draws(100)
    assert torch.equal(before["mean"], after["mean"])
    fresh = first.sample_guide(100, seed=7)[0]
    run(normal_mean, Y - 5, seed=1)
    np.testing.assert_array_equal(first.sample_guide(100, seed=7)[0], fresh)


def test_handlers_outside_see_nothing():
    with poutine.trace() as outer, warnings.catch_warnings():
        run(normal_mean, Y, num_steps=2)
    assert not [n for n, s in outer.trace.nodes.items() if s["type"] in ("sample", "param")]


class TestScales:
    """Columns in other units: the posterior is the same but for them."""

    X = torch.randn(40, 3, generator=torch.Generator().manual_seed(0)).double()
    Y = (X @ torch.tensor([1.5, -1.0, 0.5]).double() > 0.3).double()

    def logistic(self, x):
        # A prior in each column's own units, so that the posterior is proper and skewed.
        scale = 3.0 / x.std(0)
        beta = pyro.sample("beta", dist.Normal(torch.zeros(3).double(), scale).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=beta @ x.T), obs=self.Y)

    @pytest.mark.parametrize(
        "units", [[1e4, 1.0, 1e-4], pytest.param([1e-4, 1e-4, 1e4], marks=pytest.mark.slow)]
    )
    def test_the_gap_is_that_of_other_units(self, units):
        units = torch.tensor(units).double()
        plain = FlowVI(self.logistic, progress=False, max_steps=400).run(self.X)
        scaled = FlowVI(self.logistic, progress=False, max_steps=400).run(self.X * units)
        assert abs(plain.weights.gap - scaled.weights.gap) < 0.005
        assert plain.weights.gap > 1e-5, "an exact Gaussian would show nothing"
        torch.testing.assert_close(
            plain.draws()["beta"].mean(0),
            scaled.draws()["beta"].mean(0) * units,
            rtol=0.05,
            atol=0.1,
        )


class TestInterruptedChecks:
    def test_the_fit_is_kept_and_said_to_be_unchecked(self, monkeypatch):
        def interrupted(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(module, "examine", interrupted)
        posterior = run(gamma_rate, Y, num_steps=5)
        assert posterior.report.steps == 5
        assert posterior.verdict.status == "not reliable"
        assert "checks of the guide were interrupted" in str(posterior)
        assert len(posterior.draws(100)["rate"]) == 100


def test_nothing_hangs_on_the_default_device():
    """A model of CPU tensors, whatever the default device is; also one of two modes."""
    y, zero, one = (torch.tensor(value, device="cpu") for value in ((4.0, 3.0), 0.0, 1.0))

    def groups():
        mu = pyro.sample("mu", dist.Normal(zero, one))
        tau = pyro.sample("tau", dist.HalfCauchy(one))
        with pyro.plate("group", 2, device="cpu"):
            pyro.sample("y", dist.Normal(pyro.sample("theta", dist.Normal(mu, tau)), one), obs=y)

    def two_modes():
        x = pyro.sample("x", dist.Normal(zero, one))
        pyro.sample("y", dist.Normal(x.square(), 0.2 * one), obs=y[0])

    torch.set_default_device("meta")
    try:
        for model, modes in ((groups, 1), (two_modes, 2)):
            posterior = FlowVI(model, num_steps=2, progress=False).run()
            assert posterior.guide.modes == modes
            assert math.isfinite(posterior.log_evidence)
            assert all(value.device.type == "cpu" for value in posterior.draws(10).values())
            posterior.summary()
            assess(model, posterior.guide)
    finally:
        torch.set_default_device(None)


def test_a_guide_of_ones_own_tells_of_an_improper_posterior():
    """A ridge: only the sum of a and b is known."""

    def ridge(y):
        flat = dist.ImproperUniform(dist.constraints.real, (), ())
        a, b = pyro.sample("a", flat), pyro.sample("b", flat)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)

    start = {"values": {"a": torch.tensor(0.5).double(), "b": torch.tensor(0.5).double()}}
    guide = AutoMultivariateNormal(ridge, init_loc_fn=init_to_value(**start))
    posterior = run(ridge, Y.double(), guide=guide, num_steps=50)
    assert "may be improper" in str(posterior.verdict)
    assert "modes may be missing" not in str(posterior.verdict)


class TestOneCoordinate:
    """With no other to be moved along, it has a spline."""

    def test_a_skewed_posterior(self):
        def model():
            pyro.sample("rate", dist.Gamma(0.3, 1.0))

        posterior = FlowVI(model, seed=0, progress=False).run()
        assert posterior.verdict.status == "reliable"
        assert posterior.elbo == pytest.approx(0.0, abs=0.002)  # a Gaussian's is -0.1

    def test_a_guide_that_is_as_good_inside_its_support_is_led_there(self):
        """A wide Gaussian, restricted to an interval, is uniform already."""

        def model():
            x = pyro.sample("x", dist.ImproperUniform(constraints.real, (), ()))
            pyro.factor("box", torch.where((x > 0) & (x < 1), 0.0, -math.inf))

        posterior = FlowVI(model, seed=0, progress=False).run()
        assert posterior.verdict.status != "not reliable"
        assert posterior.weights.n_zero < 0.1 * posterior.weights.n

    @pytest.mark.slow
    def test_an_edge_that_a_parameter_sets(self):
        """The posterior of an unknown maximum: y^-(n + 1) above the largest observation."""
        y = torch.tensor([0.3, 2.0, 1.1, 2.9, 2.2])

        def model():
            largest = pyro.sample("largest", dist.Pareto(1.0, 1.0))
            with pyro.plate("data", 5):
                pyro.sample("y", dist.Uniform(0.0, largest), obs=y)

        posterior = FlowVI(model, seed=0, progress=False).run()
        assert posterior.verdict.status != "not reliable"
        assert posterior.weights.n_zero < 0.1 * posterior.weights.n
        largest = posterior.draws(10_000)["largest"]
        assert float(largest.min()) > 2.9
        # P(largest > x) = (2.9 / x)^6
        assert float(largest.median()) == pytest.approx(2.9 * 2 ** (1 / 6), rel=0.01)
