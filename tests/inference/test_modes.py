# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Further modes are found, weighed, fitted, and missed ones are told."""

import copy
import importlib
import math
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from pyro_flows import FlowVI
from pyro_flows.guides import AutoFlow, LogJoint
from pyro_flows.inference import Objective, Posterior, find_start, refinement
from pyro_flows.inference.flow_vi import FEW_STEPS
from pyro_flows.inference.gaussian import Gaussian, elbo_of
from pyro_flows.inference.mixtures import Mixture, elbo_of_mixture, find_mixture, weigh
from pyro_flows.inference.modes import (
    Allowance,
    Exploration,
    Modes,
    explore,
    merge,
    missed_mass,
)
from pyro_flows.inference.newton import climb
from pyro_flows.inference.randomness import seeded
from pyro_flows.training import train

ONE = torch.ones((), dtype=torch.float64)
WEIGHTS = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
MEANS = torch.tensor([[-8.0, 0.0], [6.0, 6.0], [4.0, -9.0]], dtype=torch.float64)


def log_three(z):
    """Three round Gaussians, normalised, so that log Z is 0."""
    each = -0.5 * (z[..., None, :] - MEANS).square().sum(-1) - math.log(2 * math.pi)
    return (each + WEIGHTS.log()).logsumexp(-1)


def three():
    z = pyro.sample("z", dist.ImproperUniform(constraints.real, (), (2,)))
    pyro.factor("density", log_three(z.double()))


def many_wells():
    """2^14 modes, at +-1.7 along each coordinate."""
    z = pyro.sample("z", dist.ImproperUniform(constraints.real_vector, (), (14,)))
    pyro.factor("wells", (6 * z**2 - z**4 + z / 2).sum(-1))


def log_joint_of(model):
    guide = AutoFlow(model).setup()
    return LogJoint(model, guide, through=guide.noncentring), guide


def one_place(loc, scale=1.0):
    loc = torch.as_tensor(loc, dtype=torch.float64)
    return Modes(loc[None], scale * torch.eye(len(loc), dtype=loc.dtype)[None], ONE[None] * -1)


@pytest.fixture(scope="module")
def posterior():
    return FlowVI(three, num_steps=60, progress=False).run()


def nearest(draws):
    return torch.cdist(draws.double(), MEANS).argmin(-1)


class TestSearch:
    @pytest.mark.parametrize("seed", range(5))
    def test_it_finds_all_modes_from_one_of_them(self, seed):
        log_joint, _ = log_joint_of(three)
        with seeded(seed):
            search = explore(log_joint, one_place(MEANS[0]))
        assert search.gradients > 0
        assert search.unseen(log_joint, Gaussian(MEANS[0], torch.eye(2).double(), 0.0)) is None
        found = search.modes.weighty
        distance = torch.cdist(MEANS, found.locs)
        assert (distance.min(1).values < 0.01).all()
        # Each once, but for the place that it started from.
        assert len(found) <= 4

    @pytest.mark.parametrize("seed", range(3))
    def test_more_modes_than_can_be_found_are_told(self, seed):
        log_joint, _ = log_joint_of(many_wells)
        place = one_place(torch.full((14,), 1.7), 0.2)
        with seeded(seed):
            search = explore(log_joint, place)
        one = Gaussian(place.locs[0], place.scales[0])
        one.elbo = elbo_of(log_joint, one.loc, one.scale_tril)
        assert re.match(r"Of \d+ modes .* were met only once", search.unseen(log_joint, one))

    @pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
    def test_bumps_in_one_bulk_are_no_modes(self, seed):
        def rippled():
            x = pyro.sample("x", dist.Normal(torch.zeros(3).double(), 1.0).to_event(1))
            pyro.factor("bumps", 0.1 * (30 * x).cos().sum())

        guide = AutoFlow(rippled).setup()
        with seeded(seed):
            start = find_start(LogJoint(rippled, guide), guide)
        assert start.unseen is None

    @pytest.mark.parametrize("left", [0, 1, 400])
    def test_an_allowance_is_kept(self, left):
        log_joint, _ = log_joint_of(three)
        with seeded(0):
            whole = explore(log_joint, one_place(MEANS[0])).gradients
            allowance = Allowance(left)
            search = explore(log_joint, one_place(MEANS[0]), allowance)
            spent = search.gradients
        assert allowance.cut
        assert (spent == 0) == (left == 0)
        assert spent < whole
        assert allowance.left == left - spent

    def test_nothing_is_said_of_a_search_that_did_not_begin(self):
        log_joint, _ = log_joint_of(many_wells)
        corners = 1.7 * torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3).double()
        known = merge([one_place(torch.cat([c, torch.full((11,), 1.7)]), 0.2) for c in corners])
        search = explore(log_joint, known, Allowance(0))
        assert (len(search.modes), search.gradients) == (8, 0)
        one = Gaussian(known.locs[0], known.scales[0], 0.0)
        assert search.unseen(log_joint, one) is None

    def test_an_allowance_that_is_not_used_up_cuts_nothing(self):
        log_joint, _ = log_joint_of(three)
        allowance = Allowance(10**9)
        with seeded(0):
            explore(log_joint, one_place(MEANS[0]), allowance)
        assert not allowance.cut

    def test_evidence_of_each_is_its_share(self):
        log_joint, _ = log_joint_of(three)
        with seeded(0):
            paths = climb(log_joint, MEANS + 0.5)
        shares = sorted(paths.evidence.exp().tolist(), reverse=True)
        assert shares == pytest.approx(WEIGHTS.tolist(), rel=1e-3)

    def test_places_are_merged(self):
        twice = merge([one_place([0.0, 0.0]), one_place([0.1, 0.0]), one_place([5.0, 0.0])])
        assert len(twice) == 2

    def test_light_places_are_left_out(self):
        heavy, light = one_place([0.0, 0.0]), one_place([9.0, 0.0])
        both = merge([heavy, Modes(light.locs, light.scales, light.evidence - 10)])
        assert len(both) == 2
        assert len(both.weighty) == 1

    def test_places_without_any_density_are_kept_for_want_of_better(self):
        nowhere = Modes(
            torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2), -torch.full((2,), math.inf)
        )
        assert len(nowhere.weighty) == 2


