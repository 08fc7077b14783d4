# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Chains that take turns: answered together, in one order, and never left behind."""

import threading

import pytest
import torch

from pyro_flows.inference.lockstep import in_lockstep


def square(points):
    """x^2 summed, and its gradient."""
    return points.square().sum(-1), 2 * points


def walker(start, steps):
    """A chain that follows the gradient downhill, and adds noise of the one generator."""

    def run(ask):
        x = torch.full((2,), start)
        for _ in range(steps):
            value, gradient = ask(x)
            assert value == x.square().sum()
            x = x - 0.1 * gradient + 0.01 * torch.randn(2)
        return x

    return run


def test_all_that_wait_are_answered_at_once():
    sizes = []

    def evaluate(points):
        sizes.append(len(points))
        return square(points)

    ends = in_lockstep(evaluate, [walker(1.0, 5), walker(2.0, 2), walker(3.0, 3)])
    assert sizes == [3, 3, 2, 1, 1]
    assert [float(x.mean()) for x in ends] == pytest.approx([0.8**5, 2 * 0.8**2, 3 * 0.8**3], 0.1)


def test_the_order_of_random_numbers_is_always_the_same():
    def run():
        torch.manual_seed(3)
        return in_lockstep(square, [walker(float(i), 20 + i) for i in range(4)])

    first, second = run(), run()
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_one_that_asks_nothing_ends():
    assert in_lockstep(square, [lambda _: 1, walker(1.0, 2), lambda _: 3])[::2] == [1, 3]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_of_a_chain_stops_all(error):
    def fails(ask):
        ask(torch.ones(2))
        raise error("no more")

    before = threading.active_count()
    with pytest.raises(error, match="no more"):
        in_lockstep(square, [walker(1.0, 10), fails, walker(2.0, 10)])
    assert threading.active_count() == before


def test_an_error_of_the_density_stops_all():
    def evaluate(points):
        raise RuntimeError("not today")

    before = threading.active_count()
    with pytest.raises(RuntimeError, match="not today"):
        in_lockstep(evaluate, [walker(1.0, 10), walker(2.0, 10)])
    assert threading.active_count() == before
