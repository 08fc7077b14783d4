# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Every mistake gives one error of ours: what was expected, what came, what to do."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from pyro_flows import AutoFlow, Flow, FlowVI, Posterior, errors, transforms, warm_start
from pyro_flows.flows import register_flow

from .models import Y, fitted, gamma_rate, normal_mean


def run(model, *args, **options):
    return FlowVI(model, num_steps=2, progress=False, **options).run(*args)


def no_latents(y):
    pyro.sample("y", dist.Normal(0.0, 1.0).expand(y.shape).to_event(1), obs=y)


def discrete(y):
    k = pyro.sample("k", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(k, 1.0).expand(y.shape).to_event(1), obs=y)


def nowhere():
    x = pyro.sample("x", dist.Normal(0.0, 1.0))
    pyro.factor("never", torch.where(x > 1e9, 0.0, -math.inf))


def always_nan():
    x = pyro.sample("x", dist.ImproperUniform(constraints.real, (), ()))
    pyro.factor("sqrt", (-1 - x**2).sqrt())


def local(y):
    with pyro.plate("data", len(y), subsample_size=2) as index:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(x, 1.0), obs=y[index])


NAN = torch.tensor([1.0, math.nan, 3.0], dtype=torch.float64)

CASES = {
    "no latents": (lambda p: run(no_latents, Y), errors.NoLatentsError, ["expected", "obs="]),
    "a discrete latent": (
        lambda p: run(discrete, Y),
        errors.DiscreteLatentError,
        ["'k'", "Bernoulli", "enumerate"],
    ),
    "a subsampled latent": (
        lambda p: run(local, Y),
        errors.SubsampledLatentError,
        ["'x'", "'data'", "2 of 4", "full size"],
    ),
    "NaN in the data": (
        lambda p: run(normal_mean, NAN),
        errors.DataError,
        ["'y'", "expected numbers", "1 of 3", "Drop those rows"],
    ),
    "NaN in the data, another guide": (
        lambda p: run(normal_mean, NAN, guide=AutoMultivariateNormal(normal_mean)),
        errors.DataError,
        ["'y'", "1 of 3"],
    ),
    "infinite everywhere": (
        lambda p: run(nowhere),
        errors.InfeasibleModelError,
        ["not finite anywhere", "-inf", "'never'", "Check supports", "init_loc_fn"],
    ),
    "NaN everywhere": (
        lambda p: _unvalidated(always_nan),
        errors.InfeasibleModelError,
        ["not finite anywhere", "nan", "'sqrt'"],
    ),
    "infinite everywhere, another guide": (
        lambda p: run(nowhere, guide=AutoMultivariateNormal(nowhere)),
        errors.InfeasibleModelError,
        ["not finite", "init_loc_fn"],
    ),
    "an unknown flow": (
        lambda p: FlowVI(normal_mean, flow="nfs"),
        errors.UnknownFlowError,
        ["'nfs'", "Did you mean 'nsf'", "realnvp", "register_flow"],
    ),
    "a flow of another width": (
        lambda p: run(normal_mean, Y, flow=Flow([transforms.AffineCoupling(3)])),
        errors.ShapeError,
        ["1 latent", "dim=1", "dim=3", "function of dim"],
    ),
    "a registered flow of another width": (
        lambda p: run(normal_mean, Y, flow="too_wide_for_tests"),
        errors.ShapeError,
        ["dim=1", "dim=4"],
    ),
    "a model that is no function": (
        lambda p: FlowVI(3.0),
        errors.GuideError,
        ["a callable", "got float", "the function itself"],
    ),
    "a guide of another family": (
        lambda p: FlowVI(normal_mean, AutoNormal(normal_mean)),
        errors.GuideError,
        ["expected guide=", "got AutoNormal", "Use AutoFlow"],
    ),
    "no steps": (
        lambda p: FlowVI(normal_mean, num_steps=0),
        errors.GuideError,
        ["num_steps >= 1", "got 0"],
    ),
    "no draws": (lambda p: fitted("normal").draws(0), errors.GuideError, ["n >= 1", "got 0"]),
    "warm start of another guide": (
        lambda p: warm_start(AutoNormal(normal_mean)),
        errors.GuideError,
        ["expected an AutoFlow", "got AutoNormal", "Use guide ="],
    ),
    "values of other sites": (
        lambda p: fitted("normal").guide.log_prob({"meen": torch.zeros(3)}),
        errors.GuideError,
        ["'mean'", "'meen'", "every latent site"],
    ),
    "a guide for other data": (
        lambda p: _other_size(),
        errors.ChangedModelError,
        ["'x'", "(4,)", "(3,)", "new AutoFlow"],
    ),
    "a saved posterior with another model": (
        lambda p: Posterior.load(fitted("normal").save(p / "fit"), gamma_rate),
        errors.SavedPosteriorError,
        ["'mean'", "'rate'", "Pass the model"],
    ),
    "a saved posterior that isn't there": (
        lambda p: Posterior.load(p / "nothing", normal_mean),
        errors.SavedPosteriorError,
        ["Expected", "missing", "Check the path"],
    ),
}


def _unvalidated(model):
    # Pyro's own validation would stop the model's first run, naming the site.
    with pyro.validation_enabled(False):
        return run(model)


def _other_size():
    def model(y):
        with pyro.plate("data", len(y)):
            x = pyro.sample("x", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(x, 1.0), obs=y)

    guide = AutoFlow(model).setup(Y)
    return run(model, Y[:3], guide=guide)


@pytest.fixture(autouse=True)
def _too_wide():
    from pyro_flows.flows import registry

    @register_flow("too_wide_for_tests")
    def too_wide(dim, context_dim=0):
        return Flow([transforms.AffineCoupling(dim + 3)])

    yield
    del registry._constructors["too_wide_for_tests"]


@pytest.mark.parametrize("case", list(CASES))
def test_one_error_that_helps(case, tmp_path):
    act, kind, words = CASES[case]
    store = list(pyro.get_param_store().keys())
    with pytest.raises(errors.PyroFlowsError) as caught:
        act(tmp_path)
    assert type(caught.value) is kind
    text = str(caught.value)
    assert [word for word in words if word not in text] == []
    assert text.endswith((".", ")"))
    assert len(text.split(". ")) >= 2 or ";" in text or ":" in text, "and what to do"
    # No error of ours on top of another one of ours.
    inner = caught.value.__cause__ or caught.value.__context__
    assert not isinstance(inner, errors.PyroFlowsError) or "saved" in case
    assert list(pyro.get_param_store().keys()) == store


def test_an_error_of_the_models_own_is_left_as_it_is():
    class Mine(Exception):
        pass

    def model(x):
        raise Mine("a typo in the model")

    with pytest.raises(Mine, match="a typo") as caught:
        run(model, Y)
    assert type(caught.value) is Mine

    def mismatched(x, y):
        b = pyro.sample("b", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(x @ b, 1.0).to_event(1), obs=y)

    with pytest.raises(RuntimeError, match="mat") as caught:
        run(mismatched, torch.zeros(5, 2), torch.zeros(5))
    assert not isinstance(caught.value, errors.PyroFlowsError)


def test_every_error_has_one_base_and_says_what_it_is():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(kinds) > 10
    for kind in kinds:
        assert issubclass(kind, errors.PyroFlowsError)
        assert kind.__doc__
        assert str(kind("What, and what to do.")) == "What, and what to do."
        if kind is not errors.PyroFlowsError:
            standard = (ValueError, KeyError, RuntimeError, TypeError)
            assert issubclass(kind, standard), "so that plain except clauses work"
            assert kind.__name__ in errors.__doc__, "drawn in the tree"
