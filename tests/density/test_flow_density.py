# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""FlowDensity on data whose density is known."""

import math

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide

from pyro_flows import transforms
from pyro_flows.density import FlowDensity
from pyro_flows.distributions import Flow
from pyro_flows.errors import DataError

QUICK = {"flow": "realnvp", "num_steps": 30, "progress": False}
OPTIONS = {"flow_options": {"layers": 2, "hidden_dims": (16,)}}


def skewed(n=400, seed=0):
    """A gamma and a beta column, of very different sizes, dependent."""
    g = np.random.default_rng(seed)
    a = g.gamma(3.0, size=n)
    return np.stack([1000 * a, g.beta(1 + a, 2.0)], 1)


@pytest.fixture(scope="module")
def fitted():
    density = FlowDensity(**QUICK, **OPTIONS, support=["positive", (0, 1)])
    return density.fit(skewed())


def test_a_linear_flow_finds_the_gaussian():
    g = np.random.default_rng(0)
    mixing = np.array([[3.0, 0.0], [40.0, 30.0]])
    x = np.array([5.0, -200.0]) + g.normal(size=(4000, 2)) @ mixing.T
    options = {"learning_rate": 0.02, "max_epochs": 60, "progress": False, "dtype": "float64"}
    density = FlowDensity(lambda dim: [transforms.CholeskyAffine(dim)], **options).fit(x)
    covariance = mixing @ mixing.T
    truth = dist.MultivariateNormal(
        torch.tensor([5.0, -200.0]), covariance_matrix=torch.as_tensor(covariance)
    )
    test = truth.sample((500,))
    gap = truth.log_prob(test) - density.score_samples(test)
    assert abs(gap.mean()) < 0.01
    assert density.score(test) == pytest.approx(density.score_samples(test).mean().item())
    draws = density.sample(20_000)
    np.testing.assert_allclose(draws.mean(0), [5.0, -200.0], rtol=0.05)
    np.testing.assert_allclose(np.cov(draws.T), covariance, rtol=0.1)


def test_the_density_integrates_to_one(fitted):
    # In the units of x, so that all Jacobians count: 400 x 400 points under the whole support.
    edges = [np.linspace(0, 20_000, 801), np.linspace(0, 1, 201)]
    centres = [(e[1:] + e[:-1]) / 2 for e in edges]
    grid = np.stack(np.meshgrid(*centres, indexing="ij"), -1).reshape(-1, 2)
    total = np.exp(fitted.score_samples(grid)).sum() * 25 * 0.005
    assert total == pytest.approx(1.0, abs=0.02)


def test_draws_agree_with_the_density(fitted):
    draws = fitted.sample(4000, seed=1)
    assert (draws[:, 0] > 0).all()
    assert ((draws[:, 1] > 0) & (draws[:, 1] < 1)).all()
    centres = np.linspace(0, 10_000, 401)[1:] - 12.5
    grid = np.stack(np.meshgrid(centres, np.linspace(0.0025, 0.9975, 200), indexing="ij"), -1)
    mass = np.exp(fitted.score_samples(grid.reshape(-1, 2))).reshape(400, 200).sum(1) * 25 * 0.005
    for value in (1000, 3000, 5000):
        expected = mass[centres < value].sum()
        assert (draws[:, 0] < value).mean() == pytest.approx(expected, abs=0.03)


def test_outside_the_support_there_is_no_density(fitted):
    x = [[-1.0, 0.5], [0.0, 0.5], [10.0, 1.0], [10.0, 1.5], [10.0, 0.5]]
    assert np.isneginf(fitted.score_samples(x)).tolist() == [True] * 4 + [False]
    assert fitted.score(x) == -math.inf


