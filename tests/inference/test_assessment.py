# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Guides trained elsewhere are judged, and bursts tell draws that aren't the posterior's."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDiagonalNormal,
    AutoLaplaceApproximation,
    AutoMultivariateNormal,
    AutoNormal,
)
from pyro.ops.indexing import Vindex
from torch.distributions import constraints

from pyro_flows import AutoFlow, FlowVI, assess
from pyro_flows.diagnostics import importance_weights
from pyro_flows.distributions import Flow
from pyro_flows.errors import ChangedModelError, GuideError
from pyro_flows.guides import LogJoint
from pyro_flows.inference import Objective
from pyro_flows.inference.assessment import _pool
from pyro_flows.inference.bursts import burst
from pyro_flows.inference.checks import DRIFT_ERRORS, LARGEST_DRIFT, unreached
from pyro_flows.transforms import Layer

COVARIANCE = torch.tensor([[4.0, 0.9, 0.0], [0.9, 0.25, 0.0], [0.0, 0.0, 1e4]]).double()


def gaussian():
    pyro.sample("x", dist.MultivariateNormal(torch.tensor([5.0, -1.0, 0.0]).double(), COVARIANCE))


def set_normal(guide, *args, loc, scale):
    """An AutoDiagonalNormal, trained by hand."""
    guide(*args)
    guide.loc = torch.nn.Parameter(torch.as_tensor(loc).double())
    guide.scale = torch.as_tensor(scale).double()
    return guide


class TestBurst:
    def drift(self, draws):
        pyro.set_rng_seed(0)
        return burst(LogJoint(gaussian, AutoFlow(gaussian).setup()), draws)

    def draws(self):
        torch.manual_seed(3)
        mean = torch.tensor([5.0, -1.0, 0.0]).double()
        return mean + torch.randn(512, 3).double() @ torch.linalg.cholesky(COVARIANCE).T

    def test_exact_draws_stay(self):
        drift = self.drift(self.draws())
        assert drift.accepted > 0.6
        assert bool((drift.mean.abs() < 4 * drift.mean_se).all())
        assert bool((drift.log_sd.abs() < 4 * drift.log_sd_se).all())
        assert drift.beyond(LARGEST_DRIFT, DRIFT_ERRORS) == (0.0, -1)

    def test_a_shift_is_undone(self):
        draws = self.draws()
        draws[:, 2] += 60.0  # 0.6 standard deviations
        size, where = self.drift(draws).beyond(LARGEST_DRIFT, DRIFT_ERRORS)
        assert where == 2
        assert 0.4 < size < 0.8

    def test_a_narrow_marginal_grows(self):
        draws = self.draws()
        draws[:, 2] *= 0.5
        drift = self.drift(draws)
        assert drift.beyond(LARGEST_DRIFT, DRIFT_ERRORS)[1] == 2
        assert float(drift.log_sd[2]) > 0.3
        assert float(drift.log_sd[0].abs()) < 0.3

    def test_gradients_are_counted(self):
        log_joint = LogJoint(gaussian, AutoFlow(gaussian).setup())
        spent, ordinary = [], log_joint.value_and_grad

        def counting(z, **options):
            spent.append(len(z))
            return ordinary(z, **options)

        log_joint.value_and_grad = counting
        assert burst(log_joint, self.draws()).gradients == sum(spent)

    def test_regions_without_a_density_stop_it(self):
        def half():
            x = pyro.sample("x", dist.ImproperUniform(constraints.real, (), (2,)))
            inside = x[..., 0] > 0
            pyro.factor("f", torch.where(inside, -0.5 * x.square().sum(-1), math.nan))

        guide = AutoFlow(half, init_loc_fn=lambda site: torch.ones(2, dtype=torch.float64))
        log_joint = LogJoint(half, guide.setup())
        torch.manual_seed(0)
        z = torch.randn(512, 2).double()
        z[:, 0].abs_()
        drift = burst(log_joint, z)
        assert bool((drift.ends[:, 0] > 0).all())
        assert drift.beyond(LARGEST_DRIFT, DRIFT_ERRORS)[1] == -1