class TestMixture:
    def test_weights_are_the_masses(self):
        log_joint, _ = log_joint_of(three)
        trils = torch.eye(2, dtype=torch.float64).expand(3, 2, 2)
        mixture = weigh(log_joint, MEANS, trils)
        torch.testing.assert_close(mixture.weights, WEIGHTS, rtol=0.01, atol=0)
        assert elbo_of_mixture(log_joint, mixture) == pytest.approx(0.0, abs=1e-3)

    def test_log_prob_is_that_of_pyro(self):
        generator = torch.Generator().manual_seed(0)
        trils = torch.randn(3, 2, 2, generator=generator, dtype=torch.float64).tril()
        trils.diagonal(dim1=-2, dim2=-1).abs_()
        z = torch.randn(7, 2, generator=generator, dtype=torch.float64)
        each = dist.MultivariateNormal(MEANS, scale_tril=trils).log_prob(z[:, None])
        expected = (each + WEIGHTS.log()).logsumexp(-1)
        torch.testing.assert_close(Mixture(MEANS, trils, WEIGHTS).log_prob(z), expected)

    def test_a_gaussian_is_no_mixture(self):
        def model():
            pyro.sample("x", dist.Normal(torch.zeros(3), 1.0).to_event(1))

        log_joint, guide = log_joint_of(model)
        with seeded(0):
            assert find_start(log_joint, guide).mixture is None
        assert guide.modes == 1

    def test_a_heavier_mode_found_later_takes_the_place_of_the_first(self, monkeypatch):
        light = torch.tensor([6.0, 6.0], dtype=torch.float64)

        def model():
            z = pyro.sample("z", dist.ImproperUniform(constraints.real, (), (2,)))
            far = -0.5 * (z.double() - light).square().sum(-1) + math.log(1e-4)
            pyro.factor("both", torch.logaddexp(-0.5 * (z.double() + light).square().sum(-1), far))

        module = importlib.import_module("pyro_flows.inference.warm_start")
        monkeypatch.setattr(module, "over_dispersed", lambda log_joint, plain: light[None] + 0.1)
        log_joint, guide = log_joint_of(model)
        with seeded(0):
            start = find_start(log_joint, guide)
        assert start.mixture is None
        torch.testing.assert_close(guide.affine.loc.detach(), -light, atol=0.05, rtol=0)


