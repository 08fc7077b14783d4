# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The gradient that FlowVI follows: no variance at the answer, no bias elsewhere."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoMultivariateNormal

from pyro_flows import AutoFlow, FlowVI
from pyro_flows.distributions import FlowMixtureDistribution
from pyro_flows.guides import LogJoint
from pyro_flows.inference import Objective
from pyro_flows.training import INSIDE
from pyro_flows.transforms import AffineCoupling, CholeskyAffine, SplineCoupling

from .models import Y, normal_mean

LOC = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
TRIL = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.3, 0.0], [-2.0, 0.5, 4.0]], dtype=torch.float64)


def gaussian():
    pyro.sample("x", dist.MultivariateNormal(LOC, scale_tril=TRIL))


def couplings(dim):
    return [AffineCoupling(dim, hidden_dims=[4]), SplineCoupling(dim, hidden_dims=[4])]


def affine(dim):
    return [CholeskyAffine(dim)]


def objective_of(model, *args, flow=couplings, perturb=0.0, loc=None, tril=None, heldout=256):
    guide = AutoFlow(model, flow=flow).setup(*args)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(perturb * torch.randn_like(parameter))
    if loc is not None:
        guide.affine.set(loc, tril)
    return Objective(guide, LogJoint(model, guide, args), args, heldout=heldout)


def gradients(objective, particles, method=None):
    for parameter in objective.parameters:
        parameter.grad = None
    (method or objective.gradient)(particles)
    return torch.cat([p.grad.reshape(-1) for p in objective.parameters if p.grad is not None])


class TestPathGradient:
    @pytest.mark.parametrize("particles", [2, 7, 64])
    def test_it_is_zero_where_the_guide_is_the_posterior(self, particles):
        objective = objective_of(gaussian, loc=LOC, tril=TRIL)
        assert gradients(objective, particles).abs().max() < 1e-10
        # The ordinary gradient is not, or this would show nothing.
        plain = gradients(objective, particles, objective._plain_gradient)
        assert plain.abs().max() > 1e-3

    def test_on_average_it_is_the_ordinary_gradient(self):
        objective = objective_of(gaussian, perturb=0.1)
        assert len(objective.parameters) > 4
        means, variances = [], []
        for method in (objective.gradient, objective._plain_gradient):
            batches = torch.stack([gradients(objective, 1000, method) for _ in range(60)])
            means.append(batches.mean(0))
            variances.append(batches.var(0) / len(batches))
        se = (variances[0] + variances[1]).sqrt()
        assert bool((means[0].abs() > 10 * se).any()), "or the test has no power"
        assert ((means[0] - means[1]).abs() / (se + 1e-12)).max() < 6

    def test_the_elbo_is_that_of_the_draws(self):
        objective = objective_of(gaussian, loc=LOC + 1, tril=TRIL)
        value, masked = objective.gradient(20_000)
        shift = torch.linalg.solve_triangular(TRIL, torch.ones(3, 1), upper=False)
        assert float(value) == pytest.approx(-0.5 * float(shift.square().sum()), abs=0.1)
        assert int(masked) == 0

    def test_parameters_can_be_trained_afterwards(self, monkeypatch):
        objective = objective_of(gaussian)
        locs, trils = torch.stack([LOC, LOC + 1]), torch.stack([TRIL, TRIL])
        objective.guide.split(locs, trils, torch.tensor([0.5, 0.5]))
        objective.reread()
        objective.gradient(8)
        assert all(p.requires_grad for p in objective.parameters)

        def interrupt(self, value):
            raise KeyboardInterrupt

        monkeypatch.setattr(FlowMixtureDistribution, "log_prob", interrupt)
        with pytest.raises(KeyboardInterrupt):
            objective.gradient(8)
        assert all(p.requires_grad for p in objective.parameters), "also after Ctrl-C inside"

    def test_the_gradient_of_a_mixture_is_the_parameters_and_the_weights(self):
        # Against the ELBO's plain gradient with weights in it, on the same noise's average.
        torch.manual_seed(0)
        objective = objective_of(gaussian, perturb=0.1)
        locs, trils = torch.stack([LOC - 1, LOC + 1]), torch.stack([TRIL, 2 * TRIL])
        objective.guide.split(locs, trils, torch.tensor([0.3, 0.7]))
        objective.reread()
        batches = []
        for _ in range(200):
            for p in objective.parameters:
                p.grad = None
            objective.gradient(400)
            grads = [p.grad for p in objective.parameters if p.grad is not None]
            batches.append(torch.cat([g.reshape(-1) for g in grads]))
        got, se = torch.stack(batches).mean(0), torch.stack(batches).std(0) / 200**0.5
        noise, _ = objective._noise(20_000)
        base = objective._inner().base
        drawn = base.rpush(torch.stack([noise, -noise]))
        weights = base.log_weights.exp().unsqueeze(-1) / drawn.shape[1]
        log_q = base.log_prob(drawn.flatten(0, 1)).reshape(weights.shape[0], -1)
        value = objective.log_joint(drawn.flatten(0, 1)).reshape(weights.shape[0], -1)
        plain = torch.autograd.grad(
            -(weights * (value - log_q)).sum(), objective.parameters, allow_unused=True
        )
        expected = torch.cat([g.reshape(-1) for g in plain if g is not None])
        assert expected.shape == got.shape
        error = (got - expected).abs() / (5 * se + 0.02 * expected.abs().max())
        assert error.max() < 1

    def test_gradients_are_counted(self):
        objective = objective_of(gaussian)
        objective.gradient(8)
        objective.gradient(32)
        objective.score()
        objective.draw(100)
        assert objective.gradients == 40


