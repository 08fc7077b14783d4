# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Conditioners: networks that make a transform's parameters. No Pyro."""

from pyro_flows.nn.mlp import MLP
from pyro_flows.nn.parameters import Parameters

__all__ = ["MLP", "Parameters"]
