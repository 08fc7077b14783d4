# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Normalizing flows for Pyro: guides, layers, density, judged posteriors."""

from pyro_flows import distributions, flows, transforms
from pyro_flows._version import __version__
from pyro_flows.density import FlowDensity
from pyro_flows.distributions import Flow
from pyro_flows.guides import AutoFlow
from pyro_flows.inference import FlowVI, Posterior, assess, warm_start

__all__ = [
    "AutoFlow",
    "Flow",
    "FlowDensity",
    "FlowVI",
    "Posterior",
    "__version__",
    "assess",
    "distributions",
    "flows",
    "transforms",
    "warm_start",
]
