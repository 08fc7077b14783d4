# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""Calibration by refits: exact fits pass, wrong guides don't, and what can't be done is said."""

import importlib
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDiagonalNormal

from pyro_flows import AutoFlow, FlowVI, calibrate
from pyro_flows.errors import GuideError, ModelError
from pyro_flows.inference import warm_refit
from pyro_flows.inference.gaussian import Gaussian
from pyro_flows.inference.simulation import Simulator

from .models import Y, fitted

calibration = importlib.import_module("pyro_flows.inference.calibration")


def fit(model, *args, **options):
    return FlowVI(model, seed=0, progress=False, **{"num_steps": 50, **options}).run(*args)


def run(posterior, simulations=3, **options):
    return calibrate(posterior, simulations, progress=False, **options)


# Right and wrong posteriors.


def test_exact_fits_are_calibrated_and_reproducible():
    posterior = fitted("normal")
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    pyro.param("other", torch.tensor(1.0))
    found = run(posterior, 15)
    assert found.ranks["mean"].shape == found.ranks["log joint"].shape == (15,)
    assert set(found.verdicts) == {"reliable"}
    assert found.notes == ()
    assert found.p_value > 0.05
    table = found.table()
    assert abs(table.loc["mean", "spread"] - 1) < 4 / math.sqrt(30)
    assert abs(table.loc["mean", "shift"]) < 4 / math.sqrt(15)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert list(pyro.get_param_store().keys()) == ["other"]
    again = run(posterior, 2)
    assert all((again.ranks[name] == found.ranks[name][:2]).all() for name in found.ranks)
    assert not (run(posterior, 2, seed=9).ranks["mean"] == found.ranks["mean"][:2]).any()


def correlated(y):
    """Sum and difference of two numbers, the sum known ten times as well: correlation 0.98."""
    x = pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("total", dist.Normal(x.sum(), 0.1), obs=y)


def test_a_mean_field_guide_is_found_too_narrow():
    guide = AutoDiagonalNormal(correlated)
    posterior = fit(correlated, torch.tensor(0.3), guide=guide, num_steps=200)
    model, loc = guide.model, guide.loc.detach().clone()
    found = run(posterior, 10, num_steps=100, correct=False)
    table = found.table()
    assert (table.loc[["x[0]", "x[1]"], "note"] == "posterior too narrow").all()
    assert (table.loc[["x[0]", "x[1]"], "spread"] > 1.5).all()
    assert set(found.verdicts) == {"not reliable"}
    assert "10 not reliable" in repr(found)
    assert guide.model is model  # it was left as it is
    assert torch.equal(guide.loc, loc)


@pytest.mark.slow
def test_a_flow_on_the_same_model_is_calibrated():
    posterior = fit(correlated, torch.tensor(0.3))
    assert run(posterior, 6).p_value > 0.05


@pytest.mark.slow
def test_eight_schools_are_calibrated():
    sd = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])

    def schools(y):
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("school", len(y)):
            theta = pyro.sample("theta", dist.Normal(mu, tau))
            pyro.sample("y", dist.Normal(theta, sd), obs=y)

    found = run(FlowVI(schools, seed=0, progress=False).run(y), 40)
    assert found.p_value > 0.01
    assert len(found.failures) == 0
    assert found.verdicts.count("not reliable") <= 2


# Simulating.


def test_truths_follow_the_prior_and_data_the_likelihood():
    simulator = Simulator(fitted("normal"))
    pairs = [simulator.draw() for _ in range(300)]
    mean = torch.stack([truth["mean"] for truth, _ in pairs])
    y = torch.stack([data["y"] for _, data in pairs])
    assert y.shape == (300, len(Y))
    assert abs(float(mean.std()) - 10) < 1.5
    noise = y - mean[:, None]
    assert abs(float(noise.mean())) < 0.1
    assert abs(float(noise.std()) - 1) < 0.1


def test_latents_come_in_the_type_of_the_guide():
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(6, 2)
    y = x[:, 0]

    def line(x, y):
        slope = pyro.sample("slope", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ slope, 1.0), obs=y)

    torch.set_default_dtype(torch.float32)  # so that x @ slope mixes types where slope is drawn
    found = run(fit(line, x, y), 1)
    assert set(found.verdicts) <= {"reliable", "corrected"}


def test_missing_data_stay_missing():
    y = torch.tensor([1.0, 0.0, 2.0, 2.5])
    there = torch.tensor([True, False, True, True])

    def masked(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y, obs_mask=there)

    found = run(fit(masked, y), 2)
    assert list(found.table().index) == ["mean", "y_unobserved[1]", "log joint"]
    assert np.isnan(found.ranks["y_unobserved"][:, [0, 2, 3]]).all()

    def gaps(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.NanMaskedNormal(mean, 1.0), obs=y)

    posterior = fit(gaps, torch.where(there, y, math.nan))
    data = Simulator(posterior).draw()[1]["y"]
    assert torch.isnan(data).tolist() == (~there).tolist()
    assert run(posterior, 1).verdicts == ("reliable",)


