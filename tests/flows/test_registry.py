# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Flows by name."""

import re
from importlib.metadata import EntryPoint

import pytest
import torch

from pyro_flows import flows
from pyro_flows.distributions import Flow
from pyro_flows.errors import UnknownFlowError
from pyro_flows.flows import registry
from pyro_flows.transforms import CholeskyAffine

NAMES = ("default", "nice", "nsf", "realnvp")


def affine(dim, context_dim=0, **options):
    """One affine layer.

    More words.
    """
    return Flow([CholeskyAffine(dim)])


@pytest.fixture
def clean_registry(monkeypatch):
    monkeypatch.setattr(registry, "_constructors", dict(registry._constructors))


def test_available():
    found = flows.available()
    assert set(NAMES) <= set(found)
    assert list(found) == sorted(found)
    assert all(found[name].endswith((".", ").")) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [1, 2, 5])
@pytest.mark.parametrize("context_dim", [0, 3])
def test_named_flows_start_at_the_base(name, dim, context_dim):
    flow = flows.make(name, dim, context_dim)
    assert isinstance(flow, Flow)
    assert (flow.dim, flow.context_dim) == (dim, context_dim)
    context = torch.randn(4, context_dim) if context_dim else None
    value = torch.randn(4, dim)
    expected = torch.distributions.Normal(0.0, 1.0).log_prob(value).sum(-1)
    assert torch.allclose(flow.log_prob(value, context), expected)


@pytest.mark.parametrize("name", NAMES)
def test_options_reach_the_constructor(name):
    small = flows.make(name, 4, layers=2, hidden_dims=(3,))
    assert sum(p.numel() for p in small.parameters()) < sum(
        p.numel() for p in flows.make(name, 4).parameters()
    )


@pytest.mark.parametrize("name", NAMES)
def test_every_coordinate_moves_and_all_meet(name):
    flow = flows.make(name, 5)
    for p in flow.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    jacobian = torch.func.jacrev(flow.transform)(torch.randn(5))
    assert (jacobian.abs() > 1e-12).all()


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


@pytest.mark.usefixtures("clean_registry")
def test_register():
    assert flows.register_flow("affine")(affine) is affine
    assert flows.available()["affine"] == "One affine layer."
    assert flows.make("affine", 3).dim == 3
    flows.check_name("affine")


def entry_points(*points):
    return lambda group: [p for p in points if p.group == group]


@pytest.mark.usefixtures("clean_registry")
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


def test_our_own_name_wins_over_an_entry_point(monkeypatch):
    point = EntryPoint("nsf", "no_such_package:flow", "pyro_flows.flows")
    monkeypatch.setattr(registry, "entry_points", entry_points(point))
    assert flows.available()["nsf"].startswith("Rational-quadratic")
    assert flows.make("nsf", 2).dim == 2
