# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Values, contexts and parameters that don't go together are refused in a sentence."""

import re
import warnings

import pytest
import torch
from torch.func import functional_call

from pyro_flows import flows
from pyro_flows.errors import ContextError, DtypeError
from pyro_flows.transforms import (
    PLU,
    Affine,
    AffineCoupling,
    Autoregressive,
    Compose,
    ContinuousFlow,
    DiagonalAffine,
    Elementwise,
    Permute,
    Squeeze,
    Sylvester,
)

LAYERS = {
    "coupling": lambda c: AffineCoupling(4, context_dim=c),
    "autoregressive": lambda c: Autoregressive(4, Affine(), context_dim=c),
    "inverse": lambda c: Autoregressive(4, Affine(), context_dim=c).inv,
    "linear": lambda c: PLU(4, c),
    "sylvester": lambda c: Sylvester(4, c),
    "continuous": lambda c: ContinuousFlow(4, c, steps=1),
    "compose": lambda c: Compose([Permute(4), AffineCoupling(4, context_dim=c)]),
}
EACH = pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
WAYS = ("forward_and_ladj", "inverse_and_ladj")


@pytest.fixture(autouse=True)
def single_precision():
    torch.set_default_dtype(torch.float32)


@EACH
@pytest.mark.parametrize("way", WAYS)
def test_dtypes_of_values(make, way):
    run = getattr(make(0), way)
    for dtype in (torch.float64, torch.float16):
        name = str(dtype).removeprefix("torch.")
        text = f"expected values of dtype float32, as its parameters have, but got {name}. Conv"
        with pytest.raises(DtypeError, match=re.escape(text)):
            run(torch.zeros(5, 4, dtype=dtype))
    for dtype in (torch.long, torch.bool, torch.complex64):
        with pytest.raises(DtypeError, match="expected real floating-point values, but got "):
            run(torch.zeros(5, 4, dtype=dtype))
    double = getattr(make(0).double(), way)
    assert double(torch.zeros(5, 4, dtype=torch.float64))[0].dtype == torch.float64
    with pytest.raises(DtypeError, match="expected values of dtype float64, .* but got float32"):
        double(torch.zeros(5, 4))


@EACH
@pytest.mark.parametrize("way", WAYS)
def test_contexts(make, way):
    run = getattr(make(2), way)
    text = "expected a context of dtype float32, as its parameters have, but got float64. Convert"
    with pytest.raises(DtypeError, match=re.escape(text)):
        run(torch.zeros(5, 4), torch.zeros(5, 2, dtype=torch.float64))
    text = "whose leading axes broadcast, but got (5, 4) and (3, 2). Give one context for each"
    with pytest.raises(ContextError, match=re.escape(text)):
        run(torch.zeros(5, 4), torch.zeros(3, 2))
    for shapes in (((5, 4), (2,)), ((4,), (5, 2)), ((5, 1, 4), (6, 2)), ((6, 5, 4), (6, 1, 2))):
        x, context = (torch.zeros(shape) for shape in shapes)
        batch = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])
        assert run(x, context)[0].shape == (*batch, 4)


def test_a_flow_names_the_layer():
    flow = flows.nsf(3, 2, layers=2)
    with pytest.raises(DtypeError, match="^Coupling expected a context of dtype float32"):
        flow(torch.zeros(2, dtype=torch.float64)).sample()


def test_layers_without_matrices_take_what_they_took():
    x = torch.ones(5, 4, dtype=torch.float64)
    for layer in (DiagonalAffine(4), Elementwise(4, Affine())):
        assert layer(x).dtype == torch.float64
    index = torch.arange(4)
    assert Permute(4)(index).tolist() == [3, 2, 1, 0]
    assert Squeeze((1, 2, 2))(index).dtype == torch.long


def test_integers_may_be_contexts_beside_numbers():
    context = torch.ones(5, 2, dtype=torch.long)
    y, _ = AffineCoupling(4, context_dim=2).forward_and_ladj(torch.zeros(5, 4), context)
    assert y.dtype == torch.float32


def test_autocast_mixes_dtypes_by_itself():
    layer = Compose([PLU(4), AffineCoupling(4), PLU(4)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = layer.forward_and_ladj(torch.ones(5, 4))
        layer.inverse_and_ladj(y)


def test_parameters_given_from_outside_are_those_that_count():
    layer, x = AffineCoupling(4), torch.ones(5, 4, dtype=torch.float64)
    given = {name: value.double() for name, value in layer.state_dict().items()}
    given |= {name: value for name, value in layer.named_buffers()}
    assert functional_call(layer, given, (x,)).dtype == torch.float64


@EACH
def test_transforms_of_functions(make):
    layer, x, context = make(2).requires_grad_(False), torch.randn(5, 4), torch.randn(5, 2)

    def run(x, context):
        return layer.forward_and_ladj(x, context)[0]

    expected = run(x, context)
    assert torch.allclose(torch.vmap(run)(x, context), expected, atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = torch.jit.trace(run, (x, context))
    assert torch.allclose(traced(x, context), expected, atol=1e-6)
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x, context), expected, atol=1e-6)
    assert torch.allclose(compiled(x[:3], context[:3]), expected[:3], atol=1e-6)