def test_discrete_sites_are_drawn_and_summed_out():
    y = torch.tensor([-2.0, -1.5, 2.5, 2.0, 1.0])

    def clusters(y):
        gap = pyro.sample("gap", dist.LogNormal(1.0, 0.3))
        with pyro.plate("data", len(y)):
            which = pyro.sample("which", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            pyro.sample("y", dist.Normal(gap * (2 * which - 1), 1.0), obs=y)

    posterior = fit(clusters, y)
    signs = torch.cat([Simulator(posterior).draw()[1]["y"] for _ in range(40)]).sign()
    assert abs(float(signs.mean())) < 0.3
    found = run(posterior, 2)
    assert set(found.ranks) == {"gap", "log joint"}
    assert "failed" not in found.verdicts


@pytest.mark.slow
def test_constant_elements_have_no_rank():
    def factor(y):
        chol = pyro.sample("chol", dist.LKJCholesky(2, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.MultivariateNormal(torch.zeros(2), scale_tril=chol), obs=y)

    y = torch.randn(10, 2)
    found = run(fit(factor, y), 2)
    assert list(found.table().index) == ["chol[1, 0]", "chol[1, 1]", "log joint"]


def test_parameters_of_the_model_are_held():
    def trained(y):
        scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mean, scale), obs=y)

    posterior = fit(trained, Y)
    scale = float(posterior.parameters["scale"])
    pyro.get_param_store()["scale"] = torch.tensor(50.0)  # moved on since
    data = torch.cat([d["y"] - t["mean"] for t, d in _simulated(posterior, 200)])
    assert abs(float(data.std()) / scale - 1) < 0.15
    found = run(posterior)
    assert found.notes == (calibration.TRAINED,)
    assert pyro.param("scale").item() == pytest.approx(50.0)
    assert float(posterior.parameters["scale"]) == scale
    assert all(leaf.requires_grad for leaf in posterior.log_joint.parameters.values())


def _simulated(posterior, n):
    with posterior.under_model_state():
        simulator = Simulator(posterior)
        return [simulator.draw() for _ in range(n)]


def test_data_used_beyond_obs_are_noted():
    def lagged(y):
        rho = pyro.sample("rho", dist.Normal(0.0, 0.5))
        with pyro.plate("data", len(y) - 1):
            pyro.sample("y", dist.Normal(rho * y[:-1], 1.0), obs=y[1:])

    found = run(fit(lagged, Y), 2)
    assert len(found.notes) == 1
    assert "held at what was observed" in found.notes[0]
    assert "held at what was observed" in repr(found)

    def regression(table):  # of whose columns one is data
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(table)):
            pyro.sample("y", dist.Normal(slope * table[:, 0], 1.0), obs=table[:, 1])

    assert Simulator(fit(regression, torch.randn(6, 2))).notes == []

    def sequential(y):  # in which each value follows the simulated one
        rho, last = pyro.sample("rho", dist.Normal(0.0, 0.5)), torch.tensor(1.0)
        for t in range(len(y)):
            last = pyro.sample(f"y_{t}", dist.Normal(rho * last, 1.0), obs=y[t])

    posterior = fit(sequential, Y)
    assert run(posterior, 2).notes == ()
    truth, data = Simulator(posterior).draw()
    assert list(data) == ["y_0", "y_1", "y_2", "y_3"]


# Refits.


def test_a_refit_starts_from_the_main_flow_moved_to_the_new_gaussian():
    def skewed(y):
        rate = pyro.sample("rate", dist.Gamma(torch.tensor([1.0, 2.0]), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson(rate.sum()), obs=y)

    guide = AutoFlow(skewed).setup(torch.tensor([1.0, 2.0]))
    with torch.no_grad():
        for p in guide._flow.parameters():
            p.add_(0.05 * torch.randn(p.shape))

    def moments():
        z = guide._flow().sample((40_000,))
        return z.mean(0), z.T.cov()

    mean, cov = moments()
    wanted = Gaussian(torch.tensor([3.0, -1.0]), torch.tensor([[0.5, 0.0], [0.2, 2.0]]))
    with torch.no_grad():
        warm_refit._move(guide.affine, Gaussian(mean, torch.linalg.cholesky(cov)), wanted)
    mean, cov = moments()
    assert torch.allclose(mean, wanted.loc, atol=0.06)
    assert torch.allclose(cov, wanted.scale_tril @ wanted.scale_tril.T, atol=0.1)


def test_a_refit_needs_hardly_any_training_where_only_the_place_changes():
    """The posterior has one shape, whatever the data: the main flow, moved, is as good there."""

    def skewed(y):
        x = pyro.sample("x", dist.Normal(0.0, 100.0))
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x + u**2, 0.5), obs=y)

    posterior = fit(skewed, torch.tensor(1.0), num_steps=200)
    main = warm_refit.MainFit(posterior, 0.05, None, None)
    refit = warm_refit.Refit(main, {"y": torch.tensor(60.0)}, 0, thorough=False)
    found = refit.run(torch.tensor(1.0))
    begun = found.report.history["heldout_elbo"][0]
    gaussian = posterior.log_evidence - main.gaussian.elbo
    assert gaussian > 0.3
    assert found.log_evidence - begun < 0.5 * gaussian
    assert found.report.steps <= 100


