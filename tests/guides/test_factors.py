# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A matrix without a factor is one particle's fault."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_flows import AutoFlow
from pyro_flows.guides import LogJoint
from pyro_flows.guides.factors import NaNFactors, without_linalg_errors

GOOD, BAD = [[2.0, 0.5], [0.5, 1.0]], [[0.0, 0.0], [0.0, 0.0]]
FUNCTIONS = {
    "cholesky": torch.linalg.cholesky,
    "inv": torch.linalg.inv,
    "solve": lambda x: torch.linalg.solve(x, torch.ones(2, 1)),
    "solve_vector": lambda x: torch.linalg.solve(x, torch.ones(3, 2)),
    "inverse of a product": lambda x: torch.linalg.inv(x @ x),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_nan_where_there_is_no_factor(name):
    function, x = FUNCTIONS[name], torch.tensor([GOOD, BAD, GOOD], requires_grad=True)
    with pytest.raises(torch.linalg.LinAlgError):
        function(x)
    got = without_linalg_errors(function, x)
    good = torch.tensor([GOOD, GOOD, GOOD], requires_grad=True)
    expected = function(good)
    torch.testing.assert_close(got[[0, 2]], expected[[0, 2]])
    assert bool(got[1].isnan().all() if name != "cholesky" else got[1].isnan().any())
    (gradient,) = torch.autograd.grad(got.sum(), x)
    (wanted,) = torch.autograd.grad(expected.sum(), good)
    torch.testing.assert_close(gradient[[0, 2]], wanted[[0, 2]])
    assert bool(gradient[1].isnan().any())


def test_solutions_for_several_right_hand_sides():
    x, y = torch.tensor([GOOD, BAD, GOOD]), torch.ones(5, 3, 2, 4)
    got = without_linalg_errors(torch.linalg.solve, x, y)
    assert got.isnan().flatten(2).all(2).any(0).tolist() == [False, True, False]
    torch.testing.assert_close(got[:, 0], torch.linalg.solve(x[0], y[:, 0]))


def test_all_kinds_of_factors():
    bad = torch.tensor(BAD, dtype=torch.complex128)
    assert bool(without_linalg_errors(torch.linalg.cholesky, bad - torch.eye(2)).isnan().any())
    with NaNFactors():
        assert bool(torch.linalg.lu_factor(torch.tensor(BAD))[0].isnan().all())


def test_outside_nothing_changes():
    with NaNFactors():
        pass
    with pytest.raises(torch.linalg.LinAlgError):
        torch.linalg.cholesky(torch.tensor(BAD))


TIMES = torch.linspace(0.0, 1.0, 5)


def process():
    length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
    gap = (TIMES[:, None] - TIMES) / length
    covariance = torch.exp(-0.5 * gap**2) + 1e-3 * torch.eye(5)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(5), covariance), obs=TIMES.sin())


@pytest.mark.parametrize("mode", ["captured", "vectorised", "sequential"])
def test_a_gaussian_process_far_away(mode):
    guide = AutoFlow(process).setup()
    log_joint = LogJoint(process, guide, mode=mode)
    # A length of 0 makes 0 / 0; the two others are sound.
    z = torch.tensor([[0.3], [-200.0], [-0.5]])
    value, gradient = log_joint.value_and_grad(z)
    assert torch.isfinite(value).tolist() == torch.isfinite(gradient[:, 0]).tolist()
    assert torch.isfinite(value).tolist() == [True, False, True]
    sound = z[[0, 2]]
    expected, slope = log_joint.value_and_grad(sound)
    torch.testing.assert_close(value[[0, 2]], expected)
    torch.testing.assert_close(gradient[[0, 2]], slope)
    _, _, hessian = log_joint.value_grad_hessian(z)
    assert torch.isfinite(hessian[:, 0, 0]).tolist() == [True, False, True]


def test_what_particles_share_is_spared():
    def model():
        noise = pyro.param("noise", torch.tensor(0.1), constraint=dist.constraints.positive)
        length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
        gap = (TIMES[:, None] - TIMES) / length
        covariance = torch.exp(-0.5 * gap**2) + noise * torch.eye(5)
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(5), covariance), obs=TIMES.sin())

    pyro.clear_param_store()
    log_joint = LogJoint(model, AutoFlow(model).setup())
    assert log_joint.mode == "vectorised"
    (leaf,) = log_joint.parameters.values()
    grads = []
    for z in ([[0.3], [-200.0], [-0.5]], [[0.3], [-0.5]]):
        leaf.grad = None
        value, _ = log_joint.value_and_grad(torch.tensor(z), accumulate=True)
        grads.append(leaf.grad)
    assert not torch.isfinite(log_joint.value_and_grad(torch.tensor([[-200.0]]))[0]).any()
    assert bool(torch.isfinite(grads[0]))
    torch.testing.assert_close(*grads)
