# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What only continuous layers do; the laws hold them to the rest."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

from pyro_flows.errors import DerivativeError, NotConvergedError, OptionError, ShapeError
from pyro_flows.testing import check_layer
from pyro_flows.testing.case import Case
from pyro_flows.transforms import ContinuousFlow

LAWS_OF_VALUE = (
    "round_trip",
    "reaches_far",
    "finite",
    "parameters_get_gradients",
    "starts_at_identity",
    "constraints_are_right",
    "errors_are_sentences",
)


class Linear(nn.Module):
    """``f = A z``: the flow is the exponential of ``A``, its log-determinant the trace."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, t, z, context=None):
        return z @ self.matrix.T

    def push(self, t, z, context, tangents):
        return z @ self.matrix.T, tangents @ self.matrix.T


def linear(**options):
    layer = ContinuousFlow(3, **options)
    layer.field = Linear(torch.randn(3, 3))
    return layer


def curved(perturb=3.0, **options):
    """A layer with a field that bends, and points."""

    def make(d, c):
        return ContinuousFlow(d, c, hidden_dims=(8,), **options)

    case = Case(make, 3, perturb=perturb)
    return case.layer(), case.values(6)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_a_linear_field_is_a_matrix_exponential(solver, order):
    layer, x = linear(solver=solver), torch.randn(5, 3)
    matrix = layer.field.matrix.detach()
    errors = []
    for steps in (16, 32):
        layer.steps = steps
        y, ladj = layer.forward_and_ladj(x)
        errors.append(
            torch.stack(
                [
                    (y - x @ torch.matrix_exp(matrix).T).abs().max(),
                    (ladj - matrix.trace()).abs().max(),
                ]
            )
        )
    rates = (errors[0] / errors[1]).log2()
    assert (rates > order - 0.3).all()


def test_the_default_steps_are_close_to_the_equation():
    """Of a field that moves values by about 1; the density of the map itself is always exact."""
    layer, x = curved()
    with torch.no_grad():
        y, ladj = layer.forward_and_ladj(x)
        layer.steps = 256
        exact_y, exact_ladj = layer.forward_and_ladj(x)
    assert (exact_y - x).abs().max() > 1
    assert (y - exact_y).abs().max() < 1e-5
    assert (ladj - exact_ladj).abs().max() < 3e-5


@pytest.mark.parametrize("steps", [1, 3])
def test_the_inverse_is_that_of_the_steps_taken(steps):
    """Far from the equation's, where integrating backwards is off, the round trip is exact."""
    layer, x = curved(steps=steps)
    y = layer(x)
    backwards = layer._move(None, y, 1.0, -1.0) if steps == 1 else None
    assert (layer.inv(y) - x).abs().max() < 1e-13
    if backwards is not None:
        assert (backwards - x).abs().max() > 1e-4


def test_an_element_does_not_choose_its_mates_steps():
    layer, x = curved(steps=4)
    wild = torch.cat([x[:1], 1e5 * x[1:]])
    assert torch.allclose(layer(wild)[0], layer(x[:1])[0], rtol=1e-12)


def test_a_step_that_folds_space_is_not_scored():
    layer = linear(steps=1, solver="euler")
    with torch.no_grad():
        layer.field.matrix.copy_(torch.diag(torch.tensor([-1.5, 0.0, 0.0])))
    assert layer.forward_and_ladj(torch.ones(3))[1].isnan()
    layer.steps = 4
    assert layer.forward_and_ladj(torch.ones(3))[1].isfinite()


class Well(nn.Module):
    """A field whose Euler step is not onto: ``z -> z^2 + 1``."""

    def forward(self, t, z, context=None):
        return z * z + 1 - z

    def push(self, t, z, context, tangents):
        return self(t, z), (2 * z - 1).unsqueeze(-2) * tangents


def test_an_inverse_that_does_not_exist_is_an_error():
    layer = ContinuousFlow(1, steps=1, solver="euler")
    layer.field = Well()
    with pytest.raises(NotConvergedError, match="In a continuous flow take more steps"):
        layer.inverse_and_ladj(torch.tensor([-5.0]))


@pytest.mark.parametrize(("dim", "context_dim"), [(1, 2), (2, 0), (5, 2)])
def test_stochastic_mode_obeys_the_laws_of_value(dim, context_dim):
    def make(d, c):
        return ContinuousFlow(d, c, hidden_dims=(8,), steps=2, log_det="stochastic")

    left_out = check_layer(
        make, dim=dim, context_dim=context_dim, batch_shape=(3,), laws=LAWS_OF_VALUE
    )
    assert left_out == {}


def test_the_stochastic_inverse_refuses_second_derivatives():
    """Forwards the estimate is a plain function of the value, once the noise is drawn."""
    layer, x = curved(log_det="stochastic", steps=2)
    x = x[:2]
    assert torch.autograd.functional.hessian(lambda x: layer(x).square().sum(), x).any()
    for k in (0, 1):
        with pytest.raises(DerivativeError, match="expected to be differentiated at most once"):
            torch.autograd.functional.hessian(
                lambda y, k=k: layer.inverse_and_ladj(y)[k].square().sum(), x
            )