class TestKinds:
    def test_arrays(self):
        for dtype in (np.float32, np.float64):
            x = skewed().astype(dtype)
            density = FlowDensity(**QUICK, **OPTIONS).fit(x)
            for result in (density.score_samples(x), density.sample(3)):
                assert isinstance(result, np.ndarray)
                assert result.dtype == dtype
            assert isinstance(density.score(x), float)

    def test_tensors(self):
        for dtype in (torch.float32, torch.float64):
            x = torch.as_tensor(skewed(), dtype=dtype)
            density = FlowDensity(**QUICK, **OPTIONS).fit(x)
            for result in (density.score_samples(x), density.sample(3)):
                assert isinstance(result, torch.Tensor)
                assert result.dtype == dtype
                assert not result.requires_grad

    def test_frames(self):
        x = pd.DataFrame(skewed(), columns=["income", "share"])
        density = FlowDensity(**QUICK, **OPTIONS, support={"income": "positive"}).fit(x)
        assert density.feature_names_in_ == ["income", "share"]
        assert isinstance(density.score_samples(x), np.ndarray)
        with pytest.raises(ValueError, match=r"as in fit, but got \['share', 'income'\]"):
            density.score_samples(x[["share", "income"]])

    def test_integers_are_numbers(self):
        x = np.random.default_rng(0).integers(0, 10**6, size=(50, 2))
        density = FlowDensity(**QUICK, **OPTIONS).fit(x)
        assert density.score_samples(x).dtype == np.float64

    def test_the_users_data_are_left_alone(self):
        x = torch.as_tensor(skewed())
        before, version = x.clone(), x._version
        FlowDensity(**QUICK, **OPTIONS).fit(x)
        assert torch.equal(x, before)
        assert x._version == version


class TestContext:
    @pytest.fixture(scope="class")
    @staticmethod
    def regression():
        g = np.random.default_rng(0)
        context = 50 + 10 * g.normal(size=(3000, 2))
        y = context[:, :1] * 2 + (0.2 * context[:, 1:] - 5) ** 2 / 5 * g.normal(size=(3000, 1))
        density = FlowDensity("realnvp", max_epochs=30, learning_rate=0.02, progress=False)
        density.fit(y, context)
        return density, context, y

    def test_it_learns_the_conditional_density(self, regression):
        density, context, y = regression
        assert density.n_context_in_ == 2
        mean, sd = context[:, 0] * 2, (0.2 * context[:, 1] - 5) ** 2 / 5
        truth = -0.5 * ((y[:, 0] - mean) / sd) ** 2 - np.log(sd) - 0.5 * math.log(2 * math.pi)
        usual = sd > 1
        assert (truth - density.score_samples(y, context))[usual].mean() < 0.1

    def test_draws(self, regression):
        density, context, _ = regression
        assert density.sample(7, context[:3]).shape == (7, 3, 1)
        draws = density.sample(5000, [50.0, 50.0])
        assert draws.shape == (5000, 1)
        assert draws.mean() == pytest.approx(100, abs=1.5)
        assert draws.std() == pytest.approx(5, rel=0.3)

    def test_one_context_serves_all_rows(self, regression):
        density, context, y = regression
        one = density.score_samples(y[:5], context[:1])
        many = density.score_samples(y[:5], np.repeat(context[:1], 5, 0))
        np.testing.assert_array_equal(one, many)

    def test_validation_is_a_pair(self):
        x = skewed()
        density = FlowDensity(**QUICK, **OPTIONS)
        density.fit(x[:300, :1], x[:300, 1:], validation=(x[300:, :1], x[300:, 1:]))
        expected = density.score(x[300:, :1], x[300:, 1:])
        assert density.best_score_ == pytest.approx(expected, abs=1e-4)


class TestReproducible:
    def test_from_the_seed(self):
        x = skewed()
        one, two, other = (FlowDensity(**QUICK, **OPTIONS, seed=seed).fit(x) for seed in (3, 3, 4))
        np.testing.assert_array_equal(one.score_samples(x), two.score_samples(x))
        np.testing.assert_array_equal(one.sample(5), two.sample(5))
        assert not np.array_equal(one.score_samples(x), other.score_samples(x))

    def test_global_random_numbers_are_left_alone(self):
        torch.manual_seed(7)
        np.random.seed(7)
        expected = torch.rand(3), np.random.rand(3)
        torch.manual_seed(7)
        np.random.seed(7)
        density = FlowDensity(**QUICK, **OPTIONS).fit(skewed())
        density.sample(4)
        density.plot()
        assert torch.equal(torch.rand(3), expected[0])
        np.testing.assert_array_equal(np.random.rand(3), expected[1])

    def test_draws_follow_their_seed(self, fitted):
        np.testing.assert_array_equal(fitted.sample(4), fitted.sample(4))
        assert not np.array_equal(fitted.sample(4), fitted.sample(4, seed=1))


