# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Data become arguments by name; whatever doesn't fit is said in a sentence."""

import json

import numpy as np
import pytest
import torch

from pyro_flows.cli.arguments import Choices, arguments_of
from pyro_flows.cli.models import Model
from pyro_flows.cli.values import as_tensors
from pyro_flows.errors import DataError, OptionError

CSV = "g,x,z,y,town\n0,1.5,2,0.5,Ulm\n1,2.5,3,1.5,Bonn\n0,3.5,4,2.5,Ulm\n"


def bind(function, folder=None, text=CSV, name="data.csv", **choices):
    files = []
    if folder is not None:
        (folder / name).write_text(text)
        files = [folder / name]
    return arguments_of(Model(function, "model", "model.py"), Choices(files=files, **choices))


def test_columns_go_to_arguments_by_name(tmp_path):
    def model(x, y=None, *, g):
        pass

    found = bind(model, tmp_path)
    assert list(found.values) == ["x", "y", "g"]
    assert found.values["g"].dtype == np.int64
    np.testing.assert_array_equal(found.values["x"], [1.5, 2.5, 3.5])
    assert found.unused == ["z", "town"]
    assert found.defaults == []


def test_text_is_coded_and_said(tmp_path):
    def model(town):
        pass

    found = bind(model, tmp_path)
    np.testing.assert_array_equal(found.values["town"], [1, 0, 1])
    assert found.categories == {"town": ["Bonn", "Ulm"]}
    assert any("0 = Bonn, 1 = Ulm" in line for line in found.notes())


def test_a_default_is_said(tmp_path):
    def model(x, mass=None):
        pass

    found = bind(model, tmp_path)
    assert "mass" not in found.values
    assert any("not in the data: mass = None" in line for line in found.notes())


def test_all_that_is_left_goes_to_keywords(tmp_path):
    def model(x, **more):
        pass

    found = bind(model, tmp_path, values={"k": 3})
    assert sorted(found.values) == ["g", "k", "town", "x", "y", "z"]
    assert found.unused == []


def test_a_missing_argument_shows_signature_and_columns(tmp_path):
    def model(height, y):
        pass

    with pytest.raises(DataError) as caught:
        bind(model, tmp_path)
    text = str(caught.value)
    assert "model(height, y)" in text
    assert "g, x, z, y, town" in text
    assert "--columns height=COLUMN" in text
    with pytest.raises(DataError, match="nothing gives it 'height'"):
        bind(model)


def test_a_near_miss_is_guessed(tmp_path):
    def model(towns):
        pass

    with pytest.raises(DataError, match="Did you mean 'town'"):
        bind(model, tmp_path)


def test_by_position_only_is_refused(tmp_path):
    def model(x, /):
        pass

    with pytest.raises(DataError, match="by position only"):
        bind(model, tmp_path)


def test_of_a_module_the_arguments_are_forwards(tmp_path):
    class Module(torch.nn.Module):
        def forward(self, x):
            pass

    assert list(bind(Module(), tmp_path).values) == ["x"]


class TestChoices:
    def test_several_columns_are_a_matrix_one_is_a_vector(self, tmp_path):
        def model(design, target, single):
            pass

        columns = {"design": ["x", "z"], "target": ["y"], "single": ["z", ""]}
        found = bind(model, tmp_path, columns=columns)
        np.testing.assert_array_equal(
            found.values["design"], np.array([[1.5, 2], [2.5, 3], [3.5, 4]])
        )
        assert found.values["target"].shape == (3,)
        assert found.values["single"].shape == (3, 1)
        assert found.values["single"].dtype == np.float64
        assert found.unused == ["g", "town"]

    def test_a_matrix_of_all_numbers_that_are_left(self, tmp_path):
        def model(data, y):
            pass

        found = bind(model, tmp_path, matrix="data")
        np.testing.assert_array_equal(found.values["data"][1], [1, 2.5, 3])
        assert found.unused == ["town"]

    def test_a_matrix_holds_no_text(self, tmp_path):
        def model(design):
            pass

        with pytest.raises(DataError, match="can't hold the text of 'town'"):
            bind(model, tmp_path, columns={"design": ["x", "town"]})

    def test_whole_numbers_as_floats(self, tmp_path):
        def model(g, z):
            pass

        found = bind(model, tmp_path, floats=["g"])
        assert found.values["g"].dtype == np.float64
        assert found.values["z"].dtype == np.int64

    def test_plain_values(self, tmp_path):
        def model(x, n, label):
            pass

        found = bind(model, tmp_path, values={"n": 3, "label": "a"})
        assert found.values["n"] == 3
        assert found.values["label"] == "a"

    @pytest.mark.parametrize(
        ("choices", "words"),
        [
            ({"values": {"w": 1}}, "--set names 'w', but the model is model(x, y)"),
            ({"columns": {"w": ["x"]}}, "--columns names 'w'"),
            ({"matrix": "w"}, "--matrix names 'w'"),
            ({"columns": {"x": ["w"]}}, "the column 'w', but the tables have g, x, z"),
            ({"values": {"x": 1}}, "'x' is given by --set and in the data"),
            ({"matrix": "x", "columns": {"x": ["z"]}}, "given by --columns and --matrix"),
            ({"floats": ["w"]}, "--float names 'w'"),
        ],
    )
    def test_what_does_not_fit(self, tmp_path, choices, words):
        def model(x, y):
            pass

        with pytest.raises(OptionError) as caught:
            bind(model, tmp_path, **choices)
        assert words in str(caught.value)