@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_estimates_have_the_right_mean_and_gradient(direction):
    layer, x = curved(log_det="stochastic", steps=4)
    x = x[:3].requires_grad_()
    weights = torch.tensor([0.0, 2.0, -1.0])
    leaves = [x, *layer.parameters()]

    def both(count):
        run = layer.forward_and_ladj if direction == "forward" else layer.inverse_and_ladj
        ladj = run(x.expand(count, 3, 3))[1]
        grads = torch.autograd.grad((weights * ladj).mean(0).sum(), leaves, allow_unused=True)
        return torch.cat([ladj.detach().mean(0), *(g.reshape(-1) for g in grads if g is not None)])

    draws = torch.stack([both(50) for _ in range(20)])
    layer.log_det = "exact"
    error = draws.std(0) / len(draws) ** 0.5 + 3e-4  # and the solver's
    expected = both(1)
    assert expected[:3].abs().max() > 0.2
    assert error[:3].max() < 0.05
    z = (draws.mean(0) - expected) / error
    assert z.abs().max() < 5  # of about 70 numbers
    assert z.square().mean() < 2


def test_estimates_are_drawn_anew_and_from_torchs_generator():
    layer, x = curved(log_det="stochastic")
    layer.eval()
    torch.manual_seed(3)
    first, second = layer.forward_and_ladj(x), layer.forward_and_ladj(x)
    torch.manual_seed(3)
    again = layer.forward_and_ladj(x)
    assert torch.allclose(first[0], second[0])
    assert not torch.equal(first[1], second[1])
    assert torch.equal(first[1], again[1])


@pytest.mark.parametrize("log_det", ["exact", "stochastic"])
def test_adaptive_solvers(log_det):
    pytest.importorskip("torchdiffeq")
    layer, x = curved(solver="dopri5", rtol=1e-9, atol=1e-9)
    layer.log_det = log_det
    y, ladj = layer.forward_and_ladj(x)
    back, back_ladj = layer.inverse_and_ladj(y)
    layer.solver, layer.steps, layer.log_det = "rk4", 64, "exact"
    exact_y, exact_ladj = layer.forward_and_ladj(x)
    assert torch.allclose(y, exact_y, atol=1e-7)
    assert torch.allclose(back, x, atol=1e-7)
    if log_det == "exact":
        assert torch.allclose(ladj, exact_ladj, atol=1e-7)
        assert torch.allclose(back_ladj, -ladj, atol=1e-7)
        ladj.sum().backward()
        assert all(p.grad is not None for p in layer.field.net.linears.parameters())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"solver": "rk5"},
            "solver to be one of euler, midpoint, rk4, dopri5, dopri8, bosh3, but got 'rk5'. The "
            "default is 'rk4'.",
        ),
        ({"log_det": "trace"}, "log_det to be one of exact, stochastic, but got 'trace'."),
        ({"steps": 0}, "at least 1 step, but got steps=0. 8 is usual."),
    ],
)
def test_refusals(options, text):
    with pytest.raises(OptionError, match=re.escape(text)):
        ContinuousFlow(2, **options)


# Flow matching.


def ring(count):
    angle, radius = 2 * math.pi * torch.rand(count), 1.5 + 0.15 * torch.randn(count)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1)


def test_flow_matching_learns_a_ring():
    """No equation is solved in training; the density of the trained flow is the equation's."""
    data, held_out = ring(2000), ring(1000)
    layer = ContinuousFlow(2, hidden_dims=(32, 32))
    optimiser = torch.optim.Adam(layer.parameters(), lr=1e-2)
    for _ in range(300):
        batch = data[torch.randint(0, len(data), (256,))]
        loss = layer.flow_matching_loss(torch.randn_like(batch), batch).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        z, ladj = layer.inverse_and_ladj(held_out)
    score = (ladj - 0.5 * (z * z).sum(-1) - math.log(2 * math.pi)).mean()
    gaussian = torch.distributions.MultivariateNormal(data.mean(0), data.T.cov())
    assert score > gaussian.log_prob(held_out).mean() + 0.5


def test_flow_matching_is_a_loss_for_each_pair():
    layer = ContinuousFlow(2, 3, hidden_dims=(8,))
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn_like(p))
    base, data, context = torch.randn(4, 5, 2), torch.randn(4, 5, 2), torch.randn(5, 3)
    times = torch.rand(4, 5)
    loss = layer.flow_matching_loss(base, data, context, times=times)
    assert loss.shape == (4, 5)
    t = times[1, 2]
    point = (1 - t) * base[1, 2] + t * data[1, 2]
    wanted = (layer.field(t, point, context[2]) - (data - base)[1, 2]).square().sum()
    assert torch.allclose(loss[1, 2], wanted)


def test_flow_matching_spreads_its_times():
    """At the start the field is 0; a field of the time alone shows which times were drawn."""
    layer = ContinuousFlow(1, hidden_dims=())
    with torch.no_grad():
        layer.field.net.linears[0].weight[0, 1] = 2.0  # of two inputs: f = t
    zero = torch.zeros(50, 1)
    first = layer.flow_matching_loss(zero, zero).sqrt()
    assert torch.allclose(first.sort()[0].diff(), torch.tensor(1 / 50))
    assert not torch.equal(first, layer.flow_matching_loss(zero, zero).sqrt())


def test_flow_matching_refuses_unpaired_samples():
    layer = ContinuousFlow(2)
    text = "expected a base sample for each value of shape (5, 2), but got (2,). Draw it with"
    with pytest.raises(ShapeError, match=re.escape(text)):
        layer.flow_matching_loss(torch.zeros(2), torch.zeros(5, 2))
    with pytest.raises(ShapeError, match=re.escape("shape (..., 2), but got (5, 3)")):
        layer.flow_matching_loss(torch.zeros(5, 3), torch.zeros(5, 3))