class TestAssess:
    def test_a_good_guide_is_reliable(self):
        guide = AutoMultivariateNormal(gaussian)
        guide()
        guide.loc = torch.nn.Parameter(torch.tensor([5.0, -1.0, 0.0]).double())
        factor = torch.linalg.cholesky(COVARIANCE)
        guide.scale = factor.diagonal()
        guide.scale_tril = factor / factor.diagonal()[:, None]
        posterior = assess(gaussian, guide)
        assert posterior.verdict.status == "reliable"
        assert abs(posterior.log_evidence) < 1e-6
        assert abs(float(posterior.draws(1000)["x"][:, 0].mean()) - 5) < 0.3

    def test_a_mean_field_guide_of_a_correlated_posterior_is_not_reliable(self):
        guide = set_normal(
            AutoDiagonalNormal(gaussian), loc=[5.0, -1.0, 0.0], scale=[0.87, 0.22, 100.0]
        )
        assert assess(gaussian, guide).verdict.status == "not reliable"

    def test_a_missed_mode_is_told(self):
        def two():
            x = pyro.sample("x", dist.ImproperUniform(constraints.real, (), (2,)))
            each = torch.stack([-0.5 * (x - c).square().sum(-1) for c in (-6.0, 6.0)])
            pyro.factor("f", each.logsumexp(0))

        guide = set_normal(
            AutoDiagonalNormal(
                two,
                init_loc_fn=pyro.infer.autoguide.init_to_value(
                    values={"x": torch.zeros(2, dtype=torch.float64)}
                ),
            ),
            loc=[6.0, 6.0],
            scale=[1.0, 1.0],
        )
        verdict = assess(two, guide).verdict
        assert verdict.status == "not reliable"
        assert "modes may be missing" in str(verdict)

    def test_the_guide_and_the_random_state_stay_as_they_are(self):
        guide = AutoFlow(gaussian).setup()
        before = {name: value.clone() for name, value in guide.state_dict().items()}
        torch.manual_seed(4)
        expected = torch.rand(3)
        torch.manual_seed(4)
        first = assess(gaussian, guide, seed=1)
        assert torch.equal(torch.rand(3), expected)
        for name, value in guide.state_dict().items():
            assert torch.equal(value, before[name])
        second = assess(gaussian, guide, seed=1)
        assert first.elbo == second.elbo
        assert first.cost["gradients"] == second.cost["gradients"] > 0

    def test_a_guide_trained_by_svi(self):
        def model(y):
            mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

        y = torch.tensor([1.0, 2.0, 3.0])
        guide = AutoDiagonalNormal(model)
        svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO(num_particles=8))
        for _ in range(400):
            svi.step(y)
        posterior = assess(model, guide, y)
        assert posterior.verdict.status != "not reliable"
        assert abs(float(posterior.draws(2000)["mean"].mean()) - 2) < 0.1

    def test_thin_tails_are_no_missed_mode(self):
        def normal():
            pyro.sample("x", dist.Normal(torch.zeros(10).double(), 1.0).to_event(1))

        guide = set_normal(AutoDiagonalNormal(normal), loc=[0.0] * 10, scale=[0.75] * 10)
        posterior = assess(normal, guide)
        assert posterior.verdict.status == "corrected"
        assert abs(float(posterior.draws(4000)["x"].std(0).log().mean())) < 0.05

    def test_the_whole_model_counts_and_not_the_guides_part(self):
        y = torch.tensor([-2.0, -1.5, 1.7, 2.2, 2.0, -1.8]).double()

        def mixture(y):
            locs = pyro.sample("locs", dist.Normal(torch.zeros(2).double(), 3.0).to_event(1))
            with pyro.plate("data", len(y)):
                k = pyro.sample(
                    "k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"}
                )
                pyro.sample("y", dist.Normal(Vindex(locs)[..., k], 0.5), obs=y)

        guide = set_normal(
            AutoDiagonalNormal(pyro.poutine.block(mixture, expose=["locs"])),
            y,
            loc=[0.0, 0.0],
            scale=[3.0, 3.0],
        )
        assert assess(mixture, guide, y).verdict.status == "not reliable"

    def test_a_guide_of_nan_is_judged(self):
        guide = set_normal(AutoDiagonalNormal(gaussian), loc=[math.nan] * 3, scale=[1.0, 1.0, 1.0])
        assert assess(gaussian, guide).verdict.status == "not reliable"

    def test_a_point_is_refused(self):
        guide = AutoLaplaceApproximation(gaussian)
        guide()
        with pytest.raises(GuideError, match="single point"):
            assess(gaussian, guide)

    def test_arguments_of_another_shape_are_refused(self):
        def model(y):
            with pyro.plate("data", len(y)):
                x = pyro.sample("x", dist.Normal(0.0, 1.0))
                pyro.sample("y", dist.Normal(x, 1.0), obs=y)

        guide = AutoFlow(model).setup(torch.zeros(5))
        with pytest.raises(ChangedModelError):
            assess(model, guide, torch.zeros(6))

    @pytest.mark.parametrize("guide", [AutoNormal(gaussian), AutoFlow(gaussian)])
    def test_what_cannot_be_judged_is_refused(self, guide):
        with pytest.raises(GuideError, match="assess expected"):
            assess(gaussian, guide)


