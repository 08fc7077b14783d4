# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Density estimation: flows fitted to rows of data."""

from pyro_flows.density.columns import Columns
from pyro_flows.density.flow_density import FlowDensity

__all__ = ["Columns", "FlowDensity"]
