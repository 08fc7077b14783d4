# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Pictures of a fit."""

import numpy as np
import pytest

from pyro_flows.density import FlowDensity
from pyro_flows.density.plots import _limits, _smooth
from pyro_flows.errors import DataError, DensityError

QUICK = {"flow": "realnvp", "num_steps": 10, "progress": False}


def rows(d=3):
    return np.random.default_rng(0).gamma(2.0, size=(100, d))


def test_columns_and_pairs():
    figure = FlowDensity(**QUICK).fit(rows()).plot()
    assert len(figure.axes) == 6, "three columns, three pairs"
    assert [ax.get_xlabel() for ax in figure.axes[-3:]] == ["x0", "x1", "x2"]
    figure.canvas.draw()


def test_one_column():
    figure = FlowDensity(**QUICK).fit(rows(1)).plot()
    assert len(figure.axes) == 1


def test_the_first_five_of_many_or_those_asked_for():
    density = FlowDensity(**QUICK).fit(rows(7))
    assert len(density.plot().axes) == 15
    assert [ax.get_xlabel() for ax in density.plot(columns=[6, -7]).axes[1:]] == ["x6", "x0"]
    with pytest.raises(DensityError, match="columns of x, which are .*but got 'age'"):
        density.plot(columns=["age"])
    assert len(density.plot(columns=np.int64(2)).axes) == 1


def test_a_name_that_two_columns_have():
    pd = pytest.importorskip("pandas")
    density = FlowDensity(**QUICK).fit(pd.DataFrame(rows(), columns=["a", "b", "a"]))
    with pytest.raises(DensityError, match="each by a name of its own, but got 'a'"):
        density.plot(columns=["a", "b"])
    assert len(density.plot(columns=[0, "b", 2]).axes) == 6


def test_no_rows():
    x = rows()
    density = FlowDensity(**QUICK).fit(x[:, :2], x[:, 2:])
    with pytest.raises(DataError, match="plot expected rows, but got none. Leave x out"):
        density.plot(x[:0, :2], x[:0, 2:])


def test_given_rows_and_context():
    x = rows()
    density = FlowDensity(**QUICK).fit(x[:, :2], x[:, 2:])
    assert len(density.plot().axes) == 3
    figure = density.plot(x[:30, :2], x[:30, 2:])
    (legend,) = figure.legends
    assert "30 rows" in legend.get_texts()[0].get_text()


def test_axes_end_at_the_support_and_leave_outliers_out():
    data = np.append(np.linspace(0.01, 1, 1000), 1e6)
    low, high = _limits(data, data, np.array([0.0, np.inf]))
    assert low == 0.0
    assert high < 2


def test_smoothing_keeps_mass():
    counts = np.random.default_rng(0).poisson(1.0, size=(12, 9)).astype(float)
    smooth = _smooth(counts)
    assert smooth.shape == counts.shape
    assert smooth.sum() == pytest.approx(counts.sum())