def test_a_posterior_of_another_guide_is_checked_for_modes():
    guide = AutoMultivariateNormal(gaussian)
    posterior = FlowVI(gaussian, guide, num_steps=400, progress=False).run()
    assert "Not checked for further modes" not in str(posterior.verdict)


class Clip(Layer):
    """``y = 4 tanh(x / 4)``: nothing beyond 4 comes out or has a density."""

    def forward_and_ladj(self, x, context=None):
        y = 4 * torch.tanh(x / 4)
        return y, torch.log1p(-((y / 4) ** 2)).sum(-1)

    def inverse_and_ladj(self, y, context=None):
        inside = (y / 4).clamp(-1 + 1e-12, 1 - 1e-12)
        ladj = torch.where((y / 4).abs() < 1, -torch.log1p(-(inside**2)), -torch.inf)
        return 4 * torch.atanh(inside), ladj.sum(-1)


class TestUnreached:
    def two_places(self):
        x = pyro.sample("x", dist.ImproperUniform(constraints.real, (), ()))
        x = x + torch.zeros(()).double()
        near, far = dist.Normal(0.0, 1.0).log_prob(x), dist.Normal(8.0, 1.0).log_prob(x)
        pyro.factor("both", torch.logaddexp(near + math.log(0.9), far + math.log(0.1)))

    def test_points_where_the_guide_has_no_density_count(self):
        guide = AutoFlow(self.two_places, dtype=torch.float64).setup()
        log_joint = LogJoint(self.two_places, guide)
        objective = Objective(guide, log_joint, heldout=256)
        guide.affine.set(torch.zeros(1).double(), torch.eye(1).double())
        pool = _pool(objective, 4000)
        weights = importance_weights(pool.log_p, pool.log_q)
        ends = torch.randn(200, 1).double()
        share, _ = unreached(objective, pool, weights, ends)
        assert abs(share) < 0.05
        ends[:50] += 8
        share, error = unreached(objective, pool, weights, ends)
        assert share == pytest.approx(0.25, abs=0.05)
        assert error == pytest.approx((0.25 * 0.75 / 200) ** 0.5, rel=0.2)
        objective.log_q = lambda z: torch.full_like(z[:, 0], torch.nan)
        assert unreached(objective, pool, weights, ends)[0] > 0.9, "NaN is no density"

    def test_tails_that_are_cut_off_are_told(self):
        def heavy():
            with pyro.plate("p", 5):
                pyro.sample("x", dist.StudentT(torch.tensor(3.0).double(), 0.0, 1.0))

        guide = FlowVI(heavy, max_steps=400, seed=0, progress=False).run().guide
        layers, base = list(guide._flow.transform.layers), guide._flow.base
        layers.insert(layers.index(guide.affine), Clip(5).double())
        clipped = Flow(layers, base)
        guide.set_state((clipped, clipped.state_dict()))
        verdict = assess(heavy, guide).verdict
        assert verdict.status == "not reliable"
        assert any("it doesn't reach a part of the posterior" in r for r in verdict.reasons)
