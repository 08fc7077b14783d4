# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Every named flow: sizes, start, options, what its facts promise, the reference page."""

import copy
import inspect
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from pyro_flows import flows
from pyro_flows.distributions import Flow
from pyro_flows.errors import OptionError, ShapeError
from pyro_flows.flows import registry
from pyro_flows.nn import Parameters
from pyro_flows.ops import roots
from pyro_flows.transforms import (
    Autoregressive,
    BlockAutoregressive,
    Cayley,
    CholeskyAffine,
    ContinuousFlow,
    Inverse,
)

ROOT = Path(__file__).parents[2]
# Ours, whatever a doctest or another test has registered.
NAMES = [
    name for name, c in registry._constructors.items() if c.__module__.startswith("pyro_flows.")
]
SMALL = {"layers": 2, "hidden_dims": (8,)}
EACH = pytest.mark.parametrize("name", NAMES)
BOTH = pytest.mark.parametrize("context_dim", [0, 3])


def make(name, dim, context_dim=0, perturb=0.0):
    flow = flows.make(name, dim, context_dim, **SMALL)
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(perturb * torch.randn_like(p) / max(p.shape[-1:] or (1,)) ** 0.5)
    return flow


def contexts(context_dim, *shape):
    return torch.randn(*shape, context_dim) if context_dim else None


def test_every_family_of_the_roadmap_is_there():
    """Of issue 3: a name for each."""
    wanted = (
        "nice realnvp glow nsf nsf_ar maf iaf naf bnaf unaf sospf bpf gaussianization planar "
        "radial sylvester iresnet residual ffjord ncsf default"
    )
    assert set(wanted.split()) == set(NAMES)


@EACH
def test_named_as_the_function(name):
    constructor = registry._constructors[name]
    assert constructor.__name__ == name
    assert getattr(flows, name) is constructor
    assert name in flows.__all__


@EACH
def test_signature(name):
    first, second, *options = inspect.signature(registry._constructors[name]).parameters.values()
    assert (first.name, second.name, second.default) == ("dim", "context_dim", 0)
    assert all(option.kind is inspect.Parameter.KEYWORD_ONLY for option in options)
    assert {"layers", "hidden_dims"} <= {option.name for option in options}


@EACH
def test_recipes_are_short(name):
    lines, _ = inspect.getsourcelines(registry._constructors[name])
    code, inside = [], False
    for line in lines[next(i for i, text in enumerate(lines) if text.startswith("def ")) :]:
        marks = line.count('"""')
        if not inside and not marks and line.strip():
            code.append(line)
        inside ^= marks == 1
    signature = next(i for i, text in enumerate(code) if text.startswith(") -> Flow"))
    assert len(code) - signature - 1 <= 20


@EACH
@BOTH
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_sizes_and_shapes(name, dim, context_dim):
    flow = make(name, dim, context_dim, perturb=0.3)
    assert isinstance(flow, Flow)
    assert (flow.dim, flow.context_dim) == (dim, context_dim)
    d = flow(contexts(context_dim, 4))
    assert (d.batch_shape, d.event_shape) == ((4,) if context_dim else (), (dim,))
    value = d.sample((6,))
    assert value.shape == (6, *d.batch_shape, dim)
    assert d.support.check(value).all()
    assert flow(contexts(context_dim, 4)).log_prob(value.clone()).isfinite().all()


@EACH
@BOTH
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_starts_at_the_base(name, dim, context_dim):
    flow = flows.make(name, dim, context_dim)
    context = contexts(context_dim, 50)
    with torch.no_grad():
        value = flow.base().sample((50,)).clamp(-3, 3)
        moved = flow.transform.forward_and_ladj(value, context)[0]
    count = len(flow.transform.layers)
    assert (moved - value).abs().max() < 0.1 * count
    expected = flow.base().log_prob(moved)
    assert (flow.log_prob(moved, context) - expected).abs().max() < 0.15 * count * dim**0.5


@EACH
def test_options_reach_the_constructor(name):
    small = flows.make(name, 4, **SMALL)
    assert sum(p.numel() for p in small.parameters()) < sum(
        p.numel() for p in flows.make(name, 4, layers=9, hidden_dims=(8,)).parameters()
    )


@EACH
def test_every_coordinate_moves_and_all_meet(name):
    flow = flows.make(name, 5)
    for p in flow.parameters():
        p.data.add_(0.3 * torch.randn_like(p))
    x = flow.base().sample()
    jacobian = torch.autograd.functional.jacobian(lambda x: flow.transform(x), x)
    assert (jacobian.abs() > 1e-12).all()


@EACH
def test_the_context_matters_if_the_facts_say_so(name):
    assert flows.facts(name).conditional is True
    for dim in (1, 3):
        flow = make(name, dim, 2, perturb=0.5)
        value = flow.base().sample()
        scores = flow.log_prob(value, torch.randn(5, 2))
        assert scores.unique().numel() == 5


