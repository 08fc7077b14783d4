# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Files of data: what is read, and as what; what is refused, and with which words."""

import importlib.util
import json

import numpy as np
import pandas as pd
import pytest

from pyro_flows.cli import tables
from pyro_flows.cli.tables import codes, is_text, numbers, read_named, read_rows, read_table
from pyro_flows.errors import DataError

HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None


def write(folder, text, name="data.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return path


class TestTablesAreRead:
    def test_types_are_kept_apart(self, tmp_path):
        table = read_table(write(tmp_path, "a,b,c,d\n1,1.5,x,True\n2,2.5,y,False\n"))
        assert numbers(table["a"], "a").dtype == np.int64
        assert numbers(table["b"], "b").dtype == np.float64
        assert numbers(table["d"], "d").dtype == np.bool_
        assert [name for name in table if is_text(table[name])] == ["c"]

    def test_a_gap_among_integers_leaves_the_others_integers(self, tmp_path):
        table = read_table(write(tmp_path, "g,y\n0,1.5\n,2.5\n7,3.5\n"))
        assert np.isnan(numbers(table["g"], "g")[1])
        np.testing.assert_array_equal(numbers(table["g"].dropna(), "g"), np.array([0, 7]))
        assert numbers(table["g"].dropna(), "g").dtype == np.int64

    @pytest.mark.parametrize("mark", [",", ";", "\t", "|", "  "])
    def test_the_separator_is_found(self, tmp_path, mark):
        table = read_table(write(tmp_path, f"a{mark}b\n1{mark}2.5\n3{mark}4.5\n"))
        assert list(table) == ["a", "b"]
        np.testing.assert_array_equal(numbers(table["b"], "b"), [2.5, 4.5])

    def test_a_byte_order_mark_and_blanks_are_no_part_of_a_name(self, tmp_path):
        table = read_table(write(tmp_path, "a, b\n1, 2\n", encoding="utf-8-sig"))
        assert list(table) == ["a", "b"]

    def test_text_becomes_codes_in_order(self):
        column = pd.Series(["pear", "apple", "pear", "fig"], dtype="string")
        found, categories = codes(column, "Column 'fruit'")
        assert categories == ["apple", "fig", "pear"]
        np.testing.assert_array_equal(found, [2, 0, 2, 1])


class TestTablesAreRefused:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "it is empty"),
            ("\n\n", "it is empty"),
            ("a,b\n", "has the columns a, b, but no rows"),
            ("1.5,2.5\n3,4\n", "numbers: 1.5, 2.5"),
            ("a,b,a\n1,2,3\n", "several columns called 'a'"),
            ("a,b\n1,2\n3,4,5\n", "can't be read as a table of the columns a, b"),
            ("a,b\n1,2,3\n4,5,6\n", "can't be read as a table of the columns a, b"),
            (b"name,y\nJos\xe9,1\n", "isn't text in UTF-8 (it has the byte 0xe9)"),
            (b"PK\x03\x04\0\0junk\n", "a binary file"),
            (",\n1,2\n", "no names of columns"),
        ],
    )
    def test_what_is_no_table(self, tmp_path, text, words):
        with pytest.raises(DataError) as caught:
            read_table(write(tmp_path, text))
        assert words in str(caught.value)
        assert "data.csv" in str(caught.value)

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            (["2024-01-01", "2024-01-02"], "holds dates"),
            (["1/2/2024", "31/12/2023"], "holds dates"),
            (["1,5", "2,25", "3"], "with a comma, such as '1,5'"),
            (["1.5", "2.5", "oops", "3"], "text in 1 of 4 rows; the first is row 3: 'oops'"),
            (["1", "2"], "numbers written as text"),
        ],
    )
    def test_text_that_is_no_category(self, values, words):
        with pytest.raises(DataError, match="Column 'c'") as caught:
            codes(pd.Series(values, dtype="string"), "Column 'c'")
        assert words in str(caught.value)

    def test_times_and_large_integers(self):
        with pytest.raises(DataError, match="holds dates"):
            numbers(pd.Series(pd.to_datetime(["2024-01-01"])), "Column 'day'")
        with pytest.raises(DataError, match="64 bits"):
            numbers(pd.Series([2**64 - 1], dtype="uint64"), "Column 'id'")

    def test_no_file(self, tmp_path):
        with pytest.raises(DataError, match="doesn't exist"):
            read_named(tmp_path / "data.csv")
        with pytest.raises(DataError, match="is a folder"):
            read_named(tmp_path)

    def test_another_kind(self, tmp_path):
        path = write(tmp_path, "x", "data.xlsx")
        with pytest.raises(DataError, match=r"\.csv, \.tsv, \.parquet, \.npz or \.json"):
            read_named(path)
        with pytest.raises(DataError, match=r"\.csv, \.tsv, \.parquet or \.npy"):
            read_rows(path)


class TestArrays:
    def test_npz(self, tmp_path):
        np.savez(tmp_path / "data.npz", x=np.arange(3), y=np.ones((2, 2)))
        data = read_named(tmp_path / "data.npz")
        assert sorted(data) == ["x", "y"]
        assert data["y"].shape == (2, 2)

    def test_pickled_arrays_are_not_run(self, tmp_path):
        np.savez(tmp_path / "data.npz", x=np.array([{"a": 1}], dtype=object))
        with pytest.raises(DataError, match="Pickled objects are not read"):
            read_named(tmp_path / "data.npz")

    def test_npy_has_no_name(self, tmp_path):
        np.save(tmp_path / "data.npy", np.ones((3, 2)))
        with pytest.raises(DataError, match=r"numpy\.savez"):
            read_named(tmp_path / "data.npy")
        assert read_rows(tmp_path / "data.npy").shape == (3, 2)

    def test_rows_have_two_axes(self, tmp_path):
        np.save(tmp_path / "data.npy", np.ones(3))
        with pytest.raises(DataError, match=r"reshape\(-1, 1\)"):
            read_rows(tmp_path / "data.npy")

    def test_damaged(self, tmp_path):
        path = write(tmp_path, b"PK\x03\x04 no zip", "data.npz")
        with pytest.raises(DataError, match="can't be read as numbers of numpy"):
            read_named(path)


class TestJson:
    def test_an_object(self, tmp_path):
        path = write(tmp_path, json.dumps({"y": [1, 2], "n": 2}), "data.json")
        assert read_named(path) == {"y": [1, 2], "n": 2}

    @pytest.mark.parametrize(
        ("text", "words"), [("[1, 2]", "but got a list"), ("{'y': 1}", "isn't JSON")]
    )
    def test_anything_else(self, tmp_path, text, words):
        with pytest.raises(DataError, match=words):
            read_named(write(tmp_path, text, "data.json"))


class TestParquet:
    @pytest.mark.skipif(not HAS_PYARROW, reason="pyarrow is not installed")
    def test_it_is_read(self, tmp_path):
        table = pd.DataFrame({"a": [1, 2], "b": [0.5, 1.5], "c": ["x", "y"]})
        table.to_parquet(tmp_path / "data.parquet")
        again = read_table(tmp_path / "data.parquet")
        assert numbers(again["a"], "a").dtype == np.int64
        assert is_text(again["c"])

    def test_without_pyarrow_the_extra_is_named(self, tmp_path, monkeypatch):
        def absent(*args, **kwargs):
            raise ImportError("no pyarrow")

        monkeypatch.setattr(pd, "read_parquet", absent)
        with pytest.raises(DataError, match=r"pip install 'pyro-flows\[parquet\]'"):
            tables.read_table(write(tmp_path, b"PAR1", "data.parquet"))
