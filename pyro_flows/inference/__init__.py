# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Inference from start to judgement."""

from pyro_flows.inference.assessment import assess
from pyro_flows.inference.calibration import calibrate
from pyro_flows.inference.flow_vi import FlowVI
from pyro_flows.inference.gaussian import Gaussian
from pyro_flows.inference.loo import compare, loo
from pyro_flows.inference.mcmc import from_mcmc
from pyro_flows.inference.metropolis import independence_metropolis
from pyro_flows.inference.neutra import neutra_nuts
from pyro_flows.inference.objectives import Objective
from pyro_flows.inference.posterior import Pool, Posterior
from pyro_flows.inference.predictive import predictive
from pyro_flows.inference.predictive_check import predictive_check
from pyro_flows.inference.refits import Refits, refit
from pyro_flows.inference.resampling import importance_resampling
from pyro_flows.inference.sensitivity import sensitivity
from pyro_flows.inference.warm_start import Start, find_gaussian, find_start, warm_start

__all__ = [
    "FlowVI",
    "Gaussian",
    "Objective",
    "Pool",
    "Posterior",
    "Refits",
    "Start",
    "assess",
    "calibrate",
    "compare",
    "find_gaussian",
    "find_start",
    "from_mcmc",
    "importance_resampling",
    "independence_metropolis",
    "loo",
    "neutra_nuts",
    "predictive",
    "predictive_check",
    "refit",
    "sensitivity",
    "warm_start",
]
