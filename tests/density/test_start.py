# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Where named flows start: on the best mixture of Gaussians, whitened."""

import numpy as np
import pytest
import torch

from pyro_flows import transforms
from pyro_flows.density import FlowDensity
from pyro_flows.density.fitting import Rows
from pyro_flows.density.start import choose, find_start, takes_start
from pyro_flows.distributions import CorrelatedMixture, Flow, StandardNormal
from pyro_flows.flows import make
from pyro_flows.ops import fit_gaussians

QUICK = {"num_steps": 5, "progress": False}


def clusters(n=600, seed=0):
    g = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[-4.0, 0.0], [4.0, 1.0], [0.0, 5.0]])
    labels = torch.randint(3, (n,), generator=g)
    return centres[labels] + 0.4 * torch.randn(n, 2, generator=g)


@pytest.mark.parametrize("name", ["nsf", "realnvp", "maf"])
def test_it_starts_as_the_mixture_that_held_out_rows_choose(name):
    x, held = clusters(), clusters(200, seed=1)
    flow = find_start(make(name, 2), Rows(x), Rows(held), (1, 3, 40), seed=0)
    assert flow.base.components == 3
    expected = fit_gaussians(x, 3).log_prob(held)
    got = flow.log_prob(held)
    torch.testing.assert_close(got, expected, atol=0.05, rtol=0.01)


def test_training_makes_it_no_worse_on_held_out_rows():
    x, held = clusters(), clusters(200, seed=1)
    density = FlowDensity("realnvp", num_steps=100, progress=False).fit(x, validation=held)
    assert density.components_ in (1, 5, 10, 20, 40)
    best = max(fit_gaussians(x, k).log_prob(held).mean() for k in (1, 5, 10, 20, 40))
    assert density.best_score_ >= best - 0.02


def test_too_many_gaussians_for_the_rows_are_left_out():
    x = torch.randn(40, 3)
    flow = find_start(make("realnvp", 3), Rows(x), Rows(x), (1, 9, 11), seed=0)
    assert flow.base.components == 9


def test_with_a_context_it_starts_whitened():
    x = torch.tensor([3.0, -1.0]) + torch.randn(300, 2) @ torch.randn(2, 2)
    rows = Rows(x, torch.randn(300, 4))
    flow = find_start(make("nsf", 2, 4), rows, rows, (1, 5), seed=0)
    assert isinstance(flow.base, StandardNormal)
    z = flow.transform.inverse_and_ladj(x, rows.context)[0]
    torch.testing.assert_close(z.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(torch.cov(z.T, correction=0), torch.eye(2))


def test_who_gets_a_start():
    flow = make("nsf", 3)
    assert takes_start(flow, "nsf")
    assert not takes_start(flow, flow), "what the user built is left as it is"
    other = Flow([transforms.AffineCoupling(3)], CorrelatedMixture(3, 2))
    assert not takes_start(other, "by_name")


def test_components():
    x = clusters()
    assert FlowDensity("realnvp", components=4, **QUICK).fit(x).components_ == 4
    plain = FlowDensity("realnvp", components=None, **QUICK).fit(x)
    assert plain.components_ is None
    assert isinstance(plain.flow_.base, StandardNormal)
    given = FlowDensity("realnvp", **QUICK).fit(x[:, :1], x[:, 1:])
    assert given.components_ == 0


def test_a_started_flow_is_saved_and_loaded(tmp_path):
    x = clusters()
    for density, rows in (
        (FlowDensity("nsf", components=3, **QUICK), (x,)),
        (FlowDensity("nsf", **QUICK), (x[:, :1], x[:, 1:])),
        (FlowDensity("nsf", components=None, **QUICK), (x,)),
    ):
        density.fit(*rows)
        back = FlowDensity.load(density.save(tmp_path / "fit"))
        np.testing.assert_array_equal(back.score_samples(*rows), density.score_samples(*rows))
        assert back.components_ == density.components_


def test_dropout_is_set():
    density = FlowDensity("nsf", dropout=0.3, **QUICK).fit(clusters())
    shares = {m.dropout for m in density.flow_.modules() if hasattr(m, "dropout")}
    assert shares == {0.3}
    assert not density.flow_.training


@pytest.mark.parametrize("name", ["nsf", "maf"])
def test_it_starts_on_fewer_rows_than_columns(name):
    x = np.random.default_rng(0).normal(size=(40, 50))
    density = FlowDensity(name, **QUICK).fit(x)
    assert np.isfinite(density.score_samples(x)).all()
    # Not far below independent normals, though 36 rows don't span 50 columns.
    assert density.best_score_ > -1.419 * 50 - 30


def test_rows_in_order_start_as_those_out_of_order(monkeypatch):
    monkeypatch.setattr("pyro_flows.density.start.MOST_ROWS", 500)
    x = torch.randn(3000, 2, generator=torch.Generator().manual_seed(0))
    x = (x - x.mean(0)) / x.std(0)
    held, context = torch.randn(200, 2), torch.randn(3000, 1)
    in_order = x[x[:, 0].argsort()]
    for rows in (Rows(in_order), Rows(in_order, context)):
        given = None if rows.context is None else context[:200]
        plain = make("realnvp", 2, 0 if given is None else 1)
        flow = find_start(plain, rows, Rows(held, given), (1,), 0)
        assert flow.log_prob(held, given).mean() > -3.0


def test_the_smallest_mixture_that_is_level_with_the_best_is_taken():
    x, held = clusters(), clusters(100, seed=1)
    fits = [(g := fit_gaussians(x, count), g.log_prob(held)) for count in (1, 3, 6, 12)]
    assert len(choose(fits).mean) == 3
    assert choose(fits[3:]) is fits[3][0]
    assert choose([fits[1], (fits[0][0], fits[1][1] + 0.5)]) is fits[0][0]
    one_row = [(gaussians, log_prob[:1]) for gaussians, log_prob in fits]
    assert choose(one_row) is fits[0][0], "of one row nothing is known"
