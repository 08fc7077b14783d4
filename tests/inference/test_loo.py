# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Leave-one-out cross-validation of fits, and their comparison."""

import math
import warnings

import arviz as az
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoDiagonalNormal

from pyro_flows import AutoFlow, FlowVI, assess, compare, loo
from pyro_flows.errors import GuideError, ModelError, OptionError
from pyro_flows.inference.posterior import Pool
from pyro_flows.transforms import CholeskyAffine

from .models import SCORES, fitted, normal_mean, normal_mean_exact

DATA = torch.tensor([1.0, 2.0, 3.0, 2.5, 0.5, 1.5, 4.0, 2.0], dtype=torch.float64)


def quick(model, *args, **kwargs):
    """A short fit with an affine guide."""
    guide = AutoFlow(model, flow=lambda dim: [CholeskyAffine(dim)])
    return FlowVI(model, guide, seed=0, num_steps=40, progress=False).run(*args, **kwargs)


def off_by(width, shift):
    """A guide of ``normal_mean`` fixed on purpose: so many times the sd, off by so many sd."""
    mean, sd, _ = normal_mean_exact(DATA)
    guide = AutoDiagonalNormal(normal_mean)
    guide(DATA)
    with torch.no_grad():
        guide.loc.fill_(mean + shift * sd)
        guide.scale = torch.full((1,), width * sd)
    return assess(normal_mean, guide, DATA)


def exact(y=DATA):
    """log p(y_i | the others), each."""
    result = []
    for i in range(len(y)):
        mean, sd, _ = normal_mean_exact(torch.cat([y[:i], y[i + 1 :]]))
        result.append(float(dist.Normal(mean, math.hypot(sd, 1.0)).log_prob(y[i])))
    return np.array(result)


class TestCorrection:
    def test_a_wrong_guide_gives_the_right_answer(self):
        posterior = off_by(1.3, 0.5)
        found = loo(posterior)
        assert abs(found.elpd - exact().sum()) < 3 * found.mcse < 0.1
        assert found.warnings == ()
        np.testing.assert_allclose(found.elpd_i, exact(), atol=0.1)
        # The guide's own draws, taken for the posterior's, are wrong by far more.
        mean, sd, _ = normal_mean_exact(DATA)
        mu = posterior._constrained(posterior.pool.z[:4000])["mean"]
        assert float(mu.std()) == pytest.approx(1.3 * sd, rel=0.05)
        ll = dist.Normal(mu[:, None], 1.0).log_prob(DATA).numpy()[None]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raw = az.loo(az.from_dict(posterior={"m": mu.numpy()[None]}, log_likelihood={"y": ll}))
        assert abs(raw.elpd_loo - exact().sum()) > 10 * found.mcse

    def test_too_narrow_a_guide_warns(self):
        found = loo(off_by(0.5, 0.0))
        assert found.khat_i.max() >= found.threshold
        assert found.mcse == math.inf
        assert "Weights" not in found.warnings[0]
        assert "a better guide" in found.warnings[0]
        assert any("'not reliable'" in text for text in found.warnings)

    def test_a_good_fit(self):
        posterior = fitted("normal")
        found = loo(posterior, draws=2000)
        y = posterior.args[0]
        assert abs(found.elpd - exact(y).sum()) < 4 * found.mcse
        assert found.n_draws == 2000
        assert found.dims == ("data",)
        np.testing.assert_array_equal(found.observed, y.numpy())

    def test_the_same_again_and_the_worlds_random_state_stays(self):
        state = torch.get_rng_state()
        first, second = (loo(fitted("normal"), draws=500) for _ in range(2))
        assert torch.equal(torch.get_rng_state(), state)
        np.testing.assert_array_equal(first.elpd_i, second.elpd_i)

    def test_more_draws_than_the_pool_has(self):
        posterior = fitted("normal")
        small = type(posterior).__new__(type(posterior))
        small.__dict__.update(posterior.__dict__)
        pool = posterior.pool
        small.pool = Pool(pool.z[:300], pool.log_p[:300], pool.log_q[:300])
        assert loo(small, draws=1000).n_draws == 1000


