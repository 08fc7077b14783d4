# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Flows by name, and what is stated of them."""

import re
from functools import partial
from importlib.metadata import EntryPoint
from types import FunctionType

import pytest

from pyro_flows import flows
from pyro_flows.distributions import Flow
from pyro_flows.errors import OptionError, UnknownFlowError
from pyro_flows.flows import registry
from pyro_flows.flows.options import complaint
from pyro_flows.transforms import CholeskyAffine


def affine(dim, context_dim=0, **options):
    """One affine layer.

    More words.
    """
    return Flow([CholeskyAffine(dim)])


@pytest.fixture(autouse=True)
def clean_registry(monkeypatch):
    monkeypatch.setattr(registry, "_constructors", dict(registry._constructors))
    monkeypatch.setattr(registry, "_stated", dict(registry._stated))


def test_available():
    found = flows.available()
    assert list(found) == sorted(found)
    assert all(line.endswith(".") and not line.startswith("from ") for line in found.values())


def test_unknown_name():
    with pytest.raises(UnknownFlowError) as caught:
        flows.make("nsff", 2)
    text = str(caught.value)
    assert re.fullmatch(
        r"Expected the name of a registered flow, one of .*nsf.*, but got 'nsff'\. "
        r"Did you mean 'nsf'\? Register your own with @flows\.register_flow\('nsff'\)\.",
        text,
    )
    assert isinstance(caught.value, KeyError)


def test_unknown_name_that_resembles_none():
    with pytest.raises(UnknownFlowError, match=r"but got 'xyzzy'\. Register your own") as caught:
        flows.check_name("xyzzy")
    assert "Did you mean" not in str(caught.value)
    with pytest.raises(UnknownFlowError):
        flows.facts("xyzzy")


def test_register():
    assert flows.register_flow("affine")(affine) is affine
    assert flows.available()["affine"] == "One affine layer."
    assert flows.make("affine", 3).dim == 3
    flows.check_name("affine")
    facts = flows.facts("affine")
    assert (facts.name, facts.summary) == ("affine", "One affine layer.")
    assert (facts.density, facts.conditional, facts.year) == ("not stated", None, None)
    row = "| `affine` | One affine layer | not stated | not stated | not stated |  |"
    assert row in flows.table().splitlines()


def test_register_with_facts():
    stated = {"density": "one pass", "sampling": "roots", "conditional": False}
    source = {"paper": "Somebody, Something", "year": 2020, "link": "https://example.org"}
    flows.register_flow("affine", **stated, **source)(affine)
    facts = flows.facts("affine")
    assert (facts.density, facts.sampling, facts.conditional) == ("one pass", "roots", False)
    row = (
        "| `affine` | One affine layer | one pass | roots | no "
        "| [Somebody, Something](https://example.org), 2020 |"
    )
    assert row in flows.table().splitlines()
    assert str(facts).splitlines() == [
        "affine: One affine layer.",
        "  log_prob (data to base): one pass",
        "  sampling (base to data): roots",
        "  context: no",
        "  values: real numbers",
        "  paper: Somebody, Something, 2020, https://example.org",
    ]


def test_register_refuses_words_it_does_not_know():
    with pytest.raises(TypeError, match="yaer"):
        flows.register_flow("affine", yaer=2020)
    assert "affine" not in flows.available()


def only_sizes(dim, context_dim=0):
    return affine(dim)


def test_options_it_does_not_take():
    with pytest.raises(OptionError) as caught:
        flows.make("nice", 3, layer=2, bins=4)
    assert str(caught.value) == (
        "flows.make expected options among those that 'nice' takes (layers, hidden_dims, "
        "linear), but got 'layer', 'bins'. Did you mean 'layers'?"
    )
    flows.register_flow("affine")(affine)
    assert flows.make("affine", 3, anything=1).dim == 3
    flows.register_flow("only_sizes")(only_sizes)
    with pytest.raises(OptionError) as caught:
        flows.make("only_sizes", 3, size=2)
    assert str(caught.value).endswith(
        "'only_sizes' takes (it takes none), but got 'size'. Leave out what it doesn't take."
    )


