# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Columns: bounds and standardisation as one exact layer."""

import math

import numpy as np
import pytest
import torch
from torch.distributions import biject_to, constraints

from pyro_flows.density.columns import Columns
from pyro_flows.density.support import REAL, read_support
from pyro_flows.errors import DensityError

INF = math.inf
LOW = torch.tensor([-INF, 0.0, -INF, -1.0])
HIGH = torch.tensor([INF, INF, 2.0, 3.0])


def make(dtype=torch.float64):
    loc, scale = torch.tensor([0.5, -1.0, 2.0, 0.1]), torch.tensor([2.0, 0.5, 1.5, 0.7])
    return Columns(LOW, HIGH, loc, scale).to(dtype)


@pytest.mark.parametrize("shape", [(), (3,), (3, 4)])
def test_round_trip_and_determinant(shape):
    layer, z = make(), torch.randn(*shape, 4)
    x, ladj = layer.forward_and_ladj(z)
    back, ladj_back = layer.inverse_and_ladj(x)
    torch.testing.assert_close(back, z)
    torch.testing.assert_close(ladj, -ladj_back)
    assert ladj.shape == shape
    point = z.reshape(-1, 4)[0]
    jacobian = torch.autograd.functional.jacobian(lambda v: layer.forward_and_ladj(v)[0], point)
    torch.testing.assert_close(ladj.reshape(-1)[0], jacobian.slogdet()[1])


def test_it_is_what_torch_makes_of_the_constraints():
    layer = make()
    z = torch.randn(5, 4)
    u = layer.loc + layer.scale * z
    x = layer.forward_and_ladj(z)[0]
    torch.testing.assert_close(x[:, 1], biject_to(constraints.positive)(u[:, 1]))
    torch.testing.assert_close(x[:, 2], biject_to(constraints.less_than(2.0))(u[:, 2]))
    torch.testing.assert_close(x[:, 3], biject_to(constraints.interval(-1.0, 3.0))(u[:, 3]))


@pytest.mark.parametrize("kinds", [[0], [1], [2], [3], [0, 0, 1, 1, 3], [0, 1, 2, 3, 0]])
def test_torch_has_a_bijection_onto_the_codomain(kinds):
    low, high = LOW[kinds], HIGH[kinds]
    layer = Columns(low, high, torch.zeros_like(low), torch.ones_like(low)).double()
    u = torch.randn(2, 5, len(kinds), dtype=torch.float64)
    x = biject_to(layer.codomain)(u)
    torch.testing.assert_close(x, layer.forward_and_ladj(u)[0])
    torch.testing.assert_close(biject_to(layer.codomain).inv(x), u)
    assert layer.codomain.check(x).all()
    assert layer.codomain.check(x).shape == (2, 5)
    outside = torch.where(low.isfinite(), low - 1, torch.where(high.isfinite(), high + 1, low))
    assert layer.codomain.check(outside.nan_to_num(neginf=0.0)) == (kinds == [0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e3])
def test_draws_stay_inside_however_extreme(size, dtype):
    layer = make(dtype)
    z = torch.tensor([-size, size], dtype=dtype).unsqueeze(-1).expand(2, 4).clone()
    z[:, 0] = 0
    z.requires_grad_()
    x, ladj = layer.forward_and_ladj(z)
    assert torch.isfinite(x).all()
    assert torch.isfinite(ladj).all()
    assert layer.inside(x).all()
    ladj.sum().backward()
    assert torch.isfinite(z.grad).all()


def test_outside_there_is_no_density_and_nan_stays():
    layer = make()
    inside = torch.tensor([0.0, 1.0, 1.0, 1.0])
    for column, value in [(1, 0.0), (1, -3.0), (2, 2.0), (2, 9.0), (3, -1.0), (3, 4.0), (0, INF)]:
        x = inside.clone()
        x[column] = value
        z, ladj = layer.inverse_and_ladj(x)
        assert ladj == -INF
        assert torch.isfinite(z).all()
    x = inside.clone()
    x[1] = math.nan
    assert layer.inverse_and_ladj(x)[1].isnan()