class TestPoints:
    def test_a_matrix_keeps_its_shape_and_names(self):
        def model(y):
            mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
            with pyro.plate("school", y.shape[1]), pyro.plate("pupil", y.shape[0]):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

        found = loo(quick(model, SCORES), draws=500)
        assert found.elpd_i.shape == found.khat_i.shape == SCORES.shape
        assert found.dims == ("pupil", "school")
        assert found.to_arviz().pareto_k.dims == ("pupil", "school")

    def test_event_axes_are_summed(self):
        y = torch.randn(5, 3)

        def model(y):
            mean = pyro.sample("mean", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            with pyro.plate("rows", len(y)):
                pyro.sample("y", dist.Normal(mean, 1.0).to_event(1), obs=y)

        found = loo(quick(model, y), draws=500)
        assert found.elpd_i.shape == (5,)
        assert found.observed.shape == (5, 3)

    @pytest.mark.parametrize("how", ["mask", "obs_mask", "nan"])
    def test_masked_elements_are_left_out(self, how):
        y, mask = DATA[:6].clone(), torch.tensor([True, True, False, True, False, True])

        def model(y):
            mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            with pyro.plate("data", len(y)):
                if how == "mask":
                    with poutine.mask(mask=mask):
                        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
                elif how == "nan":
                    pyro.sample("y", dist.NanMaskedNormal(mean, 1.0), obs=y)
                else:
                    pyro.sample("y", dist.Normal(mean, 1.0), obs=y, obs_mask=mask)

        y[~mask] = math.nan if how == "nan" else 99.0
        posterior = quick(model, y)
        found = loo(posterior)
        assert found.elpd_i.shape == (4,)
        np.testing.assert_array_equal(found.observed, y[mask].numpy())
        assert [label.split("[")[1] for label in found.coords["point"]] == ["0]", "1]", "3]", "5]"]
        assert abs(found.elpd - exact(y[mask]).sum()) < 4 * found.mcse
        assert list(found.to_arviz().pareto_k["point"].values) == found.coords["point"]

    def test_several_sites(self):
        def model(a, b):
            mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            with pyro.plate("first", len(a)):
                pyro.sample("a", dist.Normal(mean, 1.0), obs=a)
            with pyro.plate("second", len(b)):
                pyro.sample("b", dist.Normal(mean, 1.0), obs=b)

        posterior = quick(model, DATA[:3], DATA[3:])
        with pytest.raises(OptionError, match="which of the 2 observed sites to take: 'a', 'b'"):
            loo(posterior)
        with pytest.raises(OptionError, match=r"among 'a', 'b', but got \['c'\]"):
            loo(posterior, "c")
        one, both = loo(posterior, "b"), loo(posterior, ["a", "b"])
        assert one.elpd_i.shape == (5,)
        assert both.coords["point"][2:4] == ["a[2]", "b[0]"]
        np.testing.assert_array_equal(both.elpd_i[3:], one.elpd_i)
        np.testing.assert_allclose(both.elpd_i, exact(), atol=0.05)

    def test_one_vector_event_is_one_point(self):
        def model(y):
            mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            pyro.sample("y", dist.Normal(mean, 1.0).expand([len(y)]).to_event(1), obs=y)

        found = loo(quick(model, DATA), draws=500)
        assert found.elpd_i.shape == ()
        assert any("only one point" in text for text in found.warnings)

    def test_a_bound_that_hangs_on_one_point(self):
        def model(y):
            top = pyro.sample("top", dist.LogNormal(1.0, 1.0))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Uniform(torch.zeros(()), top, validate_args=False), obs=y)

        posterior = quick(model, torch.tensor([1.0, 2.0, 4.0]))
        assert posterior.weights.n_zero > 20_000
        found = loo(posterior, draws=400)
        assert found.n_draws == 400
        assert found.khat_i[2] == math.inf
        assert np.isfinite(found.khat_i[:2]).all()
        assert any("alone excludes draws" in text for text in found.warnings)


class TestRefusals:
    def test_no_data(self):
        def model():
            pyro.sample("x", dist.Normal(0.0, 1.0))

        with pytest.raises(ModelError, match="no site is observed"):
            loo(quick(model))

    def test_enumerated_sites(self):
        def model(y):
            mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
            with pyro.plate("data", len(y)):
                k = pyro.sample("k", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
                pyro.sample("y", dist.Normal(mean + 3 * k, 1.0), obs=y)

        with pytest.raises(ModelError, match="there is none. The model has enumerated discrete"):
            loo(quick(model, DATA))

    def test_a_scaled_likelihood(self):
        def model(y):
            mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
            with pyro.plate("data", len(y)), poutine.scale(scale=0.5):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

        with pytest.raises(ModelError, match="but 'y' is scaled"):
            loo(quick(model, DATA))

    @pytest.mark.parametrize("draws", [0, 24, 2.5, None])
    def test_no_number_of_draws(self, draws):
        with pytest.raises(GuideError, match="loo expected draws >= 25"):
            loo(fitted("normal"), draws=draws)


class TestCompare:
    def test_fits_and_results_alike(self):
        def heavy(y):
            mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.StudentT(4.0, mean, 1.0), obs=y)

        y = torch.cat([DATA, torch.tensor([12.0])])
        fits = {"normal": quick(normal_mean, y), "heavy": quick(heavy, y)}
        table = compare({"normal": fits["normal"], "heavy": loo(fits["heavy"])})
        assert list(table.index) == ["heavy", "normal"]
        assert table.loc["normal", "elpd_diff"] < -10
        assert table.loc["heavy", "weight"] > 0.9

    def test_other_data_are_refused(self):
        fits = {"a": fitted("normal"), "b": quick(normal_mean, DATA[4:])}
        with pytest.raises(ValueError, match="other observed values for 'a' than for 'b'"):
            compare(fits, draws=500)
        with pytest.raises(ValueError, match="got 4 points for 'a' and 8 for 'c'"):
            compare({"a": fits["a"], "c": quick(normal_mean, DATA)}, draws=500)

    def test_fits_without_names(self):
        with pytest.raises(OptionError, match="expected a dict of names to fits, but got list"):
            compare([fitted("normal"), fitted("normal")])


def test_scalar_sites_one_by_one():
    def model(y):
        mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
        for i in pyro.plate("data", 3):
            pyro.sample(f"y_{i}", dist.Normal(mean, 1.0), obs=y[i])

    posterior = FlowVI(model, num_steps=5, progress=False).run(torch.tensor([1.0, 2.0, 0.5]))
    found = loo(posterior, ["y_0", "y_1", "y_2"])
    assert found.elpd_i.shape == (3,)
    assert found.coords["point"] == ["y_0", "y_1", "y_2"]
