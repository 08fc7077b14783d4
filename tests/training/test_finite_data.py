# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What the loop does where data are finite: scores inside a cycle, patience, time, decay."""

import time

import pytest
import torch

from pyro_flows.training import Schedule, Score, Words, train
from pyro_flows.training.averaging import Average


class Overfitting:
    """Training pulls ``x`` from 0 to 10; the held-out optimum is passed at 4."""

    def __init__(self, *, seconds=0.0, buffers=()):
        self.x = torch.zeros(2, 1, dtype=torch.float64, requires_grad=True)
        self.b = torch.zeros(3, dtype=torch.float64, requires_grad=True)
        self.seconds, self.buffers = seconds, buffers

    def gradient(self, cycle):
        time.sleep(self.seconds)
        self.x.grad = self.x.detach() - 10.0
        self.b.grad = torch.zeros(3, dtype=torch.float64)
        for buffer in self.buffers:
            buffer += 1
        return -0.5 * self.x.grad.square().sum(), torch.tensor(0)

    def score(self):
        value = -0.5 * (self.x.detach() - 4.0).square().sum()
        return Score(value + torch.linspace(-0.1, 0.1, 50, dtype=torch.float64))

    def train(self, **options):
        return train(
            [self.x, self.b],
            self.gradient,
            self.score,
            Schedule(**options),
            buffers=self.buffers,
            progress=False,
            words=Words("log density", "validation rows"),
        )


def test_the_best_state_inside_a_cycle_is_kept():
    problem = Overfitting()
    problem.train(cycles=(2000,), learning_rate=0.02, score_every=20, horizon=5)
    assert (problem.x.detach() - 4.0).abs().max() < 0.5
    without = Overfitting()
    without.train(cycles=(2000,), learning_rate=0.02)
    assert (without.x.detach() - 4.0).abs().max() > 3.0


def test_patience_ends_a_cycle_and_no_gain_ends_training():
    problem = Overfitting()
    report = problem.train(
        cycles=(2000, 4000), learning_rate=0.02, score_every=20, horizon=5, patience=3
    )
    assert report.steps < 1000
    assert "nats on validation rows" in report.stop_reason
    steps = report.history["heldout_step"]
    best = report.history["heldout_elbo"].argmax()
    # The rest of the first cycle is three more looks; the second cycle begins from the best.
    assert (steps[steps > steps[best]] <= steps[best] + 400).all()


def test_scoring_inside_a_cycle_changes_nothing_of_its_steps():
    steps = []
    for every in (None, 7):
        problem, visited = Overfitting(), []
        plain = problem.gradient

        def gradient(cycle, plain=plain, problem=problem, visited=visited):
            visited.append(problem.x.detach().clone())
            return plain(cycle)

        problem.gradient = gradient
        problem.train(cycles=(60,), learning_rate=0.02, score_every=every, horizon=5)
        steps.append(torch.stack(visited))
    assert torch.equal(*steps)


def test_time_runs_out_calmly():
    problem, visited = Overfitting(seconds=0.002), []
    report = problem.train(cycles=(10**6,), learning_rate=0.02, max_seconds=0.6)
    assert report.stop_reason == "the time limit was reached"
    assert 20 < report.steps < 300
    # A step of Adam is as long as the rate: it decays by the clock, though a cycle of a million
    # steps has hardly begun.
    problem = Overfitting(seconds=0.002)
    plain = problem.gradient
    problem.gradient = lambda cycle: (visited.append(problem.x.detach().clone()), plain(cycle))[1]
    problem.train(cycles=(10**6,), learning_rate=0.02, max_seconds=0.6)
    moves = torch.stack(visited).diff(dim=0).abs().amax((1, 2))
    assert moves[-2:].mean() < 0.2 * moves.max()


def test_weights_decay_and_biases_do_not():
    problem = Overfitting()
    with torch.no_grad():
        problem.x.fill_(4.0)
        problem.b.fill_(4.0)

    def gradient(cycle):
        problem.x.grad, problem.b.grad = torch.zeros(2, 1), torch.zeros(3)
        return torch.zeros(()), torch.tensor(0)

    def score():
        return Score(-problem.x.detach().sum() + torch.linspace(-0.1, 0.1, 50))

    problem.gradient, problem.score = gradient, score
    problem.train(cycles=(50,), learning_rate=0.1, weight_decay=0.1)
    assert (problem.x < 3.9).all()
    assert torch.equal(problem.b.detach(), torch.full((3,), 4.0))


def test_buffers_belong_to_the_state():
    count = torch.zeros(1)
    problem = Overfitting(buffers=(count,))
    problem.train(cycles=(500,), learning_rate=0.02, score_every=20, horizon=1)
    assert 100 < float(count) < 400, "as it was when the best parameters were"


@pytest.mark.parametrize("horizon", [None, 4])
def test_averages(horizon):
    x = torch.zeros(1, dtype=torch.float64)
    n = torch.zeros(1, dtype=torch.long)
    average = Average([x, n], steps=20, horizon=horizon)
    for step in range(20):
        x.fill_(float(step))
        n.fill_(step)
        average.update(step)
    mean, last = average.mean
    assert last.item() == 19
    if horizon is None:
        assert mean.item() == pytest.approx((16 + 17 + 18 + 19) / 4)
    else:
        expected = 1.5  # the plain mean of 0..3
        for step in range(4, 20):
            expected += (step - expected) / 4
        assert mean.item() == pytest.approx(expected)