class TestGuide:
    def test_it_has_all_modes_with_their_shares(self, posterior):
        assert posterior.guide.modes == 3
        shares = torch.bincount(nearest(posterior.draws(20_000)["z"]), minlength=3) / 20_000
        torch.testing.assert_close(shares.double(), WEIGHTS, rtol=0, atol=0.02)
        assert posterior.log_evidence == pytest.approx(0.0, abs=0.01)
        assert posterior.verdict.status == "reliable"

    def test_its_density_integrates_to_one(self, posterior):
        axis = torch.arange(-16, 16, 0.1, dtype=torch.float64)
        grid = torch.cartesian_prod(axis, axis)
        with torch.no_grad():
            total = posterior.guide.get_posterior().log_prob(grid).exp().sum() * 0.01
        assert float(total) == pytest.approx(1.0, abs=2e-3)

    def test_transform_and_base_make_the_posterior(self, posterior):
        guide = posterior.guide
        z = guide.get_posterior().sample((5,))
        pushed = dist.TransformedDistribution(guide.get_base_dist(), [guide.get_transform()])
        torch.testing.assert_close(pushed.log_prob(z), guide.get_posterior().log_prob(z))

    def test_it_is_saved_and_loaded(self, posterior, tmp_path):
        again = Posterior.load(posterior.save(tmp_path / "posterior"), three)
        assert again.guide.modes == 3
        z = torch.as_tensor(posterior.pool.z[:9])
        log_q = again.guide.get_posterior().log_prob(z)
        torch.testing.assert_close(log_q, torch.as_tensor(posterior.pool.log_q[:9]))

    def test_quantiles_and_copies(self, posterior):
        guide = posterior.guide
        low, high = guide.quantiles([0.05, 0.95])["z"][:, 1]
        assert float(low) < -8
        assert float(high) > 6
        torch.testing.assert_close(copy.deepcopy(guide).median(), guide.median())

    def test_it_can_be_fitted_on(self, posterior):
        again = FlowVI(three, posterior.guide, num_steps=20, progress=False).run()
        assert again.guide.modes == 3
        assert again.elbo > posterior.elbo - 0.01

    def test_split_into_one_is_a_single_flow(self):
        _, guide = log_joint_of(three)
        eye = torch.eye(2, dtype=torch.float64)
        guide.split(MEANS, eye.expand(3, 2, 2), WEIGHTS)
        assert guide.modes == 3
        guide.split(MEANS[:1], eye[None], WEIGHTS[:1])
        assert guide.modes == 1
        torch.testing.assert_close(guide.affine.loc.detach(), MEANS[0])


class TestGradient:
    def test_it_is_that_of_the_elbo(self):
        """Against the gradient of the exact sum over components, on many draws."""
        log_joint, guide = log_joint_of(three)
        eye = torch.eye(2, dtype=torch.float64)
        guide.split(MEANS + 0.4, 1.2 * eye.expand(3, 2, 2), torch.tensor([0.2, 0.5, 0.3]))
        objective = Objective(guide, log_joint)
        with seeded(0):
            objective.gradient(20_000)
        found = {n: p.grad for n, p in guide.named_parameters() if p.grad is not None}
        guide.zero_grad()
        with seeded(1):
            base = guide.get_base_dist()
            draws, log_weights = base.rsample_components((10_000,))
            ratio = log_three(draws) - base.log_prob(draws)
            (-(log_weights.exp() * ratio).sum(0).mean()).backward()
        for name, parameter in guide.named_parameters():
            if "logit" in name or "loc" in name:
                expected = parameter.grad if parameter.grad is not None else torch.zeros(())
                got = found.get(name, torch.zeros(()))
                torch.testing.assert_close(got, expected, rtol=0.05, atol=0.02)


