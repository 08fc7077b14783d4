# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Several fits side by side: what they show, and what they don't claim."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoDiagonalNormal

from pyro_flows import AutoFlow, FlowVI, Refits, refit
from pyro_flows.errors import GuideError
from pyro_flows.inference import refits as module

from .models import Y, normal_mean
from .test_posterior import attributes, group, group_names


def two_modes():
    x = pyro.sample("x", dist.Normal(torch.tensor(0.0), 10.0))
    pyro.factor("modes", torch.logaddexp(-50 * (x - 8) ** 2, -50 * (x + 8) ** 2))


def pinned(model, loc, sd, *args):
    """A posterior whose guide is one Gaussian, put there by hand."""
    guide = AutoDiagonalNormal(model)
    guide(*args)
    guide.loc.data.fill_(loc)
    guide.scale = torch.tensor([sd])
    from pyro_flows import assess

    return assess(model, guide, *args)


@pytest.fixture(scope="module")
def agreeing():
    torch.set_default_dtype(torch.float64)
    return refit(FlowVI(normal_mean, num_steps=100, progress=False), Y, fits=3)


def test_fits_that_agree(agreeing):
    assert len(agreeing) == 3
    table = agreeing.summary()
    assert table["seed"].tolist() == [0, 1, 2]
    assert (table["elbo_diff"] <= 0).all()
    assert table["elbo_diff"].max() == 0
    assert (table["shift"] < 0.1).all()
    assert agreeing.agree
    assert agreeing.convergence().rhat_max < 1.02
    text = repr(agreeing)
    assert text.startswith("The fits agree.")
    assert "Agreement proves nothing" in text


def test_starts_are_far_apart(agreeing):
    first = agreeing.posteriors[0]
    mean, sd = float(first.pool.z.mean()), float(first.pool.z.std())
    starts = [float(module._away(first, seed)["mean"]) for seed in range(200)]
    assert np.std(starts) / sd == pytest.approx(5, rel=0.2)
    assert np.mean(starts) == pytest.approx(mean, abs=2 * sd)


def test_for_arviz(agreeing):
    found = agreeing.to_arviz(200)
    posterior = group(found, "posterior")
    assert posterior["mean"].shape == (3, 200)
    for chain, fit in enumerate(agreeing.posteriors):
        np.testing.assert_array_equal(
            posterior["mean"].values[chain], fit.draws(200)["mean"].numpy()
        )
        stats = group(found, "sample_stats")
        pool, _, index = fit._delivered(200)
        np.testing.assert_array_equal(stats["log_q"].values[chain], pool.log_q[index])
        assert f"training_{chain}" in group_names(found)
    assert group(found, "log_likelihood")["y"].shape == (3, 200, 4)
    assert "proves nothing" in attributes(found)["remark"]


def test_fits_on_different_modes_disagree():
    fits = Refits([pinned(two_modes, 8.0, 0.1), pinned(two_modes, -8.0, 0.1)])
    assert not fits.agree
    assert fits.convergence().rhat_max > 1.5
    table = fits.summary()
    assert table["shift"].min() > 0.9
    assert table["where"].tolist() == ["x", "x"]
    assert repr(fits).startswith("The fits disagree: at least one is wrong.")


def test_a_worse_elbo_is_disagreement():
    fits = Refits([pinned(normal_mean, 2.0, 0.5, Y), pinned(normal_mean, 2.05, 0.35, Y)])
    assert fits.summary()["elbo_diff"].min() < -0.05
    assert not fits.agree


def test_what_is_refused(agreeing):
    with pytest.raises(GuideError, match="expected two fits or more, but got 1"):
        Refits(agreeing.posteriors[:1])
    with pytest.raises(GuideError, match="expected fits >= 2, but got 1"):
        refit(FlowVI(normal_mean), Y, fits=1)
    with pytest.raises(GuideError, match="makes its guides anew"):
        refit(FlowVI(normal_mean, AutoFlow(normal_mean)), Y)
    with pytest.raises(GuideError, match="fits of one model"):
        Refits([agreeing.posteriors[0], pinned(two_modes, 8.0, 0.1)])
