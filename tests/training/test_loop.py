# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The training loop on a quadratic whose optimum, noise and faults are all known."""

import math

import numpy as np
import pytest
import torch

from pyro_flows.training import Report, Schedule, Score, train

TARGET = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64)


class Quadratic:
    """-|x - target|^2 / 2, with what can go wrong by call number.

    Attributes:
        visited: the parameters at each gradient.
        scored: the parameters at each score.
    """

    def __init__(self, *, wrong_from=math.inf, interrupt_at=None, bad=(), blow_up=(), noise=0.0):
        self.x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        self.wrong_from, self.interrupt_at, self.bad = wrong_from, interrupt_at, bad
        self.blow_up, self.noise = blow_up, noise
        self.visited, self.scored, self.cycles = [], [], []
        self.excess = math.inf

    def value(self):
        return -0.5 * (self.x.detach() - TARGET).square().sum()

    def gradient(self, cycle):
        call = len(self.visited)
        if self.interrupt_at is not None and call >= self.interrupt_at:
            raise KeyboardInterrupt
        self.visited.append(self.x.detach().clone())
        self.cycles.append(cycle)
        grad = self.x.detach() - TARGET
        if self.noise:
            grad = grad + self.noise * torch.randn(3)
        if cycle >= self.wrong_from:
            grad = -grad
        if call in self.bad:
            grad[call % 3] = (math.nan, math.inf, -math.inf)[call % 3]
        self.x.grad = grad
        objective = self.value()
        if cycle in self.blow_up:
            self.x.grad = -1e6 * torch.ones(3)
            objective = objective - 1e6 * self.cycles.count(cycle)
        return objective, torch.tensor(int(call in self.bad))

    def score(self):
        self.scored.append(self.x.detach().clone())
        # Held-out draws: a spread around the value, the same for every state.
        return Score(self.value() + torch.linspace(-1, 1, 101, dtype=torch.float64), self.excess)

    def train(self, cycles=(200, 400), learning_rate=0.1, **options):
        schedule = Schedule(cycles=cycles, learning_rate=learning_rate, **options)
        return train([self.x], self.gradient, self.score, schedule, progress=False)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_it_reaches_the_optimum(noise):
    problem = Quadratic(noise=noise)
    problem.train()
    assert (problem.x.detach() - TARGET).abs().max() < (0.1 if noise else 1e-2)


def test_the_best_state_is_kept_when_later_cycles_get_worse():
    problem = Quadratic(wrong_from=1)
    report = problem.train(cycles=(200, 80), learning_rate=0.05)
    assert report.rollbacks == 0
    assert report.history["heldout_elbo"][-1] < report.history["heldout_elbo"].max() - 0.1
    assert float(problem.value()) == pytest.approx(report.history["heldout_elbo"].max(), abs=1e-12)
    assert (problem.x.detach() - TARGET).abs().max() < 0.05


def test_a_useless_gradient_never_makes_it_worse_than_the_start():
    problem = Quadratic(wrong_from=0)
    report = problem.train()
    assert torch.equal(problem.x.detach(), torch.zeros(3))
    assert report.history["heldout_elbo"].argmax() == 0


def test_divergence_rolls_back_and_goes_on_more_carefully():
    problem = Quadratic(blow_up=(0,))
    report = problem.train(cycles=(200, 400, 800))
    assert report.rollbacks == 1
    assert (problem.x.detach() - TARGET).abs().max() < 1e-2
    first_of_next = problem.cycles.index(1)
    assert torch.equal(problem.visited[first_of_next], torch.zeros(3)), "from the best state"
    # It gave up within the cycle, and the next one steps 0.3 times as far (Adam: lr a step).
    assert problem.cycles.count(0) < 200
    schedule = Schedule(learning_rate=0.03)
    moved = problem.visited[first_of_next + 1] - problem.visited[first_of_next]
    torch.testing.assert_close(moved.abs(), 0.03 * schedule.rate(0, 400) * torch.ones(3))


def test_an_objective_that_is_nan_is_divergence():
    problem = Quadratic()
    plain = problem.gradient

    def gradient(cycle):
        objective, masked = plain(cycle)
        return (objective * math.nan if cycle == 0 else objective), masked

    problem.gradient = gradient
    assert problem.train(cycles=(200, 400, 800)).rollbacks == 1
    assert (problem.x.detach() - TARGET).abs().max() < 1e-2


