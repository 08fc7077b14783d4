# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""A fit of eight schools, exported and saved on either line of ArviZ, is used on the other.

``data/schools_arviz0.nc`` is ``FlowVI(schools, seed=0, num_steps=300).run(sigma, y=y)`` and
``to_arviz(100, prior=50, predictions={"sigma": sigma}, coords={"school": [...]})``, on ArviZ
0.23.4; ``schools_arviz1.nc`` holds the same groups, put together and saved on ArviZ 1.3.0.
"""

import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from test_arviz_seam import az, seam

matplotlib.use("Agg")
FILES = sorted((Path(__file__).parent / "data").glob("schools_arviz*.nc"))
GROUPS = {
    *("posterior", "unconstrained_posterior", "sample_stats", "log_likelihood", "log_prior"),
    *("posterior_predictive", "predictions", "prior", "prior_predictive", "observed_data"),
    *("constant_data", "predictions_constant_data", "training"),
}
BOTH = {
    "plot_pair": {"var_names": ["mu", "tau"]},
    "plot_forest": {"var_names": ["theta"]},
    "plot_ess": {"var_names": ["mu"]},
    "plot_loo_pit": {"y": "y"},
}
PLOTS = {
    0: {
        **BOTH,
        "plot_posterior": {"var_names": ["mu"]},
        "plot_trace": {"var_names": ["mu", "tau"]},
        "plot_density": {"var_names": ["mu"]},
        "plot_ppc": {},
        "plot_bpv": {},
        "plot_rank": {"var_names": ["mu"]},  # of one chain; 1.x wants two or more
        "plot_dist_comparison": {"var_names": ["mu"]},
    },
    1: {
        **BOTH,
        "plot_dist": {"var_names": ["mu"]},
        "plot_trace_dist": {"var_names": ["mu", "tau"]},
        "plot_ppc_dist": {},
        "plot_ppc_pit": {},
        "plot_prior_posterior": {"var_names": ["mu"]},
        "plot_psense_dist": {"var_names": ["mu"]},
        "plot_loo_pit": {},
        "plot_parallel": {"var_names": ["mu", "tau"]},
    },
}[seam.arviz_major()]


@pytest.fixture(params=FILES, ids=lambda path: path.stem, scope="module")
def fit(request):
    return seam.load_netcdf(request.param)


@pytest.fixture(autouse=True)
def without_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ's own, of single chains and of what it rests on
        yield


def test_there_is_one_of_each_line():
    assert [path.name for path in FILES] == ["schools_arviz0.nc", "schools_arviz1.nc"]


def test_nothing_is_lost(fit):
    for group in GROUPS:
        assert len(seam.group_dataset(fit, group).data_vars), group
    posterior = seam.group_dataset(fit, "posterior")
    assert posterior["theta"].dims == ("chain", "draw", "school")
    assert posterior["school"].values.tolist() == list("ABCDEFGH")
    attrs = fit.attrs or posterior.attrs
    assert attrs["inference_library"] == "pyro_flows"
    assert attrs["verdict"] in ("reliable", "corrected", "not reliable")


def test_both_files_hold_the_same():
    one, other = (seam.load_netcdf(path) for path in FILES)
    for group in GROUPS:
        a, b = (seam.group_dataset(data, group) for data in (one, other))
        for name in a.data_vars:
            np.testing.assert_array_equal(a[name].values, b[name].values)
            assert a[name].dims == b[name].dims


def test_summary_loo_and_compare(fit):
    table = az.summary(fit, var_names=["mu", "tau", "theta"], round_to="none")
    expected = float(seam.group_dataset(fit, "posterior")["mu"].mean())
    assert float(table["mean"].astype(float).loc["mu"]) == pytest.approx(expected)
    loo = az.loo(fit, pointwise=True)
    elpd = loo.elpd if seam.arviz_major() else loo.elpd_loo
    assert -35 < elpd < -28  # eight schools: about -31
    assert list(az.compare({"one": fit, "again": fit}).index) == ["one", "again"]
    az.plot_khat(loo)
    az.plot_compare(az.compare({"one": fit, "again": fit}))


@pytest.mark.parametrize("name", PLOTS)
def test_plots(fit, name):
    drawn = getattr(az, name)(fit, **PLOTS[name])
    assert drawn is not None
    from matplotlib import pyplot as plt

    assert plt.get_fignums() or seam.arviz_major()
    plt.close("all")


@pytest.mark.skipif(seam.arviz_major() == 0, reason="ArviZ 0.x has no power-scaling")
def test_prior_sensitivity(fit):
    assert "mu" in az.psense_summary(fit, var_names=["mu", "tau"]).index