class Work:
    """What a direction does: runs of one network, walks through an order, root searches."""

    def __init__(self, flow, monkeypatch):
        self.nets = [
            m
            for m in flow.transform.modules()
            if type(m).__module__.startswith("pyro_flows.nn") and not isinstance(m, Parameters)
        ]
        for net in self.nets:
            net.register_forward_hook(self._ran)
        self._count(monkeypatch, roots, "_bracketed_newton", "searches")
        self._count(monkeypatch, Autoregressive, "inverse_and_ladj", "walks")

    def _ran(self, net, inputs, output):
        self.runs[net] += 1

    def _count(self, monkeypatch, owner, name, counter):
        called = getattr(owner, name)

        def count(*args):
            setattr(self, counter, getattr(self, counter) + 1)
            return called(*args)

        monkeypatch.setattr(owner, name, count)

    def of(self, direction, value):
        self.runs, self.searches, self.walks = dict.fromkeys(self.nets, 0), 0, 0
        with torch.no_grad():
            direction(value, None)
        return max(self.runs.values(), default=0), self.walks, self.searches


@EACH
def test_costs_are_as_stated(name, monkeypatch):
    facts, flow = flows.facts(name), make(name, 6, perturb=0.5)
    work, value = Work(flow, monkeypatch), flow.base().sample((10,))
    for cost, direction in (
        (facts.density, flow.transform.inverse_and_ladj),
        (facts.sampling, flow.transform.forward_and_ladj),
    ):
        runs, walks, searches = work.of(direction, value)
        assert cost in COSTS
        assert (searches > 0) == cost.endswith("with roots")
        assert (walks > 0) == cost.startswith("dim steps")
        if cost.startswith("one pass"):
            assert runs <= 1


COSTS = {
    "one pass",
    "one pass with roots",
    "one pass of dim tangents",
    "dim steps",
    "dim steps with roots",
    "up to dim passes with roots",
    "fixed point",
    "fixed point, an estimate",
    "about 20 passes, an estimate",
    "ODE steps of dim tangents",
    "ODE steps of dim tangents, each solved",
}


@EACH
def test_facts_are_complete(name):
    facts = flows.facts(name)
    assert "not stated" not in (facts.density, facts.sampling)
    if name != "default":
        assert facts.link.startswith("https://")
        assert 2010 <= facts.year <= 2026
        assert ", " in facts.paper


@EACH
def test_copies_are_faithful(name):
    flow = make(name, 3, 2, perturb=0.3)
    value, context = flow.base().sample((4,)), torch.randn(4, 2)
    fresh = make(name, 3, 2)
    fresh.load_state_dict(flow.state_dict())
    torch.manual_seed(1)  # of estimates
    expected = flow.log_prob(value, context)
    for new in (copy.deepcopy(flow), pickle.loads(pickle.dumps(flow)), fresh):
        torch.manual_seed(1)
        assert torch.allclose(new.log_prob(value, context), expected)


def having(option):
    def has(name):
        return option in inspect.signature(registry._constructors[name]).parameters

    return pytest.mark.parametrize("name", filter(has, NAMES))


def kinds(flow):
    layers = [getattr(layer, "layer", layer) for layer in flow.transform.layers]
    return [type(layer).__name__ for layer in layers]


@having("linear")
def test_linear_layers_between(name):
    plain = kinds(flows.make(name, 3, linear=None, **SMALL))
    for linear, kind in ((CholeskyAffine, "CholeskyAffine"), ("plu", "PLU")):
        flow = flows.make(name, 3, linear=linear, **SMALL)
        assert kinds(flow) == [part for layer in plain for part in (layer, kind)]
    alone = flows.make(name, 1, linear="plu", **SMALL)
    assert kinds(alone) == ["Elementwise"]
    with pytest.raises(OptionError, match=r"expected linear to be one of .*plu.*, but got 'lu'\."):
        flows.make(name, 3, linear="lu")


@having("order")
def test_orders(name):
    def sequences(**options):
        layers = flows.make(name, 8, layers=3, hidden_dims=(8,), **options).transform.layers
        return [getattr(layer, "layer", layer).sequence.tolist() for layer in layers]

    forwards = list(range(8))
    assert sequences() == [forwards, forwards[::-1], forwards]
    shuffled = sequences(order="random")
    assert len({tuple(order) for order in shuffled}) == 3
    assert sequences(order="random") == shuffled
    with pytest.raises(OptionError, match="expected order to be one of reversed, random, but got"):
        flows.make(name, 3, order="sorted")


@having("fast")
def test_the_fast_direction_is_a_choice(name, monkeypatch):
    if name in ("bnaf", "ffjord"):
        return  # below
    value = flows.make(name, 6).base().sample((10,))
    for fast, quick in (("density", "inverse_and_ladj"), ("sampling", "forward_and_ladj")):
        flow = flows.make(name, 6, fast=fast, **SMALL)
        work = Work(flow, monkeypatch)
        assert work.of(getattr(flow.transform, quick), value) == (1, 0, 0)
        slow = {"inverse_and_ladj", "forward_and_ladj"} - {quick}
        assert work.of(getattr(flow.transform, slow.pop()), value)[1] == 2
    with pytest.raises(OptionError, match="expected fast to be one of density, sampling, but got"):
        flows.make(name, 3, fast="both")


