# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A second flow joins the first where there is still something to learn."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pyro_flows.density import FlowDensity, flow_density
from pyro_flows.density.ensemble import best_weights
from pyro_flows.density.fitting import Budget, maximise_likelihood
from pyro_flows.distributions import FlowMixture
from pyro_flows.training import whole_step


@pytest.fixture(autouse=True, scope="module")
def short_cycles():
    """Cycles of 60, 120, 240, ... steps, so that a test sees three of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Budget, "FIRST_STEPS", 60)
        patch.setattr(Budget, "FIRST_EPOCHS", 1)
        yield


def rows(n=2000):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 2))
    return np.stack([x[:, 0], np.sin(3 * x[:, 0]) + 0.1 * x[:, 1]], 1)


@pytest.fixture(scope="module")
def fit(short_cycles):
    density = FlowDensity(
        "realnvp", components=(1, 5), batch_size=128, max_epochs=40, progress=False
    )
    return density.fit(rows())


def test_the_two_are_mixed_by_weights(fit):
    assert isinstance(fit.flow_, FlowMixture)
    assert fit.weights_ == pytest.approx(fit.flow_.weights.tolist())
    assert sum(fit.weights_) == pytest.approx(1.0)
    x = torch.as_tensor(rows(50)).float()
    inner, ladj = fit.units_.standardise(fit.units_.read(x, None))
    each = torch.stack([flow.log_prob(inner.x) for flow in fit.flow_.flows])
    expected = (each.exp() * torch.tensor(fit.weights_)[:, None]).sum(0).log() + ladj
    np.testing.assert_allclose(fit.score_samples(x), expected.detach(), rtol=1e-4, atol=1e-4)


def test_it_is_no_worse_than_either_on_the_held_out_rows(fit):
    inner, ladj = fit.units_.standardise(fit.heldout_)
    each = [
        float((flow.log_prob(inner.x).double() + ladj).mean().detach()) for flow in fit.flow_.flows
    ]
    assert fit.best_score_ >= max(each) - 1e-4


def test_history_runs_through_both(fit):
    history = fit.history_
    assert len(history["step"]) == fit.n_steps_ == history["step"][-1]
    assert (np.diff(history["step"]) == 1).all()
    assert history["heldout_step"][-1] == fit.n_steps_


def test_it_is_saved_and_drawn_from(fit, tmp_path):
    again = FlowDensity.load(fit.save(tmp_path / "density"))
    assert again.weights_ == fit.weights_
    np.testing.assert_array_equal(again.score_samples(rows(9)), fit.score_samples(rows(9)))
    np.testing.assert_array_equal(again.sample(9), fit.sample(9))


@pytest.mark.parametrize(
    "options", [{"ensemble": False}, {"components": None}, {"num_steps": 300}, {"max_epochs": 4}]
)
def test_a_single_flow_where_it_is_asked_for(options):
    arguments = {"components": (1, 5), "batch_size": 128, "max_epochs": 40} | options
    density = FlowDensity("realnvp", progress=False, **arguments).fit(rows())
    assert density.weights_ is None
    assert not isinstance(density.flow_, FlowMixture)


def test_a_context_gets_a_single_flow():
    x = rows()
    density = FlowDensity("realnvp", batch_size=128, max_epochs=40, progress=False)
    assert density.fit(x[:, 1:], x[:, :1]).weights_ is None


def test_weights_are_those_of_the_rows_that_each_explains():
    generator = torch.Generator().manual_seed(0)
    x = torch.where(
        torch.rand(20_000, generator=generator) < 0.3,
        torch.randn(20_000, generator=generator) - 4,
        torch.randn(20_000, generator=generator) + 4,
    )
    log_prob = torch.stack([-0.5 * (x + 4) ** 2, -0.5 * (x - 4) ** 2])
    torch.testing.assert_close(
        best_weights(log_prob), torch.tensor([0.3, 0.7]).double(), atol=0.02, rtol=0
    )


def test_a_density_of_minus_infinity_everywhere_gets_no_weight():
    weights = best_weights(torch.stack([torch.zeros(5), torch.full((5,), -torch.inf)]))
    assert weights[0] > 0.999
    assert torch.isfinite(weights).all()


def test_it_says_of_both_whether_they_were_compiled(monkeypatch):
    monkeypatch.setattr(whole_step, "_compile", lambda graph, inputs: graph)
    options = {"components": (1, 5), "batch_size": 128, "max_epochs": 40, "progress": False}
    both = FlowDensity("realnvp", compile=True, **options).fit(rows())
    assert isinstance(both.flow_, FlowMixture)
    assert both.compiled_ == (
        "compiled: each step is one function; the second flow not compiled: dropout draws random "
        "numbers"
    )
    same = FlowDensity("realnvp", compile=True, dropout=0.0, **options).fit(rows())
    assert same.compiled_ == "compiled: each step is one function"


def test_after_an_interrupt_no_second_flow_is_trained(monkeypatch):
    def interrupted(*args, **kwargs):
        report = maximise_likelihood(*args, **kwargs)
        return replace(report, gaining=True, interrupted=True)

    monkeypatch.setattr(flow_density, "maximise_likelihood", interrupted)
    fit = FlowDensity("realnvp", components=2, max_epochs=20, progress=False).fit(rows())
    assert fit.weights_ is None
