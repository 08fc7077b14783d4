# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Named flow architectures and their registry."""

from pyro_flows.flows.autoregressive import iaf, maf, nsf_ar
from pyro_flows.flows.blocks import bnaf
from pyro_flows.flows.circular import ncsf
from pyro_flows.flows.continuous import ffjord
from pyro_flows.flows.contractions import iresnet, residual
from pyro_flows.flows.coupling import nice, nsf, realnvp
from pyro_flows.flows.facts import FlowFacts
from pyro_flows.flows.hierarchy import default
from pyro_flows.flows.images import glow
from pyro_flows.flows.neural_autoregressive import bpf, naf, sospf, unaf
from pyro_flows.flows.registry import available, check_name, facts, make, register_flow, table
from pyro_flows.flows.ridges import planar, radial, sylvester
from pyro_flows.flows.rotations import gaussianization

__all__ = [
    "FlowFacts",
    "available",
    "bnaf",
    "bpf",
    "check_name",
    "default",
    "facts",
    "ffjord",
    "gaussianization",
    "glow",
    "iaf",
    "iresnet",
    "maf",
    "make",
    "naf",
    "ncsf",
    "nice",
    "nsf",
    "nsf_ar",
    "planar",
    "radial",
    "realnvp",
    "register_flow",
    "residual",
    "sospf",
    "sylvester",
    "table",
    "unaf",
]
