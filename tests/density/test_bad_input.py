# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What FlowDensity refuses, and what it says."""

import warnings

import numpy as np
import pytest
import torch

from pyro_flows import transforms
from pyro_flows.density import FlowDensity
from pyro_flows.distributions import Flow
from pyro_flows.errors import (
    ContextError,
    DataError,
    DensityError,
    NotFittedError,
    OptionError,
    ShapeError,
    UnknownFlowError,
)

QUICK = {"flow": "realnvp", "num_steps": 5, "progress": False}


def rows(n=60, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def put(x, index, value):
    x = x.copy()
    x[index] = value
    return x


@pytest.mark.parametrize(
    ("x", "error", "text"),
    [
        (
            put(rows(), ([4, 9], [0, 1]), np.nan),
            DataError,
            "x has NaN.* in 2 of 60 rows, the first is row 4",
        ),
        (put(rows(), (7, 2), np.inf), DataError, "1 of 60 rows, the first is row 7"),
        (put(rows(), (slice(None), 1), 3.0), DataError, "x has constant columns: 1. Drop them"),
        (rows()[:5], DataError, "at least 10 rows, but got 5"),
        (
            rows()[:, 0],
            ShapeError,
            r"\(rows, columns\), but got \(60,\).*reshape\(-1, 1\)",
        ),
        (np.zeros((3, 4, 5)), ShapeError, r"but got \(3, 4, 5\)"),
        ([["a", "b"]] * 20, DataError, "table of numbers, but got list"),
        ([[1.0, 2.0], [3.0]] * 20, DataError, "table of numbers"),
        (rows()[:, :0], ShapeError, r"x with at least one column, but got shape \(60, 0\)"),
        (rows() + 1j, DataError, "x to be real numbers, but got complex ones. Give real and"),
    ],
)
def test_rows(x, error, text):
    with pytest.raises(error, match=text):
        FlowDensity(**QUICK).fit(x)
    if isinstance(x, np.ndarray) and x.ndim < 3:
        with pytest.raises(error, match=text):
            FlowDensity(**QUICK).fit(torch.as_tensor(x))


def test_masked_values_are_missing():
    for x in (rows(), (10 * rows()).astype(int)):
        masked = np.ma.masked_array(x, mask=put(np.zeros((60, 3), dtype=bool), (4, 1), True))
        with pytest.raises(DataError, match="x has NaN or infinite values in 1 of 60 rows, the f"):
            FlowDensity(**QUICK).fit(masked)
    with pytest.raises(DataError, match="x to be real numbers, but got complex ones"):
        FlowDensity(**QUICK).fit(np.ma.masked_array(rows() + 1j))


def test_sparse_tensors():
    with pytest.raises(DataError, match=r"x to be a dense tensor, .*sparse_coo. Pass x.to_dense"):
        FlowDensity(**QUICK).fit(torch.as_tensor(rows()).to_sparse())


def test_constant_columns_are_named():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(put(rows(), (slice(None), 1), 3.0), columns=["a", "b", "c"])
    with pytest.raises(DataError, match="constant columns: 'b'"):
        FlowDensity(**QUICK).fit(frame)


def test_columns_of_few_values_are_warned_of():
    x = put(rows(200), (slice(None), 1), np.arange(200) % 4)
    with pytest.warns(UserWarning, match="few distinct values: 1. A flow can make"):
        FlowDensity(**QUICK).fit(x)


def test_values_that_many_rows_share_are_warned_of():
    x = rows(1000)
    x[:, 1] = np.maximum(x[:, 1] - 1, 0)
    with pytest.warns(UserWarning, match="where many rows share a value: 1. A flow can make"):
        FlowDensity(**QUICK).fit(x)


@pytest.mark.parametrize("name", ["nsf", "realnvp"])
def test_columns_that_depend_on_others_are_warned_of(name):
    x = rows(100)
    for column in (1e6 * x[:, :1], 5 + x.sum(1, keepdims=True)):
        density = FlowDensity(name, num_steps=2, progress=False)
        with pytest.warns(UserWarning, match="sums of multiples of those before them: 3. The ro"):
            density.fit(np.concatenate([x, column], 1))
        assert np.isfinite(density.sample(5)).all()


def test_copies_of_rows_are_warned_of():
    x, context = rows(100), rows(200, 1)
    twice = np.concatenate([x, x])
    with pytest.warns(UserWarning, match="100 of 200 rows repeat others"):
        FlowDensity(**QUICK).fit(twice)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FlowDensity(**QUICK).fit(twice, validation=rows(50, seed=1))
        FlowDensity(**QUICK).fit(twice, context)
        FlowDensity(**QUICK).fit(np.concatenate([x, x + [0.0, 1e-9, 0.0]]) * [1e9, 1, 1e-9])


def test_usual_columns_are_not_warned_of():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FlowDensity(**QUICK).fit(rows(1000).round(1))
        FlowDensity(**QUICK).fit(rows(1000) * 1e-6 + rows(1000, 1, seed=1))


@pytest.mark.parametrize("value", [0.0, -0.5])
def test_values_outside_the_support(value):
    x = put(np.abs(rows()), (12, 1), value)
    with pytest.raises(DataError, match=r"x has 1 rows outside the support: row \d+, column 1 is"):
        FlowDensity(**QUICK, support="positive").fit(x)
    with pytest.raises(DataError, match="validation x has 1 rows outside the support: row 12"):
        FlowDensity(**QUICK, support="positive").fit(np.abs(rows()), validation=x)


class TestContext:
    @pytest.mark.parametrize(
        ("context", "error", "text"),
        [
            (rows(59, 2), ContextError, "one row of context for each of 60 rows of x, but got 59"),
            (put(rows(60, 2), (3, 0), np.nan), DataError, "context has NaN.*row 3"),
            (put(rows(60, 2), (slice(None), 1), 1), DataError, "context has constant columns: 1"),
            (rows(60, 2)[:, 0], ShapeError, "context of shape"),
        ],
    )
    def test_in_fit(self, context, error, text):
        with pytest.raises(error, match=text):
            FlowDensity(**QUICK).fit(rows(), context)

    def test_after_fit(self):
        density = FlowDensity(**QUICK).fit(rows(), rows(60, 2, seed=1))
        wide = rows(60, 3)
        with pytest.raises(ContextError, match="context with 2 columns, as in fit, but got 3"):
            density.score_samples(rows(), wide)
        with pytest.raises(ContextError, match="context with 2 columns, as in fit, but got 3"):
            density.sample(2, wide)
        for call in (lambda: density.score(rows()), lambda: density.sample(2)):
            with pytest.raises(ContextError, match="Expected 2 columns of it.*but got none"):
                call()
        with pytest.raises(DataError, match="context has NaN"):
            density.sample(2, [np.nan, 1.0])

    def test_one_row_for_all(self):
        density = FlowDensity(**QUICK).fit(rows(), rows(60, 2, seed=1))
        expected = density.score_samples(rows(), [[1.0, 2.0]])
        for one in ([1.0, 2.0], np.array([1.0, 2.0]), torch.tensor([1.0, 2.0])):
            assert (density.score_samples(rows(), one) == expected).all()
        with pytest.raises(ContextError, match="context with 2 columns, as in fit, but got 3"):
            density.score_samples(rows(), [1.0, 2.0, 3.0])
        density = FlowDensity(**QUICK).fit(rows(), rows(60, 1, seed=1))
        with pytest.raises(ShapeError, match=r"\(60,\). A single column is reshape\(-1, 1\)"):
            density.score_samples(rows(), rows()[:, 0])
        assert density.sample(2, [1.0]).shape == (2, 3)

    def test_what_no_context_is(self):
        density = FlowDensity(**QUICK).fit(rows(), rows(60, 2, seed=1))
        for context in ([1.0, "a"], [1.0, 1j], [[1.0, 2.0], [3.0]]):
            with pytest.raises(DataError, match="Expected context to be"):
                density.sample(2, context)
        with pytest.raises(DataError, match="context has NaN"):
            density.sample(2, np.ma.masked_array([1.0, 2.0], mask=[False, True]))

    def test_where_there_was_none(self):
        density = FlowDensity(**QUICK).fit(rows())
        for call in (
            lambda: density.score(rows(), rows(60, 2)),
            lambda: density.sample(2, rows(1, 2)),
            lambda: density.distribution([1.0]),
            lambda: density.sample(2, ["a"]),
        ):
            with pytest.raises(ContextError, match="Expected no context, as in fit"):
                call()

    def test_validation(self):
        with pytest.raises(ContextError, match=r"validation=x_val, since fit was called without"):
            FlowDensity(**QUICK).fit(rows(), validation=(rows(), rows(60, 2)))
        with pytest.raises(ContextError, match=r"\(x_val, context_val\), since fit was called w"):
            FlowDensity(**QUICK).fit(rows(), rows(60, 2), validation=rows())
        with pytest.raises(ShapeError, match="validation x with 3 columns, as in fit, but got 2"):
            FlowDensity(**QUICK).fit(rows(), validation=rows(60, 2))
        with pytest.raises(DataError, match="validation x has NaN"):
            FlowDensity(**QUICK).fit(rows(), validation=put(rows(), (0, 0), np.nan))


class TestNames:
    @staticmethod
    def frames():
        pd = pytest.importorskip("pandas")
        x = pd.DataFrame(rows(), columns=["a", "b", "c"])
        return x, pd.DataFrame(rows(60, 2, seed=1), columns=["u", "v"])

    def test_a_context_in_another_order(self, tmp_path):
        x, context = self.frames()
        density = FlowDensity(**QUICK).fit(x, context)
        other = context[["v", "u"]]
        for d in (density, FlowDensity.load(density.save(tmp_path / "fit"))):
            text = r"context with the columns \['u', 'v'\], as in fit, but got \['v', 'u'\]"
            with pytest.raises(ContextError, match=text):
                d.score(x, other)
            with pytest.raises(ContextError, match=text):
                d.sample(2, other)
            assert d.score(x, context) == d.score(x, context.to_numpy())

    def test_a_row_of_a_data_frame(self):
        pd = pytest.importorskip("pandas")
        x, context = self.frames()
        density = FlowDensity(**QUICK).fit(x, context)
        one = context.iloc[3]
        assert (density.sample(2, one) == density.sample(2, one.to_numpy())).all()
        assert (density.score_samples(x, one) == density.score_samples(x, list(one))).all()
        assert density.distribution(one).batch_shape == ()
        assert density.sample(2, pd.Series([1.0, 2.0])).shape == (2, 3)
        for call in (density.sample, lambda n, c: density.score(x, c)):
            with pytest.raises(ContextError, match=r"\['u', 'v'\], as in fit, but got \['v', 'u'"):
                call(2, one[["v", "u"]])

    def test_a_validation_set_in_another_order(self):
        x, context = self.frames()
        with pytest.raises(ShapeError, match="validation x with the columns"):
            FlowDensity(**QUICK).fit(x, validation=x[["b", "a", "c"]])
        with pytest.raises(ContextError, match="validation context with the columns"):
            FlowDensity(**QUICK).fit(x, context, validation=(x, context[["v", "u"]]))

    def test_those_of_an_older_fit_are_forgotten(self):
        density = FlowDensity(**QUICK).fit(self.frames()[0]).fit(rows())
        assert not hasattr(density, "feature_names_in_")


def test_a_rare_category_of_the_context_may_be_held_out():
    context = np.stack([rows(30, 1)[:, 0], np.arange(30) == 6], 1)
    for seed in range(12):  # in some of them it is
        density = FlowDensity(**QUICK, seed=seed).fit(rows(30), context)
        assert np.isfinite(density.score_samples(rows(30), context)).all()


def test_other_columns_than_in_fit():
    density = FlowDensity(**QUICK).fit(rows())
    with pytest.raises(ShapeError, match="x with 3 columns, as in fit, but got 2"):
        density.score_samples(rows(60, 2))
    with pytest.raises(DataError, match="x has NaN"):
        density.score_samples(put(rows(), (0, 0), np.nan))


@pytest.mark.parametrize(
    "call",
    [
        lambda d: d.score_samples(rows()),
        lambda d: d.score(rows()),
        lambda d: d.sample(3),
        lambda d: d.plot(),
        lambda d: d.distribution(),
        lambda d: d.save("never"),
    ],
)
def test_before_fit(call):
    with pytest.raises(NotFittedError, match=r"isn't fitted.*Call fit\(x\) first"):
        call(FlowDensity())


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"flow": "nsv"}, UnknownFlowError, "Did you mean 'nsf'"),
        ({"flow": 3}, DensityError, "registered name, a function of dim, or a Flow, but got int"),
        (
            {"flow": Flow([transforms.AffineCoupling(2)])},
            ShapeError,
            "dim=3, context_dim=0, but got dim=2",
        ),
        (
            {"flow": lambda dim: None},
            DensityError,
            "to make a Flow or a list of layers, but got NoneType. Return what it builds",
        ),
        (
            {"flow": torch.nn.Linear(3, 3)},
            DensityError,
            r"which has log_prob\(x, context\), but got Linear",
        ),
        ({"batch_size": 0}, DensityError, "batch_size to be an integer >= 1, but got 0"),
        ({"num_steps": 2.5}, DensityError, "num_steps to be an integer >= 1, but got 2.5"),
        ({"max_epochs": None}, DensityError, "max_epochs to be an integer >= 1, but got None"),
        ({"patience": 0}, DensityError, "patience to be an integer >= 1, but got 0"),
        ({"learning_rate": 0.0}, DensityError, "learning_rate > 0, but got 0.0"),
        ({"max_seconds": -1}, DensityError, "max_seconds > 0, but got -1"),
        ({"dropout": 1.0}, DensityError, "dropout of at least 0 and less than 1, but got 1.0"),
        ({"weight_decay": -0.1}, DensityError, "weight_decay to be a number >= 0, but got -0.1"),
        ({"weight_decay": "0.1"}, DensityError, "weight_decay to be a number >= 0, but got '0.1'"),
        ({"weight_decay": np.nan}, DensityError, "weight_decay to be a number >= 0, but got nan"),
        ({"weight_decay": None}, DensityError, r"but got None\. 0 is none\."),
        ({"compile": "yes"}, DensityError, 'compile to be "auto", True or False, but got .yes'),
        ({"device": "cudaa"}, DensityError, r"device to be one .* got 'cudaa' \(.*\)\. Leave it"),
        ({"device": "cuda:99"}, DensityError, r"but got 'cuda:99' \(.*\)\. Leave it out to train"),
        ({"device": "meta"}, DensityError, "'meta' .tensors there hold no numbers"),
        ({"device": 0.5}, DensityError, "but got 0.5 "),
        ({"device": "hpu"}, DensityError, r"but got 'hpu' \(.*\)\. Leave it out"),
        (
            {"flow_options": {"layer": 2, "xyzzy": 1}},
            DensityError,
            r"^FlowDensity expected flow_options among those that 'realnvp' takes \(layers, "
            r"hidden_dims, .*\), but got 'layer', 'xyzzy'\. Did you mean 'layers'\?$",
        ),
        (
            {"flow_options": {"xyzzy": 1}},
            DensityError,
            r"but got 'xyzzy'\. Leave out what it doesn't take\.$",
        ),
        ({"flow_options": {"dim": 3}}, DensityError, "but got 'dim'"),
        ({"flow_options": {"hidden_dims": 64}}, ShapeError, "a sequence of integers >= 1, but g"),
        ({"flow_options": {"layers": "a"}}, OptionError, "layers to be an integer >= 1, but got"),
        ({"flow_options": [("layers", 2)]}, DensityError, "flow_options to be a dict"),
        (
            {"flow": Flow([transforms.AffineCoupling(3)]), "flow_options": {"layers": 2}},
            DensityError,
            r"no flow_options beside a Flow that is already built, but got 'layers'\. Build it",
        ),
        (
            {"flow": lambda dim: [transforms.AffineCoupling(dim)], "flow_options": {"bins": 2}},
            DensityError,
            r"that the function given takes \(it takes none\), but got 'bins'",
        ),
        ({"components": 0}, DensityError, "components to be integers >= 1, but got 0"),
        ({"components": (5, 2.5)}, DensityError, "components to be integers >= 1"),
        ({"components": 0.5}, DensityError, "components to be integers >= 1, but got 0.5"),
        ({"components": ()}, DensityError, r"components to be integers >= 1, but got \(\)"),
        (
            {"components": (k for k in (1, 2))},
            DensityError,
            "components to be integers >= 1, but got <generator",
        ),
        ({"components": np.array(3)}, DensityError, "components to be integers >= 1"),
        ({"components": True}, DensityError, "components to be integers >= 1, but got True"),
        ({"seed": None}, DensityError, "seed to be an integer of 64 bits, but got None"),
        ({"seed": 1.5}, DensityError, "seed to be an integer of 64 bits, but got 1.5"),
        ({"seed": 2**70}, DensityError, "seed to be an integer of 64 bits"),
        ({"holdout": "0.1"}, DensityError, "holdout between 0 and 1, but got '0.1'"),
        ({"holdout": 1.0}, DensityError, "holdout between 0 and 1, but got 1.0"),
        ({"dtype": torch.float32}, DensityError, "dtype to be 'float32' or 'float64'"),
    ],
)
def test_arguments(options, error, text):
    density = FlowDensity(**{**QUICK, **options})
    with pytest.raises(error, match=text):
        density.fit(rows())


