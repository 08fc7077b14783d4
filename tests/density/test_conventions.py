# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""scikit-learn's conventions, with and without scikit-learn."""

import numpy as np
import pytest

from pyro_flows.density import FlowDensity
from pyro_flows.errors import DensityError

QUICK = {"flow": "realnvp", "num_steps": 5, "progress": False}


def rows():
    return np.random.default_rng(0).normal(size=(60, 2))


def test_the_constructor_stores_its_arguments():
    options, support = {"layers": 2}, ["positive", None]
    density = FlowDensity("maf?", support=support, flow_options=options, seed=-1)
    params = density.get_params()
    assert params["support"] is support
    assert params["flow_options"] is options
    assert params["flow"] == "maf?", "it is judged in fit"
    assert set(params) == {name for name in vars(density) if not name.startswith("_")}


def test_set_params():
    density = FlowDensity()
    assert density.set_params(seed=3, max_epochs=7) is density
    assert (density.seed, density.max_epochs) == (3, 7)
    with pytest.raises(DensityError, match="has no parameter 'sead'. It has flow, support, seed"):
        density.set_params(sead=1)


def test_repr_shows_what_was_changed():
    assert repr(FlowDensity()) == "FlowDensity()"
    assert repr(FlowDensity("maf", seed=3)) == "FlowDensity(flow='maf', seed=3)"


def test_fit_returns_self_and_sets_names_with_underscores():
    density = FlowDensity(**QUICK)
    before = set(vars(density))
    assert density.fit(rows()) is density
    new = set(vars(density)) - before
    assert new
    assert all(name.endswith("_") and not name.startswith("_") for name in new)


def test_clone():
    base = pytest.importorskip("sklearn.base")
    density = FlowDensity(**QUICK, support=["positive", (0, 1)], flow_options={"layers": 2})
    copy = base.clone(density.fit(np.random.default_rng(0).uniform(size=(60, 2))))
    assert copy.get_params() == density.get_params()
    assert not hasattr(copy, "flow_")


def test_grid_search_and_pipelines():
    pytest.importorskip("sklearn")
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    search = GridSearchCV(FlowDensity(**QUICK), {"num_steps": [2, 6]}, cv=2).fit(rows())
    assert search.best_params_["num_steps"] in (2, 6)
    assert len(cross_val_score(FlowDensity(**QUICK), rows(), cv=3)) == 3
    pipeline = make_pipeline(StandardScaler(), FlowDensity(**QUICK)).fit(rows())
    assert pipeline.score_samples(rows()).shape == (60,)
