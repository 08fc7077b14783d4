# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What a layer does to one number."""

from pyro_flows.transforms.elementwise.activations import (
    LeakyReLU,
    LeakyTanh,
    PReLU,
)
from pyro_flows.transforms.elementwise.bernstein import Bernstein
from pyro_flows.transforms.elementwise.circular import (
    CircularSpline,
    Moebius,
)
from pyro_flows.transforms.elementwise.deep_sigmoidal import DeepSigmoidal
from pyro_flows.transforms.elementwise.layer import Elementwise
from pyro_flows.transforms.elementwise.mixture_cdf import Gaussianization, LogisticMixture
from pyro_flows.transforms.elementwise.monotonic_network import MonotonicNetwork
from pyro_flows.transforms.elementwise.root_finding import RootFinding
from pyro_flows.transforms.elementwise.sinh_arcsinh import SinhArcsinh
from pyro_flows.transforms.elementwise.splines import (
    CubicSpline,
    LinearRationalSpline,
    PiecewiseLinear,
    QuadraticSpline,
)
from pyro_flows.transforms.elementwise.squashes import (
    ELU,
    Sigmoid,
    Softplus,
    Tanh,
)
from pyro_flows.transforms.elementwise.sum_of_squares import SumOfSquares
from pyro_flows.transforms.elementwise.tail_transform import TailTransform
from pyro_flows.transforms.elementwise.univariate import (
    Affine,
    Chain,
    RationalQuadraticSpline,
    Shift,
    Univariate,
)

__all__ = [
    "ELU",
    "Affine",
    "Bernstein",
    "Chain",
    "CircularSpline",
    "CubicSpline",
    "DeepSigmoidal",
    "Elementwise",
    "Gaussianization",
    "LeakyReLU",
    "LeakyTanh",
    "LinearRationalSpline",
    "LogisticMixture",
    "Moebius",
    "MonotonicNetwork",
    "PReLU",
    "PiecewiseLinear",
    "QuadraticSpline",
    "RationalQuadraticSpline",
    "RootFinding",
    "Shift",
    "Sigmoid",
    "SinhArcsinh",
    "Softplus",
    "SumOfSquares",
    "TailTransform",
    "Tanh",
    "Univariate",
]