def test_options_of_functions():
    def build(dim, context_dim=0, *, layers=1):
        return [transforms.AffineCoupling(dim, context_dim=context_dim)] * layers

    def any_of_them(dim, **options):
        return [transforms.AffineCoupling(dim)] * options["layers"]

    for flow in (build, any_of_them):
        density = FlowDensity(**{**QUICK, "flow": flow}, flow_options={"layers": 2}).fit(rows())
        assert len(density.flow_.transform.layers) == 2
    density = FlowDensity(**{**QUICK, "flow": build}, flow_options={"context_dim": 2})
    with pytest.raises(DensityError, match=r"takes \(layers\), but got 'context_dim'"):
        density.fit(rows(), rows(60, 2))


def test_a_failed_fit_leaves_the_older_one():
    density = FlowDensity(**QUICK).fit(rows())
    before = density.score(rows())
    with pytest.raises(DataError):
        density.fit(np.full((60, 2), np.nan))
    assert density.score(rows()) == before
    density.set_params(flow=Flow([transforms.AffineCoupling(2)]))
    with pytest.raises(ShapeError):
        density.fit(rows(seed=1))
    assert density.score(rows()) == before


@pytest.mark.parametrize("size", [1e200, 1e-318], ids=["huge", "tiny"])
def test_columns_that_64_bits_cannot_standardise(size):
    with pytest.raises(DataError, match="too large or too close together .*: 1. Rescale"):
        FlowDensity(**QUICK).fit(rows() * [1.0, size, 1.0])