class TestWhatItFound:
    def test_attributes(self, fitted):
        assert fitted.n_features_in_ == 2
        assert fitted.n_context_in_ == 0
        assert fitted.n_steps_ == 30
        assert fitted.n_epochs_ == pytest.approx(30)
        assert fitted.seconds_ > 0
        assert fitted.best_score_se_ > 0
        assert "30 steps" in fitted.stop_reason_
        history = fitted.history_
        assert len(history["step"]) == len(history["log_density"]) == 30
        assert history["heldout_log_density"].max() == pytest.approx(fitted.best_score_, abs=1e-3)

    def test_training_scores_are_in_the_units_of_x_too(self, fitted):
        assert fitted.history_["log_density"][-5:].mean() == pytest.approx(
            fitted.score(skewed()), abs=0.5
        )

    def test_the_best_state_is_kept_not_the_last(self):
        x = skewed(60)
        density = FlowDensity(
            "nsf", num_steps=100, learning_rate=0.05, progress=False, flow_options={"layers": 2}
        ).fit(x, validation=skewed(500, seed=1))
        heldout = density.history_["heldout_log_density"]
        assert heldout[-1] < heldout.max() - 0.1, "it overfits 60 rows"
        assert density.best_score_ == pytest.approx(heldout.max(), abs=1e-3)
        assert density.score(skewed(500, seed=1)) == pytest.approx(heldout.max(), abs=1e-3)

    def test_it_stops_when_nothing_is_gained(self):
        x = np.random.default_rng(0).normal(size=(2000, 1))
        density = FlowDensity("realnvp", max_epochs=4000, progress=False).fit(x)
        assert "nats on validation rows" in density.stop_reason_
        assert density.n_epochs_ < 1000

    def test_the_time_limit(self):
        density = FlowDensity("realnvp", max_seconds=0.5, progress=False).fit(skewed())
        assert density.stop_reason_ == "the time limit was reached"
        assert density.seconds_ < 5


def test_a_progress_bar(capfd):
    options = {**QUICK, "progress": True}
    FlowDensity(**options, **OPTIONS).fit(skewed())
    out, err = capfd.readouterr()
    assert out == ""
    assert "FlowDensity" in err
    assert "log density" in err


class TestFlows:
    def test_a_flow_is_copied(self):
        flow = Flow([transforms.AffineCoupling(2)])
        before = {k: v.clone() for k, v in flow.state_dict().items()}
        density = FlowDensity(flow, num_steps=20, progress=False).fit(skewed())
        assert density.flow_ is not flow
        assert density.flow is flow
        for name, value in flow.state_dict().items():
            assert torch.equal(value, before[name])

    def test_a_function_of_the_sizes(self):
        def build(dim, context_dim=0):
            return [transforms.Elementwise(dim, transforms.Affine(), context_dim)]

        x = skewed()
        plain = FlowDensity(build, num_steps=20, progress=False).fit(x)
        given = FlowDensity(build, num_steps=20, progress=False).fit(x[:, :1], x[:, 1:])
        assert plain.flow_.context_dim == 0
        assert given.flow_.context_dim == 1

    @pytest.mark.parametrize("flow", [transforms.AffineCoupling, transforms.AffineCoupling(2)])
    def test_a_single_layer(self, flow):
        density = FlowDensity(flow, num_steps=2, progress=False).fit(skewed())
        assert density.sample(3).shape == (3, 2)

    def test_what_is_set_from_data_is_set(self):
        class Seen(transforms.AffineCoupling):
            def initialize(self, y, context=None):
                seen.append((y.mean(0), y.std(0)))

        seen = []
        FlowDensity(lambda dim: [Seen(dim)], num_steps=5, progress=False).fit(skewed())
        ((mean, sd),) = seen
        assert mean.abs().max() < 0.1  # standardised by all rows, those held out as well
        assert (sd - 1).abs().max() < 0.1

    def test_dropout_is_off_when_scoring(self):
        def build(dim):
            parts = [torch.nn.Linear(1, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 2)]
            net = torch.nn.Sequential(*parts)
            return [transforms.Coupling(dim, transforms.Affine(), conditioner=net)]

        density = FlowDensity(build, num_steps=20, progress=False).fit(skewed())
        x = skewed()
        np.testing.assert_array_equal(density.score_samples(x), density.score_samples(x))