class TestGaps:
    CSV = "g,y\n0,1.5\n,2.5\n1,\n1,4.5\n"

    def test_they_are_refused_and_located(self, tmp_path):
        def model(y):
            pass

        with pytest.raises(DataError, match="in 1 of 4 rows; the first is row 3"):
            bind(model, tmp_path, self.CSV)

    def test_rows_are_left_out_on_request(self, tmp_path):
        def model(g, y):
            pass

        found = bind(model, tmp_path, self.CSV, missing="drop")
        np.testing.assert_array_equal(found.values["y"], [1.5, 4.5])
        np.testing.assert_array_equal(found.values["g"], [0, 1])
        assert found.values["g"].dtype == np.int64
        assert list(found.dropped.values()) == [2]

    def test_only_columns_that_are_used_count(self, tmp_path):
        def model(y):
            pass

        assert len(bind(model, tmp_path, self.CSV, missing="drop").values["y"]) == 3

    def test_they_are_passed_on_on_request(self, tmp_path):
        def model(y):
            pass

        assert np.isnan(bind(model, tmp_path, self.CSV, missing="keep").values["y"][2])

    def test_nothing_left(self, tmp_path):
        def model(g, y):
            pass

        with pytest.raises(DataError, match="No row of .* is complete in g, y"):
            bind(model, tmp_path, "g,y\n0,\n,1\n", missing="drop")

    def test_text_and_infinities(self, tmp_path):
        def model(t):
            pass

        with pytest.raises(DataError, match="missing or infinite values in 1 of 3"):
            bind(model, tmp_path, "t,y\na,1\n,2\nb,3\n")
        with pytest.raises(DataError, match="missing or infinite values in 1 of 2"):
            bind(model, tmp_path, "t\n1.5\ninf\n", missing="keep")


class TestJson:
    def test_values_keep_their_kinds(self, tmp_path):
        def model(y, x, n, rate, label, flag, names, more, nothing):
            pass

        data = {
            "y": [1, 2],
            "x": [[1.5, 2], [3, 4]],
            "n": 2,
            "rate": 0.5,
            "label": "a",
            "flag": True,
            "names": ["b", "a"],
            "more": {"z": [1.5]},
            "nothing": None,
        }
        values = bind(model, tmp_path, json.dumps(data), "data.json").values
        assert values["y"].dtype == np.int64
        assert values["x"].shape == (2, 2)
        assert [values[name] for name in ("n", "rate", "label", "flag")] == [2, 0.5, "a", True]
        assert values["nothing"] is None
        np.testing.assert_array_equal(values["names"], [1, 0])
        np.testing.assert_array_equal(values["more"]["z"], [1.5])

    @pytest.mark.parametrize(
        ("value", "words"),
        [
            ([[1], [1, 2]], "different lengths"),
            ([], "an empty list"),
            ([1, "a"], "different kinds"),
            ([1.5, None], "missing or infinite values in 1 of 2"),
            ([["a"], ["b"]], "a table of texts"),
        ],
    )
    def test_what_is_no_array(self, tmp_path, value, words):
        def model(y):
            pass

        with pytest.raises(DataError, match=words):
            bind(model, tmp_path, json.dumps({"y": value}), "data.json")


def test_two_files_are_merged_and_clashes_named(tmp_path):
    def model(x, n):
        pass

    (tmp_path / "a.csv").write_text("x\n1.5\n2.5\n")
    (tmp_path / "b.json").write_text('{"n": 7}')
    (tmp_path / "c.json").write_text('{"x": 7}')
    model = Model(model, "model", "model.py")
    files = [tmp_path / "a.csv", tmp_path / "b.json"]
    assert arguments_of(model, Choices(files=files)).values["n"] == 7
    with pytest.raises(DataError, match=r"'x' is in .*a\.csv and in .*c\.json"):
        arguments_of(model, Choices(files=[files[0], tmp_path / "c.json"]))


def test_arrays_of_numpy_without_axes_are_plain(tmp_path):
    def model(x, n):
        pass

    np.savez(tmp_path / "data.npz", x=np.ones(2, dtype=np.float32), n=np.array(7))
    found = arguments_of(Model(model, "model", "model.py"), Choices(files=[tmp_path / "data.npz"]))
    assert found.values["n"] == 7
    assert type(found.values["n"]) is int


def test_tensors_have_the_dtype_where_they_are_floats():
    values = {"x": np.ones(2), "g": np.array([0, 1]), "more": {"z": np.ones(1)}, "n": 3}
    made = as_tensors(values, torch.float32, torch.device("cpu"))
    assert made["x"].dtype == made["more"]["z"].dtype == torch.float32
    assert made["g"].dtype == torch.int64
    assert made["n"] == 3