def test_few_rows_with_a_validation_set():
    with pytest.raises(DataError, match="at least 10 rows, but got 4"):
        FlowDensity(**QUICK).fit(rows(4), validation=rows())
    with pytest.raises(DataError, match="Expected validation rows, but got none"):
        FlowDensity(**QUICK).fit(rows(), validation=rows(0))


@pytest.mark.parametrize("size", [1e40, 1e25])
def test_a_validation_set_out_of_reach(size):
    with pytest.raises(DataError, match="All 60 rows of validation x are so far .* float32 can't"):
        FlowDensity(**QUICK).fit(rows(), validation=rows() * size)
    some = put(rows(), (slice(30), slice(None)), size)
    assert np.isfinite(FlowDensity(**QUICK).fit(rows(), validation=some).best_score_)


@pytest.mark.parametrize("seed", [2**64, "a", 1.5])
def test_seeds_of_draws(seed):
    density = FlowDensity(**QUICK).fit(rows())
    with pytest.raises(DensityError, match="sample expected seed to be an integer of 64 bits, bu"):
        density.sample(3, seed=seed)
    assert density.sample(3, seed=np.int64(3)).shape == (3, 3)


class TestNothing:
    def test_no_rows(self):
        density = FlowDensity(**QUICK).fit(rows())
        assert density.score_samples(rows(0)).shape == (0,)
        assert density.sample(0).shape == (0, 3)
        with pytest.raises(DataError, match="score expected rows, but got none"):
            density.score(rows(0))

    def test_no_contexts(self):
        density = FlowDensity(**QUICK).fit(rows(), rows(60, 2, seed=1))
        assert density.sample(4, rows(0, 2)).shape == (4, 0, 3)

    @pytest.mark.parametrize("n", [-1, 2.5, "3"])
    def test_numbers_of_draws(self, n):
        with pytest.raises(DensityError, match="number of rows as an integer >= 0, but got"):
            FlowDensity(**QUICK).fit(rows()).sample(n)


