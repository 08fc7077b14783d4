# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Conditioners: networks that make a transform's parameters. No Pyro."""

from pyro_flows.nn.lipschitz import LipschitzMLP
from pyro_flows.nn.masked import MaskedLinear, MaskedMLP
from pyro_flows.nn.mlp import MLP
from pyro_flows.nn.parameters import Parameters
from pyro_flows.nn.walk import Walk, Walkable

__all__ = [
    "MLP",
    "LipschitzMLP",
    "MaskedLinear",
    "MaskedMLP",
    "Parameters",
    "Walk",
    "Walkable",
]