class TestMissedMass:
    def log_q(self, index):
        return lambda z: -0.5 * (z - MEANS[index]).square().sum(-1) - math.log(2 * math.pi)

    def places(self):
        return merge([one_place(mean) for mean in MEANS])

    def draws(self, index):
        generator = torch.Generator().manual_seed(1)
        return MEANS[index] + torch.randn(2000, 2, generator=generator, dtype=torch.float64)

    def test_a_guide_on_one_mode_misses_the_others(self):
        log_joint, _ = log_joint_of(three)
        with seeded(0):
            missed = missed_mass(
                log_joint, self.log_q(0), self.places(), math.log(0.6), self.draws(0)
            )
        # Of 0.6 that it sees and 0.3 at the heaviest place that it doesn't.
        assert missed == pytest.approx(0.3 / 0.9, rel=0.05)

    def test_a_guide_on_all_misses_nothing(self):
        log_joint, _ = log_joint_of(three)
        with seeded(0):
            draws = torch.cat([self.draws(0), self.draws(1), self.draws(2)])
            assert missed_mass(log_joint, log_three, self.places(), 0.0, draws) == 0.0

    def test_a_place_among_the_draws_is_left_to_the_weights(self):
        log_joint, _ = log_joint_of(three)
        narrow = 0.5 * self.draws(0) + 0.5 * MEANS[0]

        def log_q(z):
            return -2 * (z - MEANS[0]).square().sum(-1) - math.log(math.pi / 2)

        with seeded(0):
            missed = missed_mass(log_joint, log_q, one_place(MEANS[0]), math.log(0.6), narrow)
            assert missed == 0.0
            elsewhere = missed_mass(
                log_joint, log_q, one_place(MEANS[0]), math.log(0.6), narrow + 100
            )
        assert elsewhere > 0.01

    def test_a_guide_that_is_nan_there_misses_it(self):
        log_joint, _ = log_joint_of(three)

        def log_q(z):
            near = (z - MEANS[0]).norm(dim=-1) < 7
            return torch.where(near, self.log_q(0)(z), torch.nan)

        with seeded(0):
            missed = missed_mass(log_joint, log_q, self.places(), math.log(0.6), self.draws(0))
        assert missed == pytest.approx(0.3 / 0.9, rel=0.05)

    def test_the_verdict_says_so(self, monkeypatch):
        """A guide that isn't split: a Gaussian given from outside, which takes the nearest."""
        guide = pyro.infer.autoguide.AutoMultivariateNormal(
            three, init_loc_fn=pyro.infer.autoguide.init_to_value(values={"z": MEANS[0]})
        )
        posterior = FlowVI(three, guide, num_steps=100, progress=False).run()
        assert posterior.verdict.status == "not reliable"
        assert "modes may be missing" in posterior.verdict.reasons[0]

    def test_the_verdict_tells_of_a_search_that_did_not_end(self, monkeypatch):
        monkeypatch.setattr(Exploration, "unseen", lambda *_: "Of 9 modes 8 were met only once")
        schedules = []

        def noted(parameters, gradient, score, schedule, **options):
            schedules.append(schedule)
            return train(parameters, gradient, score, schedule, **options)

        monkeypatch.setattr(
            importlib.import_module("pyro_flows.inference.flow_vi"), "train", noted
        )
        posterior = FlowVI(three, progress=False).run()
        assert posterior.verdict.status == "not reliable"
        assert any(
            "8 were met only once: modes may be" in reason for reason in posterior.verdict.reasons
        )
        assert sum(schedules[0].cycles) == FEW_STEPS

    def test_a_gaussian_with_an_edge(self):
        """Outside its support a density has no mass to miss."""

        def half():
            z = pyro.sample("z", dist.ImproperUniform(constraints.real, (), (2,)))
            inside = torch.where(z[..., 0] > 0, 0.0, -torch.inf).double()
            pyro.factor("density", inside - 0.5 * z.double().square().sum(-1))

        log_joint, _ = log_joint_of(half)
        place = one_place([0.5, 0.0])
        with seeded(0):
            # Draws elsewhere, or the place would count as reached.
            elsewhere = 50 + torch.randn(100, 2).double()
            missed = missed_mass(
                log_joint, lambda z: -0.5 * z.square().sum(-1), place, 0.0, elsewhere
            )
        assert missed == 0.0


def test_a_gaussian_scores_points():
    tril = torch.tensor([[2.0, 0.0], [1.0, 0.5]], dtype=torch.float64)
    z = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = dist.MultivariateNormal(MEANS[0], scale_tril=tril).log_prob(z)
    torch.testing.assert_close(Gaussian(MEANS[0], tril).log_prob(z), expected)


class TestMixtureOfTheUseful:
    """A Gaussian that is much too narrow for its place is left out."""

    CENTRES = 4 * torch.tensor([[-1.0], [1.0]], dtype=torch.float64).expand(2, 3)

    def model(self):
        x = pyro.sample("x", dist.Normal(torch.zeros(3).double(), 20.0).to_event(1))
        each = dist.StudentT(3.0, self.CENTRES, 1.0).log_prob(x).sum(-1)
        pyro.factor("two", each.logsumexp(0))

    @pytest.mark.parametrize("narrow", [0.2, 0.5])
    def test_two_are_kept(self, narrow):
        log_joint, _ = log_joint_of(self.model)
        eye = torch.eye(3).double()
        refined = [Gaussian(centre, 1.2 * eye, elbo=-9.0) for centre in self.CENTRES]
        refined.append(Gaussian(self.CENTRES[0] - 0.5, narrow * eye, elbo=-12.0))
        none = Modes(self.CENTRES[:0], self.CENTRES.new_zeros(0, 3, 3), self.CENTRES[:0, 0])
        mixture = find_mixture(log_joint, Gaussian(self.CENTRES[0], eye), none, refined)
        assert len(mixture.weights) == 2
        every = weigh(
            log_joint,
            torch.stack([one.loc for one in refined]),
            torch.stack([one.scale_tril for one in refined]),
        )
        assert elbo_of_mixture(log_joint, mixture) > elbo_of_mixture(log_joint, every)


def test_ends_far_out_in_a_tail_are_not_tried():
    """There any density is above a Gaussian's, and nothing weighs anything."""

    def model():
        pyro.sample("x", dist.Laplace(torch.zeros(2).double(), 1.0).to_event(1))

    log_joint, _ = log_joint_of(model)
    eye = torch.eye(2).double()
    here = Gaussian(torch.zeros(2).double(), eye, elbo=-0.1)
    far, wide = torch.full((2,), 500.0).double(), 1e9 * eye
    near = torch.full((2,), 8.0).double()
    found = refinement._surprise(log_joint, [(far, wide, True), (near, eye, True)], [here], -7.0)
    assert found[0] == -math.inf
    assert found[1] > refinement.SURPRISING