def test_a_constructor_without_a_signature_takes_what_it_takes():
    assert complaint(print, {"end": ""}, "print expected options", "print") is None
    assert complaint(min, {"anything": 1}, "min expected options", "min") is None


def test_registered_again_is_another():
    flows.register_flow("affine", year=2020)(affine)
    flows.register_flow("affine")(affine)
    assert flows.facts("affine").year is None


def test_a_name_that_is_taken():
    flows.register_flow("affine")(affine)
    with pytest.raises(OptionError, match=r"'affine' is .*\.affine\. Choose another name"):
        flows.register_flow("affine")(only_sizes)
    assert flows.make("affine", 3, anything=1).dim == 3
    flows.register_flow("affine", replace=True)(only_sizes)
    with pytest.raises(OptionError):
        flows.make("affine", 3, anything=1)


def test_partials_are_told_apart_by_what_they_were_given():
    flows.register_flow("few")(partial(flows.nsf, layers=1))
    flows.register_flow("few")(partial(flows.nsf, layers=1))  # a module that is reloaded
    with pytest.raises(OptionError, match=r"'few' is pyro_flows\.flows\.coupling\.nsf\. Choose"):
        flows.register_flow("few")(partial(flows.nsf, layers=2))
    with pytest.raises(OptionError, match="Choose another name"):
        flows.register_flow("few")(partial(flows.maf, layers=1))
    assert len(flows.make("few", 3).transform.layers) == len(
        flows.nsf(3, layers=1).transform.layers
    )


def test_a_name_of_ours_stays_ours():
    with pytest.raises(OptionError, match=r"'nsf' is pyro_flows\.flows\.coupling\.nsf\."):
        flows.register_flow("nsf", year=1999)(affine)
    assert flows.facts("nsf").year == 2019


def test_a_module_may_be_loaded_again():
    again = FunctionType(flows.nsf.__code__, flows.nsf.__globals__)
    again.__qualname__ = "nsf"
    flows.register_flow("nsf")(again)
    assert registry._constructors["nsf"] is again


def test_functions_made_by_functions_are_told_apart():
    def made():
        return lambda dim, context_dim=0: affine(dim)

    first = made()
    flows.register_flow("affine", replace=True)(first)
    flows.register_flow("affine")(first)
    with pytest.raises(OptionError, match="Choose another name"):
        flows.register_flow("affine")(made())


def entry_points(*points):
    return lambda group: [p for p in points if p.group == group]


def test_entry_points(monkeypatch):
    point = EntryPoint("theirs", f"{__name__}:affine", "pyro_flows.flows")
    other = EntryPoint("not_ours", "nowhere:nothing", "another.group")
    monkeypatch.setattr(registry, "entry_points", entry_points(point, other))
    monkeypatch.setattr(EntryPoint, "load", lambda self: affine)
    assert flows.available()["theirs"] == f"from {__name__}:affine"
    assert "not_ours" not in flows.available()
    assert flows.make("theirs", 2).dim == 2


def test_listing_loads_no_entry_point(monkeypatch):
    point = EntryPoint("broken", "no_such_package:flow", "pyro_flows.flows")
    monkeypatch.setattr(registry, "entry_points", entry_points(point))
    assert flows.available()["broken"] == "from no_such_package:flow"
    assert flows.facts("broken").density == "not stated"
    assert "| `broken` | from no_such_package:flow |" in flows.table()


def test_our_own_name_wins_over_an_entry_point(monkeypatch):
    point = EntryPoint("nsf", "no_such_package:flow", "pyro_flows.flows")
    monkeypatch.setattr(registry, "entry_points", entry_points(point))
    assert flows.available()["nsf"].startswith("Rational-quadratic")
    assert flows.make("nsf", 2).dim == 2
