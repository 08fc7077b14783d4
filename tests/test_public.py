# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The public names: sorted, importable, documented, with an example where there is one to give."""

import dataclasses
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import pyro_flows

ROOT = Path(__file__).parents[1]
ROOMS = ["pyro_flows"] + [
    f"pyro_flows.{info.name}" for info in pkgutil.iter_modules(pyro_flows.__path__) if info.ispkg
]
PUBLIC = [
    (room, name)
    for room in ROOMS
    for name in importlib.import_module(room).__all__
    if not inspect.ismodule(getattr(importlib.import_module(room), name, None))
    and name != "__version__"
]
# An example of these needs an extra, or a network of the reader's own.
WITHOUT_EXAMPLE = {"Walk", "Walkable", "integrate_adaptive"}


def get(room, name):
    return getattr(importlib.import_module(room), name)


def _kind(name):
    return (0 if name.isupper() else 1 if name[0].isupper() else 2), name


@pytest.mark.parametrize("room", ROOMS)
def test_names_are_sorted_and_there(room):
    module = importlib.import_module(room)
    # Plainly, or as isort does: constants, classes, functions.
    assert module.__all__ in (sorted(module.__all__), sorted(module.__all__, key=_kind))
    assert len(set(module.__all__)) == len(module.__all__)
    assert [name for name in module.__all__ if not hasattr(module, name)] == []
    assert module.__doc__


@pytest.mark.parametrize("room", ROOMS)
def test_a_star_import_gives_them(room):
    space = {}
    exec(f"from {room} import *", space)
    assert set(importlib.import_module(room).__all__) <= set(space)


@pytest.mark.parametrize(("room", "name"), PUBLIC)
def test_every_name_is_documented(room, name):
    thing = get(room, name)
    if not (inspect.isclass(thing) or callable(thing)):
        pytest.skip("a constant")
    doc = inspect.getdoc(thing)
    assert doc
    first = doc.split("\n\n")[0]
    assert first.rstrip().endswith((".", ":", "?"))
    if inspect.isclass(thing):
        # Its own, not that of a base class or the one a dataclass makes up.
        assert thing.__doc__
        assert not (dataclasses.is_dataclass(thing) and thing.__doc__.startswith(f"{name}("))
        for member, value in vars(thing).items():
            if not member.startswith("_") and inspect.isfunction(value):
                assert inspect.getdoc(value), f"{name}.{member}"


@pytest.mark.parametrize("room", ROOMS)
def test_examples(room):
    missing = []
    for name in importlib.import_module(room).__all__:
        thing = get(room, name)
        if name in WITHOUT_EXAMPLE or not (inspect.isclass(thing) or inspect.isfunction(thing)):
            continue
        if ">>>" not in (thing.__doc__ or ""):
            missing.append(name)
    assert missing == []


def test_no_exemption_is_idle():
    have = {name for room, name in PUBLIC if ">>>" not in (get(room, name).__doc__ or "")}
    assert sorted(WITHOUT_EXAMPLE - have) == [], (
        "these have an example now: take them off the list"
    )


@pytest.mark.parametrize(("room", "name"), PUBLIC)
def test_arguments_are_documented(room, name):
    thing = get(room, name)
    if not inspect.isfunction(thing):
        return
    doc = inspect.getdoc(thing)
    names = [n for n in inspect.signature(thing).parameters if n not in ("args", "kwargs")]
    if len(names) > 1 and "Args:" in doc:
        assert [n for n in names if not re.search(rf"\b{n}\b", doc)] == []


def test_every_layer_is_on_the_reference_page():
    page = (ROOT / "docs" / "reference" / "transforms.md").read_text()
    shown = re.findall(r"auto(?:class|function):: pyro_flows\.transforms\.(\w+)", page)
    assert sorted(shown) == sorted(pyro_flows.transforms.__all__)


def test_users_names_are_at_the_root():
    assert {"AutoFlow", "FlowVI", "Posterior", "Flow", "warm_start"} <= set(pyro_flows.__all__)


def test_the_version_is_in_the_changelog():
    version = pyro_flows.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?(dev|a|b|rc)\d+)?", version)
    headings = re.findall(r"^## \[([^\]]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert headings[0] == version or headings[:2] == ["Unreleased", version]


def test_typed():
    assert (ROOT / "pyro_flows" / "py.typed").is_file()