def test_arguments_of_numpy_are_numbers():
    options = {
        "num_steps": np.int64(3),
        "learning_rate": np.float32(0.01),
        "components": np.array([1, 2]),
        "seed": np.int64(5),
        "support": np.array([[-9, 9]] * 3),
    }
    density = FlowDensity(**{**QUICK, **options}).fit(rows())
    assert density.n_steps_ == 3
    assert density.sample(np.int64(2)).shape == (2, 3)
    assert "support=array" in repr(density)
    by_hand = FlowDensity("realnvp", num_steps=3, learning_rate=float(np.float32(0.01)), seed=5)
    by_hand.set_params(components=(1, 2), support=(-9, 9), progress=False)
    assert by_hand.fit(rows()).score(rows()) == density.score(rows())


def test_widths_may_be_an_array():
    fits = [
        FlowDensity(**QUICK, flow_options={"hidden_dims": widths}).fit(rows())
        for widths in ((8, 4), np.array([8, 4]))
    ]
    assert fits[0].score(rows()) == fits[1].score(rows())


@pytest.mark.parametrize("name", ["nsf", "maf", "realnvp"])
def test_rows_too_far_out_for_the_dtype_have_no_density(name):
    density = FlowDensity(name, num_steps=2, progress=False).fit(rows())
    assert np.isneginf(density.score_samples([[1e300, 0.0, 0.0], [0.0, -1e100, 0.0]])).all()


def test_fitting_needs_gradients_and_switches_them_on():
    expected = FlowDensity(**QUICK).fit(rows()).score(rows())
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            assert FlowDensity(**QUICK).fit(rows()).score(rows()) == expected
