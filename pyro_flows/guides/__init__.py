# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Guides made of flows, and a Pyro model's log joint as a tensor function."""

from pyro_flows.guides.auto_flow import AutoFlow
from pyro_flows.guides.initialization import init_to_median_or_feasible
from pyro_flows.guides.log_joint import LogJoint
from pyro_flows.guides.unpack import constrain, named_sites, unconstrain

__all__ = [
    "AutoFlow",
    "LogJoint",
    "constrain",
    "init_to_median_or_feasible",
    "named_sites",
    "unconstrain",
]
