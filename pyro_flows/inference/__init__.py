# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Inference from start to judgement."""

from pyro_flows.inference.assessment import assess
from pyro_flows.inference.flow_vi import FlowVI
from pyro_flows.inference.gaussian import Gaussian
from pyro_flows.inference.objectives import Objective
from pyro_flows.inference.posterior import Pool, Posterior
from pyro_flows.inference.predictive import predictive
from pyro_flows.inference.warm_start import Start, find_gaussian, find_start, warm_start

__all__ = [
    "FlowVI",
    "Gaussian",
    "Objective",
    "Pool",
    "Posterior",
    "Start",
    "assess",
    "find_gaussian",
    "find_start",
    "predictive",
    "warm_start",
]