def test_gradients_are_finite_next_to_rows_outside():
    layer = make()
    x = torch.tensor([[0.0, 1.0, 1.0, 1.0], [0.0, -1.0, 5.0, 9.0]], requires_grad=True)
    z, ladj = layer.inverse_and_ladj(x)
    (z.sum() + ladj[0]).backward()
    assert torch.isfinite(x.grad).all()


def test_standardised_data_have_mean_0_and_sd_1():
    x = make().forward_and_ladj(torch.randn(500, 4))[0]
    z = Columns.of(x, LOW, HIGH).inverse_and_ladj(x)[0]
    torch.testing.assert_close(z.mean(0), torch.zeros(4))
    torch.testing.assert_close(z.std(0, correction=0), torch.ones(4))


def test_large_offsets_lose_nothing():
    x = 1e9 + torch.randn(500, 4)
    z = Columns.of(x, torch.full((4,), -INF), torch.full((4,), INF)).inverse_and_ladj(x)[0]
    torch.testing.assert_close(z, (x - x.mean(0)) / x.std(0, correction=0))


@pytest.mark.parametrize(
    ("support", "expected"),
    [
        (None, [REAL, REAL]),
        ("positive", [(0, INF)] * 2),
        ("negative", [(-INF, 0)] * 2),
        ((0, 1), [(0, 1)] * 2),
        ([0, None], [(0, INF)] * 2),
        ((None, 3.5), [(-INF, 3.5)] * 2),
        ([None, "unit"], [REAL, (0, 1)]),
        (["real", (2, None)], [REAL, (2, INF)]),
        ({1: "positive"}, [REAL, (0, INF)]),
        ({-2: "positive"}, [(0, INF), REAL]),
        ({"b": "positive"}, [REAL, (0, INF)]),
        ({np.int64(0): "positive"}, [(0, INF), REAL]),
        (constraints.positive, [(0, INF)] * 2),
        (constraints.greater_than(torch.tensor(1.0)), [(1, INF)] * 2),
        ([constraints.real, constraints.interval(-1.0, 4.0)], [REAL, (-1, 4)]),
        ([constraints.nonnegative, constraints.less_than(2.0)], [(0, INF), (-INF, 2)]),
        ([constraints.unit_interval, constraints.greater_than_eq(1.0)], [(0, 1), (1, INF)]),
    ],
)
def test_reading_supports(support, expected):
    assert read_support(support, 2, ["a", "b"]) == expected


@pytest.mark.parametrize(
    ("support", "text"),
    [
        ("posititve", "but got 'posititve'"),
        ((1, 0), r"low < high and None for no bound"),
        ([None, None, None], "one entry for each of 2 columns, but got 3"),
        ({7: "positive"}, "column 7, but x has the columns named"),
        ({"c": "positive"}, "column 'c'"),
        ({0: "positive", -2: "real"}, "speaks of column 0 twice, as 0 and as -2. Keep one of the"),
        ({"b": "positive", 1: "real"}, "speaks of column 1 twice, as 'b' and as 1"),
        (
            constraints.interval(torch.tensor([0.0, 0.0]), torch.tensor([9.0, 9.0])),
            "to have single numbers as bounds.* one entry for each column",
        ),
        (constraints.interval(3.0, 1.0), "low < high"),
        (constraints.simplex, "on one number"),
        ([None, constraints.boolean], "on one number"),
        (3.0, "but got 3.0"),
    ],
)
def test_supports_that_cannot_be_read(support, text):
    with pytest.raises(DensityError, match=text):
        read_support(support, 2, ["a", "b"])


def test_a_name_that_two_columns_have():
    with pytest.raises(DensityError, match="speaks of column 'a', but x has 2 columns of that n"):
        read_support({"a": "positive"}, 3, ["a", "b", "a"])
    by_index = read_support({0: "positive", 2: "unit", "b": (1, 2)}, 3, ["a", "b", "a"])
    assert by_index == [(0, INF), (1, 2), (0, 1)]