def test_the_last_cycle_is_made_again_with_the_steps_that_are_left():
    problem = Quadratic()
    plain = problem.gradient

    def gradient(cycle):
        objective, masked = plain(cycle)
        return (objective * math.nan if len(problem.visited) <= 50 else objective), masked

    problem.gradient = gradient
    report = problem.train(cycles=(600,))
    assert (report.rollbacks, report.steps) == (1, 600)
    assert (problem.x.detach() - TARGET).abs().max() < 1e-2


def test_it_gives_up_after_four_divergences_with_the_start_intact():
    problem = Quadratic(blow_up=range(10))
    report = problem.train(cycles=(200,) * 6)
    assert report.rollbacks == 4
    assert "diverged four times" in report.stop_reason
    assert max(problem.cycles) == 3, "two cycles are left undone"
    assert torch.equal(problem.x.detach(), torch.zeros(3))


def test_non_finite_gradients_are_skipped_and_counted():
    bad = set(range(0, 600, 7))
    problem = Quadratic(bad=bad)
    report = problem.train(min_gain=-math.inf)
    assert report.non_finite == len(bad)
    assert report.rollbacks == 0
    assert (problem.x.detach() - TARGET).abs().max() < 0.02
    assert all(bool(torch.isfinite(x).all()) for x in problem.visited)


def test_a_gradient_that_is_never_finite_changes_nothing():
    problem = Quadratic(bad=set(range(600)))
    problem.train()
    assert torch.equal(problem.x.detach(), torch.zeros(3))


def test_one_huge_gradient_is_clipped():
    steps = {}
    for size in (1.0, 1e12):
        problem = Quadratic()
        plain = problem.gradient

        def gradient(cycle, plain=plain, problem=problem, size=size):
            result = plain(cycle)
            if len(problem.visited) == 50:
                problem.x.grad = size * problem.x.grad
            return result

        problem.gradient = gradient
        problem.train()
        steps[size] = torch.stack(problem.visited[45:80])
    # Adam would else stand still for a hundred steps, its second moment full of one outlier.
    assert (steps[1.0] - steps[1e12]).abs().max() < 0.3
    assert not torch.equal(steps[1.0], steps[1e12])


class TestStopReasons:
    def test_no_more_gain(self):
        report = Quadratic().train(cycles=(200, 400, 800, 1600), min_gain=0.1)
        assert report.stop_reason.startswith("the last 400 steps gained")
        assert report.steps == 600

    def test_good_enough(self):
        problem = Quadratic()
        gradient = problem.gradient

        def improves(cycle):
            problem.excess = 0.001
            return gradient(cycle)

        problem.excess, problem.gradient = 1.0, improves
        report = problem.train(good_enough=0.001)
        assert "gap" in report.stop_reason
        assert report.steps == 200

    def test_a_start_that_is_good_enough(self):
        problem = Quadratic()
        problem.excess = 0.001
        report = problem.train(good_enough=0.001)
        assert "start" in report.stop_reason
        assert report.steps == 0

    def test_a_lower_rate_is_tried_before_it_stops(self):
        problem = Quadratic()
        report = problem.train(cycles=(200,) * 8, min_gain=0.1)
        assert report.steps == 400
        problem = Quadratic()
        report = problem.train(cycles=(200,) * 8, min_gain=0.1, polish=0.3)
        assert report.stop_reason.startswith("the last 200 steps gained")
        assert report.steps == 800  # a gain, none, and none at two lower rates

    def test_the_budget(self):
        report = Quadratic().train(cycles=(10, 20), learning_rate=0.05)
        assert report.stop_reason == "the budget of 30 steps was used up"
        assert report.gaining
        problem = Quadratic()
        report = problem.train(cycles=(200, 200), min_gain=1e6, polish=0.3)
        assert report.stop_reason == "the budget of 400 steps was used up"
        assert not report.gaining

    def test_a_gain_within_noise_is_no_gain(self):
        # Draws that disagree about the gain: 2 standard errors are more than the mean gain.
        problem = Quadratic()
        weights = torch.linspace(-60, 60, 101, dtype=torch.float64)

        def score():
            return Score(problem.value() + weights * problem.x.detach().sum())

        problem.score = score
        report = problem.train(cycles=(5, 10, 20, 40), min_gain=0.0, learning_rate=0.01)
        assert report.steps == 15
        assert "gained" in report.stop_reason


