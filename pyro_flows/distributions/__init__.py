# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Flows as Pyro distributions."""

from pyro_flows.distributions.base import StandardNormal
from pyro_flows.distributions.flow import Flow, FlowDistribution

__all__ = ["Flow", "FlowDistribution", "StandardNormal"]