class TestAngles:
    @staticmethod
    def angles(n=400):
        g = np.random.default_rng(0)
        first = g.vonmises(3.0, 2.0, size=n)  # across the seam at pi
        return np.stack([first, g.vonmises(first, 4.0)], 1)

    def test_they_are_left_as_they_are(self, tmp_path):
        x = self.angles()
        density = FlowDensity("ncsf", num_steps=100, progress=False).fit(x)
        edges = np.linspace(-np.pi, np.pi, 201)
        centres = (edges[1:] + edges[:-1]) / 2
        grid = np.stack(np.meshgrid(centres, centres, indexing="ij"), -1).reshape(-1, 2)
        total = np.exp(density.score_samples(grid)).sum() * (edges[1] - edges[0]) ** 2
        assert total == pytest.approx(1.0, abs=0.01)
        assert (np.abs(density.sample(2000)) <= np.pi + 1e-6).all()
        seam = density.score_samples([[-np.pi + 1e-4, 0.3], [np.pi - 1e-4, 0.3]])
        assert seam[0] == pytest.approx(seam[1], abs=0.01)
        assert np.isneginf(density.score_samples([[4.0, 0.0]]))
        back = FlowDensity.load(density.save(tmp_path / "fit"))
        np.testing.assert_array_equal(back.score_samples(x), density.score_samples(x))

    def test_others_are_refused(self):
        x = self.angles()
        x[7, 1] = 5.0
        with pytest.raises(DataError, match="1 rows outside of the space.*by pyro_flows.ops.wrap"):
            FlowDensity("ncsf", num_steps=2, progress=False).fit(x)


class TestInPyro:
    def test_as_a_prior(self, fitted):
        made = fitted.distribution()
        x = skewed(5)
        log_prob = made.log_prob(torch.as_tensor(x, dtype=torch.float32))
        np.testing.assert_allclose(log_prob.detach(), fitted.score_samples(x), rtol=1e-3)
        trace = pyro.poutine.trace(lambda: pyro.sample("x", made)).get_trace()
        assert trace.nodes["x"]["value"].shape == (2,)
        assert torch.isfinite(trace.log_prob_sum())

    @pytest.mark.parametrize("support", [None, "positive", ["positive", None], [None, (0, 1)]])
    def test_inference_over_a_prior(self, support):
        density = FlowDensity(**QUICK, **OPTIONS, support=support).fit(skewed())

        def model():
            z = pyro.sample("z", density.distribution())
            pyro.sample("y", dist.Normal(z[1], 0.1), obs=torch.tensor(0.9))

        guide = autoguide.AutoNormal(model)
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.03}), pyro.infer.Trace_ELBO())
        losses = [svi.step() for _ in range(100)]
        pyro.clear_param_store()
        assert np.mean(losses[-20:]) < np.mean(losses[:20])
        assert density.columns_.inside(guide.median()["z"]).all()

    def test_as_a_likelihood(self):
        x = skewed()
        density = FlowDensity(**QUICK).fit(x[:, :1], x[:, 1:])
        made = density.distribution(x[:6, 1:])
        assert made.batch_shape == (6,)
        log_prob = made.log_prob(torch.as_tensor(x[:6, :1], dtype=torch.float32))
        np.testing.assert_allclose(
            log_prob.detach(), density.score_samples(x[:6, :1], x[:6, 1:]), rtol=1e-3
        )