class TestInterrupt:
    @pytest.mark.parametrize("call", [0, 1, 130, 450])
    def test_it_keeps_the_best_so_far_and_says_so(self, call):
        problem = Quadratic(interrupt_at=call)
        report = problem.train()
        assert report.interrupted
        assert report.stop_reason == "interrupted by the user; the best state so far was kept"
        assert report.steps == call == len(report.history["elbo"])
        assert float(problem.value()) == pytest.approx(report.history["heldout_elbo"].max())
        if call > 100:
            assert (problem.x.detach() - TARGET).abs().max() < 0.5

    def test_the_unfinished_cycle_is_dropped_if_it_is_worse(self):
        problem = Quadratic(wrong_from=1, interrupt_at=500)
        problem.train(cycles=(200, 400, 800))
        assert (problem.x.detach() - TARGET).abs().max() < 0.05

    def test_other_errors_are_not_swallowed(self):
        problem = Quadratic()

        def gradient(cycle):
            raise ValueError("the model is wrong")

        problem.gradient = gradient
        with pytest.raises(ValueError, match="the model is wrong"):
            problem.train()


def test_the_tail_of_a_cycle_is_averaged():
    problem = Quadratic(noise=2.0)
    problem.train(cycles=(100,), learning_rate=0.5)
    _, last, average = problem.scored
    iterates = [*problem.visited[1:], last]  # the parameters after each step
    torch.testing.assert_close(average, torch.stack(iterates[-20:]).mean(0))
    assert not torch.equal(average, last)


def test_history():
    report = Quadratic().train(cycles=(60, 70), min_gain=-math.inf, learning_rate=0.01)
    assert isinstance(report, Report)
    assert report.steps == 130
    assert report.history["step"].tolist() == list(range(1, 131))
    assert report.history["elbo"].shape == (130,)
    assert report.history["elbo"][0] == pytest.approx(-0.5 * float(TARGET.square().sum()))
    # The start, then last and averaged state of each cycle.
    assert report.history["heldout_step"].tolist() == [0, 60, 60, 130, 130]
    for name in ("heldout_elbo", "heldout_se"):
        assert report.history[name].shape == (5,)
    expected = np.linspace(-1, 1, 101).std(ddof=1) / math.sqrt(101)
    np.testing.assert_allclose(report.history["heldout_se"], expected)


def test_no_gradients_are_left_behind():
    problem = Quadratic()
    problem.train(cycles=(10,))
    assert problem.x.grad is None
    assert problem.x.requires_grad


@pytest.mark.parametrize("progress", [True, False])
def test_the_progress_bar_can_be_turned_off(progress, capfd):
    problem = Quadratic()
    schedule = Schedule(cycles=(60,))
    train(
        [problem.x], problem.gradient, problem.score, schedule, progress=progress, describe="Fit"
    )
    out, err = capfd.readouterr()
    assert out == ""
    assert ("Fit" in err and "60/60" in err and "ELBO" in err) if progress else err == ""


def test_scores_compare_in_pairs():
    noise = 100 * torch.randn(1000, dtype=torch.float64)
    low, high = Score(noise), Score(noise + 0.1)
    assert high.gain_over(low) == pytest.approx((0.1, 0.0), abs=1e-6)
    assert high.se > 1, "unpaired, it would be lost in noise"
    broken = Score(torch.full((1000,), -math.inf, dtype=torch.float64))
    assert low.gain_over(broken)[0] == math.inf
    assert broken.gain_over(low)[0] == -math.inf
    assert broken.gain_over(broken)[0] == 0


def test_of_states_that_are_as_good_inside_the_one_that_is_there_more_often_is_better():
    values = torch.zeros(400, dtype=torch.float64)
    often, seldom = values.clone(), values - math.log(2)
    often[:200], seldom[:300] = -math.inf, -math.inf
    seldom[300:] += 2 * math.log(2)
    assert Score(often).mean == pytest.approx(Score(seldom).mean)
    assert Score(often).gain_over(Score(seldom))[0] == pytest.approx(0.1 * math.log(2))
    worse = Score(often - 0.01)
    assert worse.gain_over(Score(seldom))[0] == pytest.approx(-0.01), "not as good"


def test_the_learning_rate_warms_up_and_decays():
    schedule = Schedule()
    rates = [schedule.rate(step, 1000) for step in range(1000)]
    assert max(rates) == pytest.approx(1.0, abs=0.01)
    assert 30 < np.argmax(rates) < 60
    assert rates[0] < 0.05
    assert rates[-1] == pytest.approx(0.02, abs=0.001)