@pytest.mark.parametrize(
    ("name", "kind"), [("ffjord", ContinuousFlow), ("bnaf", BlockAutoregressive)]
)
def test_the_fast_direction_of_other_flows_is_a_choice(name, kind):
    for fast, outer in (("density", Inverse), ("sampling", kind)):
        flow = flows.make(name, 2, fast=fast, hidden_dims=(8,))
        assert type(flow.transform.layers[0]) is outer
    with pytest.raises(OptionError, match="expected fast to be one of density, sampling, but got"):
        flows.make(name, 2, fast="both")


def test_glow_of_images():
    flow = flows.glow(2 * 4 * 4, 3, event_shape=(2, 4, 4), layers=1, hidden_channels=4)
    d = flow(torch.randn(5, 3))
    assert (d.batch_shape, d.event_shape) == ((5,), (2, 4, 4))
    assert d.log_prob(d.sample().clone()).shape == (5,)
    with pytest.raises(ShapeError, match="dim=30, but got event_shape=\\(2, 4, 4\\)"):
        flows.glow(30, event_shape=(2, 4, 4))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"event_shape": (8, 8)}, r"glow expected an image's shape \(C, H, W\), but got \(8, 8\)"),
        ({"event_shape": 64}, r"glow expected an image's shape \(C, H, W\), but got 64"),
        ({"event_shape": (1, 8, 8), "hidden_channels": 0}, "hidden_channels >= 1 and blocks >= 0"),
        ({"event_shape": (1, 8, 8), "levels": 1.5}, "at least one level and one step.*levels=1.5"),
    ],
)
def test_images_that_glow_does_not_take(options, text):
    with pytest.raises(ShapeError, match=text):
        flows.glow(64, **options)


@EACH
def test_sizes_that_make_no_flow(name):
    make = getattr(flows, name)
    for dim in (-1, 0, 1.5, None, True, "a"):
        with pytest.raises(ShapeError, match=f"integers dim >= 1 .*, but got dim={dim!r} and con"):
            make(dim)
    with pytest.raises(ShapeError, match="but got dim=3 and context_dim=1.5. Give the size"):
        make(3, 1.5)
    for layers in (-1, 1.5, "a", None):
        with pytest.raises(OptionError, match=f"layers to be an integer >= 1, but got {layers!r}"):
            make(3, layers=layers)


@EACH
def test_sizes_of_numpy(name):
    widths = np.array([8, 8])
    flow = getattr(flows, name)(np.int64(3), np.int64(2), layers=np.int64(1), hidden_dims=widths)
    assert flow(torch.zeros(4, 2)).sample().shape == (4, 3)


@pytest.mark.parametrize("name", ["nsf", "maf"])
def test_layers_between_that_are_none(name):
    with pytest.raises(OptionError, match="linear to be one of actnorm, .*, but got 3"):
        flows.make(name, 3, linear=3)


def test_glow_starts_from_data():
    flow, data = flows.glow(3, layers=2), 5 + 2 * torch.randn(500, 3)
    flow.initialize(data)
    x = flow.transform.inv(data)
    assert torch.allclose(x.mean(0), torch.tensor(0.0), atol=0.01)
    assert torch.allclose(x.std(0), torch.tensor(1.0), atol=0.01)


def test_density_at_the_start_is_normal():
    value = torch.randn(4, 3)
    expected = -0.5 * (value**2).sum(-1) - 1.5 * math.log(2 * math.pi)
    for name in ("default", "nice", "realnvp", "nsf"):
        assert torch.allclose(flows.make(name, 3).log_prob(value), expected)


def test_default_follows_the_levels():
    with_levels = flows.default(4, levels=[0, 0, 1, 2])
    assert len(with_levels.transform.layers) == len(flows.default(4).transform.layers) + 2
    moved = [layer.moved.tolist() for layer in with_levels.transform.layers[-3:-1]]
    assert moved == [[2], [3]]
    assert isinstance(with_levels.transform.layers[-1], Cayley)
    chain = flows.default(6, levels=list(range(6)))
    assert len(chain.transform.layers) == len(flows.default(6).transform.layers)


def test_no_log_scale_of_the_default_grows_without_end():
    """In a funnel's mouth inputs are hundreds: log-scales grow no further than at the reach."""
    flow = flows.default(4)
    for layer in flow.transform.layers[:-1]:
        layer.conditioner.shortcut.weight.data.fill_(0.1)
    x = torch.tensor([[1e2], [1e6]]).expand(2, 4)
    assert flow.transform.forward_and_ladj(x)[1].abs().max() < 100


def test_the_reference_page_has_the_table():
    page = (ROOT / "docs" / "reference" / "flows.md").read_text()
    rows = {row.split("`")[1]: row for row in flows.table().splitlines()[2:]}
    header = flows.table().splitlines()[:2]
    table = "\n".join([*header, *(rows[name] for name in sorted(NAMES))])
    assert table in page, f"Put this table on docs/reference/flows.md:\n{table}"