@pytest.mark.parametrize("name", ["gamma", pytest.param("groups", marks=pytest.mark.slow)])
def test_the_main_fit_is_left_as_it_was(name):
    posterior = fitted(name)
    state = {k: v.clone() for k, v in posterior.guide.state_dict().items() if torch.is_tensor(v)}
    run(posterior, 1)
    now = posterior.guide.state_dict()
    assert all(torch.equal(now[k], v) for k, v in state.items())
    assert posterior.guide.bare_model is not None


@pytest.mark.slow
def test_several_modes_are_looked_for_in_each_refit():
    def square(y):
        x = pyro.sample("x", dist.Normal(0.0, 3.0))
        pyro.sample("y", dist.Normal(x**2, 1.0), obs=y)

    posterior = FlowVI(square, seed=0, progress=False).run(torch.tensor(9.0))
    assert posterior.guide.modes == 2
    found = run(posterior, 30)
    assert found.verdicts.count("not reliable") <= 2
    assert found.p_value > 0.01


# What can't be done, and what goes wrong.


def model_with(statement):
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        statement(mean, y)

    return model


def observe(mean, y):
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def subsampled(mean, y):
    with pyro.plate("data", len(y), subsample_size=2) as index:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y[index])


def scaled(mean, y):
    with poutine.scale(scale=0.5):
        observe(mean, y)


def flat(mean, y):
    pyro.sample("shift", dist.ImproperUniform(constraints.real, (), ()))
    observe(mean, y)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (lambda mean, y: pyro.factor("likelihood", -((mean - y) ** 2).sum()), "pyro.factor"),
        (flat, "flat prior of 'shift'"),
        (subsampled, "subsampled plate"),
        (scaled, "'y' is scaled"),
        (lambda mean, y: None, "nothing is observed"),
    ],
)
def test_models_that_cannot_be_run_forwards_are_refused(statement, words):
    posterior = fit(model_with(statement), Y, num_steps=5)
    with pytest.raises(ModelError, match=words):
        run(posterior)


@pytest.mark.parametrize("options", [{"simulations": 0}, {"draws": 1}, {"draws": 10.0}])
def test_arguments_are_checked(options):
    with pytest.raises(GuideError, match=r"calibrate expected \w+ >= "):
        calibrate(fitted("normal"), progress=False, **options)


def test_failures_are_kept_and_counted(monkeypatch):
    draw, count = Simulator.draw, iter(range(100))

    def broken(self):
        truth, data = draw(self)
        number = next(count)  # 0 is that of the check
        data["y"] = data["y"] * (math.inf if number == 2 else 1)
        data["y"] = data["y"].new_zeros(7) if number == 4 else data["y"]
        return truth, data

    monkeypatch.setattr(Simulator, "draw", broken)
    found = run(fitted("normal"), 5)
    assert found.verdicts == ("reliable", "failed", "reliable", "failed", "reliable")
    assert found.failures[1] == "DataError: the simulated data of 'y' aren't finite."
    assert set(found.failures) == {1, 3}
    assert np.isnan(found.ranks["mean"]).tolist() == [False, True, False, True, False]
    assert "3 reliable, 2 failed" in repr(found)


def test_interrupts_hand_back_what_there_is(monkeypatch):
    simulate = calibration._Run.simulate

    def interrupted(self, seed):
        if len(self.verdicts) == 2:
            raise KeyboardInterrupt
        simulate(self, seed)

    monkeypatch.setattr(calibration._Run, "simulate", interrupted)
    found = run(fitted("normal"), 5)
    assert found.simulations == 2
    assert found.notes == ("Stopped by the user after 2 of 5.",)


def test_interrupts_of_a_refit_end_the_calibration(monkeypatch):
    posterior = fitted("gamma")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(warm_refit, "find_gaussian", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(posterior, 5)
