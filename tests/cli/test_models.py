# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The user's model is found by file and name; its own errors come with the line."""

import sys

import pytest

from pyro_flows.cli.models import model_named
from pyro_flows.errors import DataError, ModelError

FILE = """\
import pyro
from helper import SCALE

NUMBER = 3


class Model:
    def __call__(self, y):
        return SCALE


def scaled(y):
    print("running")
    return SCALE * y


def late(y):
    import other
    return other.X


model = Model()
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "helper.py").write_text("SCALE = 2.0\n")
    (tmp_path / "other.py").write_text("X = 'found'\n")
    path = tmp_path / "my_model.py"
    path.write_text(FILE)
    yield path
    for name in ("helper", "other"):
        sys.modules.pop(name, None)


def test_a_function_and_an_object_of_a_file(file):
    with model_named(f"{file}:scaled") as found:
        assert found.name == "scaled"
        assert found.function(3.0) == 6.0
    with model_named(f"{file}:model") as found:
        assert found.function(None) == 2.0


def test_the_files_folder_is_looked_in_also_when_the_model_runs(file):
    before = list(sys.path)
    with model_named(f"{file}:late") as found:
        assert found.function(None) == "found"
    assert sys.path == before


def test_a_changed_file_is_read_anew(file):
    with model_named(f"{file}:scaled"):
        pass
    file.write_text("def scaled(y):\n    return 'new'\n")
    with model_named(f"{file}:scaled") as found:
        assert found.function(1) == "new"


def test_a_module_by_its_name(file, monkeypatch):
    monkeypatch.chdir(file.parent)
    (file.parent / "some_package_of_models.py").write_text("def model():\n    return 1\n")
    with model_named("some_package_of_models:model") as found:
        assert found.function() == 1


def test_what_it_prints_is_no_result(file, capsys):
    with model_named(f"{file}:scaled") as found:
        found.function(1.0)
    assert capsys.readouterr() == ("", "running\n")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("scale", "Did you mean"),
        ("nothing", "it has scaled, late, model"),
        ("Model", "it is a class. Make an object of it"),
        ("NUMBER", "it is of type int"),
    ],
)
def test_names_that_are_no_model(file, name, words):
    with pytest.raises(ModelError) as caught, model_named(f"{file}:{name}"):
        pass
    assert words in str(caught.value)


def test_without_a_name_the_functions_are_listed(file):
    with pytest.raises(ModelError) as caught, model_named(str(file)):
        pass
    assert "It defines scaled, late." in str(caught.value)
    assert f"{file}:late" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "as in my_model.py:model"),
        (":model", "Expected the model as FILE.py:NAME"),
        ("nowhere.py:model", "the file nowhere.py doesn't exist"),
        ("no_such_package.models:model", "there is no module 'no_such_package.models'"),
    ],
)
def test_nothing_there(text, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught, model_named(text):
        pass
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("x = 1\ndef model(:\n", "line 2: invalid syntax"),
        ("import no_such_module_here\n", "ModuleNotFoundError: No module named 'no_such"),
        ("x = 1\ny = undefined\n", "at broken.py, line 2: y = undefined"),
        ("import sys\nsys.exit(3)\n", 'if __name__ == "__main__":'),
    ],
)
def test_a_file_that_fails(tmp_path, code, words):
    (tmp_path / "broken.py").write_text(code)
    with pytest.raises(ModelError) as caught, model_named(f"{tmp_path}/broken.py:model"):
        pass
    assert words in str(caught.value)


def test_an_error_in_the_model_has_its_line(tmp_path):
    (tmp_path / "wrong.py").write_text("def model(y):\n    a = [1]\n    return a[y]\n")
    with pytest.raises(ModelError) as caught, model_named(f"{tmp_path}/wrong.py:model") as found:
        found.function(7)
    assert "IndexError" in str(caught.value)
    assert "at wrong.py, line 3, in model: return a[y]" in str(caught.value)


def test_errors_of_others_are_left_alone(file):
    with pytest.raises(ZeroDivisionError), model_named(f"{file}:scaled"):
        1 / 0  # noqa: B018
    with pytest.raises(DataError), model_named(f"{file}:scaled"):
        raise DataError("ours")
