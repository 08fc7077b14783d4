# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Flows as Pyro distributions, what they start from, and mixtures of them."""

from pyro_flows.distributions.base import Base, StandardNormal
from pyro_flows.distributions.correlated_mixture import CorrelatedMixture
from pyro_flows.distributions.flow import Flow, FlowDistribution
from pyro_flows.distributions.gaussian_mixture import GaussianMixture
from pyro_flows.distributions.mixture import FlowMixture, FlowMixtureDistribution
from pyro_flows.distributions.resampled import ResampledBase
from pyro_flows.distributions.student_t import StudentT
from pyro_flows.distributions.uniform_box import UniformBox

__all__ = [
    "Base",
    "CorrelatedMixture",
    "Flow",
    "FlowDistribution",
    "FlowMixture",
    "FlowMixtureDistribution",
    "GaussianMixture",
    "ResampledBase",
    "StandardNormal",
    "StudentT",
    "UniformBox",
]
