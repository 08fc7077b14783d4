# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""R-hat and ESS of the worst element, on the installed line of ArviZ; loaded as the seam's are."""

import importlib
import math
import sys
import types
from pathlib import Path

import numpy as np
import pytest

ROOM = Path(__file__).resolve().parents[2] / "pyro_flows" / "diagnostics"
_room = sys.modules.setdefault("_diagnostics_room", types.ModuleType("_diagnostics_room"))
_room.__path__ = [str(ROOM)]
seam = importlib.import_module("_diagnostics_room.arviz_seam")
chains = importlib.import_module("_diagnostics_room.chains")
az = seam.import_arviz()


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def test_equal_to_what_the_summary_of_arviz_says():
    draws = normal(4, 300, 2).cumsum(1) * 0.1 + normal(4, 300, 2, seed=1)
    data = seam.to_container({"posterior": {"x": draws}}, dims={}, coords={}, attrs={})
    table = az.summary(data, round_to="none")
    tails = az.ess(data, method="tail", prob=(0.05, 0.95))  # 1.x has other ones in its summary
    tails = tails.get("posterior", tails)
    for element in range(2):
        rhat, bulk, tail = seam.rhat_and_ess(draws[:, :, element])
        row = table.loc[f"x[{element}]"]
        assert rhat == pytest.approx(float(row["r_hat"]), rel=1e-6)
        assert bulk == pytest.approx(float(row["ess_bulk"]), rel=1e-6)
        assert tail == pytest.approx(float(tails["x"][element]), rel=1e-6)


def test_independent_draws_are_worth_their_number():
    rhat, bulk, tail = seam.rhat_and_ess(normal(4, 1000))
    assert rhat < 1.005
    assert bulk == pytest.approx(4000, rel=0.1)
    assert tail == pytest.approx(4000, rel=0.15)


def test_a_chain_elsewhere_shows():
    draws = normal(4, 500)
    draws[2] += 2.0
    rhat, bulk, _ = seam.rhat_and_ess(draws)
    assert rhat > 1.1
    assert bulk < 60


def test_a_single_chain_is_split():
    still, drifting = normal(1, 1000), normal(1, 1000) + np.linspace(0, 4, 1000)
    assert seam.rhat_and_ess(still)[0] < 1.01
    assert seam.rhat_and_ess(drifting)[0] > 1.3


def test_chains_that_stand_still_apart_are_the_worst():
    rhat, bulk, _ = seam.rhat_and_ess(np.arange(4.0)[:, None].repeat(100, 1))
    assert not rhat < 1e3  # huge, inf or NaN, as the line has it
    assert not bulk > 10
    found = chains.convergence({"x": np.arange(4.0)[:, None].repeat(100, 1)})
    assert found.rhat_max > 1e3
    assert not found.agree


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_draw_that_is_not_finite_is_never_hidden(bad):
    draws = normal(4, 100)
    draws[1, 7] = bad
    assert all(math.isnan(value) for value in seam.rhat_and_ess(draws))
    found = chains.convergence({"good": normal(4, 100), "bad": draws})
    assert (found.rhat_max, found.rhat_where) == (math.inf, "bad")
    assert (found.ess_bulk_min, found.ess_tail_min) == (0.0, 0.0)


def test_the_worst_element_is_named():
    values = {"a": normal(4, 200), "b": normal(4, 200, 2, 3, seed=1), "c": np.ones((4, 200, 2))}
    values["b"][0, :, 1, 2] += 3
    found = chains.convergence(values)
    assert (found.rhat_where, found.ess_bulk_where) == ("b[1,2]", "b[1,2]")
    assert (found.chains, found.agree, found.enough) == (4, False, False)
    values["b"][0, :, 1, 2] -= 3
    found = chains.convergence(values)
    assert found.agree
    assert found.enough


def test_constants_say_nothing():
    found = chains.convergence({"c": np.ones((2, 50, 2))})
    assert (found.rhat_max, found.ess_bulk_min, found.ess_tail_min) == (1.0, 100.0, 100.0)
    assert all(math.isnan(value) for value in seam.rhat_and_ess(np.ones((2, 50))))


@pytest.mark.parametrize("shape", [(4, 3), (100,), (4, 100, 2)])
def test_shapes_it_can_not_use_are_refused(shape):
    with pytest.raises(ValueError, match=r"Expected draws of shape \(chains, draws\), 4 draws"):
        seam.rhat_and_ess(normal(*shape))