def with_holes(bad):
    def model():
        x = pyro.sample("x", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
        pyro.factor("hole", torch.where(x[..., 0] > 0, bad, 0.0))

    return model


@pytest.mark.parametrize("bad", [math.nan, -math.inf])
@pytest.mark.parametrize("guide", [AutoFlow, AutoMultivariateNormal])
def test_non_finite_particles_are_left_out_and_counted(bad, guide):
    model = with_holes(bad)
    if guide is AutoFlow:
        objective = objective_of(model, loc=torch.zeros(2), tril=torch.eye(2))
    else:
        guide = AutoMultivariateNormal(model, init_loc_fn=lambda s: torch.zeros(2), init_scale=1.0)
        guide()
        objective = Objective(guide, LogJoint(model, guide))
    found = gradients(objective, 1000)
    assert bool(torch.isfinite(found).all())
    value, masked = objective.gradient(1000)
    # Half of them; mirrored pairs make it exact for the flow.
    assert abs(int(masked) - 500) < 80
    # On the others q = p up to the hole: log p - log q is 0.
    assert float(value) == pytest.approx(0.0, abs=1e-9)


def test_no_finite_particle_at_all_gives_zeros():
    model = with_holes(math.nan)
    objective = objective_of(model, loc=torch.tensor([100.0, 0.0]), tril=torch.eye(2))
    assert torch.equal(gradients(objective, 16), gradients(objective, 16) * 0)
    assert int(objective.gradient(16)[1]) == 16


class TestScore:
    def test_held_out_draws_are_the_same_for_every_state(self):
        objective = objective_of(gaussian, loc=LOC, tril=2 * TRIL)
        first, second = objective.score(), objective.score()
        assert torch.equal(first.values, second.values)

    def test_the_excess_bounds_the_gap_above(self):
        # q is p shifted by half a standard deviation: the gap is 1/8.
        shift = TRIL @ torch.tensor([0.5, 0.0, 0.0])
        objective = objective_of(gaussian, loc=LOC + shift, tril=TRIL, heldout=4096)
        assert 0.11 < objective.score().excess < 0.2
        assert objective_of(gaussian, loc=LOC, tril=TRIL).score().excess < 1e-9

    def test_log_q_at_given_points(self):
        objective = objective_of(gaussian, loc=LOC, tril=TRIL, perturb=0.1)
        z, _, log_q = objective.draw(50)
        torch.testing.assert_close(objective.log_q(z), log_q)


def empirical_bayes(y):
    """theta_i ~ N(0, s), y_i ~ N(theta_i, 1): marginally y ~ N(0, s^2 + 1)."""
    one = torch.ones((), dtype=torch.float64)
    scale = pyro.param("scale", one, constraint=constraints.positive)
    with pyro.plate("data", len(y)):
        theta = pyro.sample("theta", dist.Normal(0.0, scale))
        pyro.sample("y", dist.Normal(theta, 1.0), obs=y)


class TestParametersOfTheModel:
    def test_they_get_the_gradient_of_the_elbo(self):
        guide = AutoFlow(empirical_bayes, flow=affine).setup(3 * Y)
        log_joint = LogJoint(empirical_bayes, guide, (3 * Y,))
        assert list(log_joint.parameters) == ["scale"]
        objective = Objective(guide, log_joint, (3 * Y,))
        # The guide is the posterior at scale 1: the gradient is that of the log evidence.
        guide.affine.set(1.5 * Y, math.sqrt(0.5) * torch.eye(4))
        objective.gradient(40_000)
        scale = torch.ones((), requires_grad=True)
        evidence = dist.Normal(0.0, (scale.log().exp() ** 2 + 1).sqrt()).log_prob(3 * Y).sum()
        (expected,) = torch.autograd.grad(evidence, scale)  # d/d log scale, as scale is 1
        assert float(log_joint.parameters["scale"].grad) == pytest.approx(-float(expected), 0.02)

    def test_they_are_learned_with_the_guide(self):
        y = 1.5 * Y
        options = {"num_steps": 300, "num_particles": 64, "learning_rate": 0.05}
        posterior = FlowVI(empirical_bayes, flow=affine, progress=False, **options).run(y)
        best = math.sqrt(float(y.square().mean()) - 1)
        assert float(posterior.parameters["scale"]) == pytest.approx(best, rel=0.02)
        shrink = best**2 / (best**2 + 1)
        torch.testing.assert_close(
            posterior.draws(20_000)["theta"].mean(0), shrink * y, atol=0.05, rtol=0
        )
        evidence = float(dist.Normal(0.0, math.sqrt(best**2 + 1)).log_prob(y).sum())
        assert posterior.elbo == pytest.approx(evidence, abs=0.01)


def test_another_guide_gets_the_ordinary_gradient():
    guide = AutoMultivariateNormal(normal_mean)
    guide(Y)
    objective = Objective(guide, LogJoint(normal_mean, guide, (Y,)), (Y,))
    found = torch.stack([gradients(objective, 500) for _ in range(40)])
    expected = []
    for _ in range(40):
        posterior = guide.get_posterior()
        z = posterior.rsample((500,))
        loss = (posterior.log_prob(z) - objective.log_joint(z)).mean()
        grads = torch.autograd.grad(loss, objective.parameters)
        expected.append(torch.cat([g.reshape(-1) for g in grads]))
    other = torch.stack(expected)
    se = ((found.var(0) + other.var(0)) / 40).sqrt()
    assert ((found.mean(0) - other.mean(0)).abs() < 5 * se + 1e-9).all()


class TestEdges:
    """A uniform density on the unit square, and a guide half of whose draws fall outside."""

    def objective(self):
        def square():
            x = pyro.sample("x", dist.ImproperUniform(constraints.real, (), (2,)))
            inside = ((x > 0) & (x < 1)).all(-1)
            pyro.factor("f", torch.where(inside, x.sum(-1), -math.inf))

        guide = AutoFlow(square, flow=affine, dtype=torch.float64).setup()
        guide.affine.set(loc=torch.tensor([0.4, 0.6]), scale_tril=0.5 * torch.eye(2))
        return Objective(guide, LogJoint(square, guide)), guide

    def test_they_are_seen(self):
        objective, _ = self.objective()
        assert not objective.edges
        objective.score()
        assert objective.edges

    def test_the_gradient_is_that_of_the_restricted_elbo_and_of_the_share_inside(self):
        objective, guide = self.objective()
        objective.score()
        torch.manual_seed(0)
        objective.gradient(400_000)
        got = guide.affine.tensors.start["loc"].grad.clone()

        def restricted(loc):
            """By quadrature: ln of q's mass inside, and the mean of log p - log q there."""
            grid = (torch.arange(400).double() + 0.5) / 400
            x = torch.cartesian_prod(grid, grid)
            log_q = -0.5 * ((x - loc) / 0.5).square().sum(-1) - 2 * math.log(0.5)
            log_q = log_q - math.log(2 * math.pi)
            weight = log_q.exp() / 400**2
            return (1 + INSIDE) * weight.sum().log() + (
                weight * (x.sum(-1) - log_q)
            ).sum() / weight.sum()

        loc = torch.tensor([0.4, 0.6], dtype=torch.float64, requires_grad=True)
        (expected,) = torch.autograd.grad(restricted(loc), loc)
        torch.testing.assert_close(-got, expected, atol=0.01, rtol=0.02)

    def test_paths_alone_would_be_wrong_there(self):
        objective, guide = self.objective()
        torch.manual_seed(0)
        objective.gradient(400_000)
        along_paths = guide.affine.tensors.start["loc"].grad.clone()
        guide.affine.tensors.start["loc"].grad = None
        objective.score()
        objective.gradient(400_000)
        assert float((along_paths - guide.affine.tensors.start["loc"].grad).abs().max()) > 0.05
