# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Options that make no map are refused where they are given, not seen as NaN later."""

import re

import pytest

from pyro_flows import flows
from pyro_flows.errors import OptionError, ShapeError
from pyro_flows.nn import MLP, LipschitzMLP, MaskedMLP
from pyro_flows.ops import order_adjacency
from pyro_flows.transforms import (
    Affine,
    AffineCoupling,
    Autoregressive,
    Bernstein,
    Cayley,
    Coupling,
    CubicSpline,
    DeepSigmoidal,
    Gaussianization,
    LogisticMixture,
    Moebius,
    MonotonicNetwork,
    PReLU,
    RationalQuadraticSpline,
    Sigmoid,
    SinhArcsinh,
    SumOfSquares,
    TailTransform,
)


@pytest.mark.parametrize(
    ("make", "option", "got"),
    [
        (Affine, "log_scale_bound", 0.0),
        (Affine, "log_scale_bound", float("inf")),
        (PReLU, "log_slope_bound", -1.0),
        (RationalQuadraticSpline, "bins", 0),
        (RationalQuadraticSpline, "bins", 501),
        (RationalQuadraticSpline, "bins", 1.5),
        (RationalQuadraticSpline, "bins", True),
        (RationalQuadraticSpline, "bins", "a"),
        (RationalQuadraticSpline, "bound", None),
        (DeepSigmoidal, "hidden", 1.5),
        (RationalQuadraticSpline, "bound", -1.0),
        (Bernstein, "degree", 0),
        (Bernstein, "bound", 0.0),
        (SumOfSquares, "polynomials", 0),
        (SumOfSquares, "degree", -1),
        (DeepSigmoidal, "hidden", 0),
        (DeepSigmoidal, "layers", 0),
        (LogisticMixture, "components", 0),
        (Gaussianization, "components", 0),
        (MonotonicNetwork, "hidden", 0),
        (MonotonicNetwork, "nodes", 4),
        (TailTransform, "heaviest", 0.0),
        (TailTransform, "start", 1.0),
        (TailTransform, "bound", 20.0),
        (SinhArcsinh, "bound", -1.0),
    ],
)
def test_options_out_of_range(make, option, got):
    name = make.__name__
    with pytest.raises(OptionError, match=f"^{name} expected {option} between .* and ") as caught:
        make(**{option: got})
    default = getattr(make(), option)
    assert str(caught.value).endswith(f"but got {option}={got!r}. The default is {default}.")


def test_quadrature_has_nodes_for_its_bound():
    """With too few the log-derivative is off by as much as 0.1, and nothing else shows it."""
    text = "nodes >= 8 * bound, since with fewer its log-derivatives are wrong, but got nodes=48"
    with pytest.raises(OptionError, match=re.escape(text)):
        MonotonicNetwork(bound=20.0)
    layer = flows.make("unaf", 2, bound=20.0).transform.layers[0]
    assert layer.layer.univariate.nodes == 200


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: MLP(3, 2, (8, 0)),
            "MLP expected hidden_dims to be a sequence of integers >= 1, but got (8, 0). Give",
        ),
        (
            lambda: MaskedMLP(order_adjacency(3), 2, hidden_dims=(0,)),
            "MaskedMLP expected hidden_dims to be a sequence of integers >= 1, but got (0,).",
        ),
        (lambda: AffineCoupling(3, hidden_dims=(0,)), "integers >= 1, but got (0,)."),
        (
            lambda: flows.make("nsf", 3, hidden_dims=64),
            "MLP expected hidden_dims to be a sequence",
        ),
        (lambda: flows.make("maf", 3, hidden_dims=(8.5,)), "MaskedMLP expected hidden_dims to be"),
        (lambda: LipschitzMLP(3, hidden_dims=(0,)), "LipschitzMLP expected hidden_dims to be a s"),
        (lambda: flows.make("bnaf", 3, hidden_factors=8), "but got hidden_factors=8. Give (8, 8)"),
        (lambda: flows.make("sylvester", 3, rank=1.5), "a rank of 1 to dim=3, but got 1.5."),
        (lambda: flows.make("ncsf", 3, bins=1.5), "between 1 and 500 bins, but got bins=1.5."),
        (lambda: CubicSpline(bins="a"), "but got bins='a' and bound=5.0."),
        (lambda: Moebius(1.5), "Moebius expected at least one component, but got 1.5."),
        (
            lambda: Autoregressive(2, Sigmoid()),
            "Autoregressive has nothing to decide: Sigmoid() has no parameters. Use Elementwise",
        ),
        (
            lambda: flows.make("nsf", 3, layers=0),
            "A flow expected at least one layer, but got none",
        ),
        (
            lambda: flows.make("maf", 3, layers=0),
            "A flow expected at least one layer, but got none",
        ),
    ],
)
def test_impossible_networks_and_stacks(make, text):
    with pytest.raises(ShapeError, match=re.escape(text)):
        make()


def test_the_default_flow_may_have_couplings_along_the_hierarchy_alone():
    layers = flows.make("default", 3, layers=0, levels=[0, 1, 1]).transform.layers
    assert [type(layer) for layer in layers] == [Coupling, Cayley]
