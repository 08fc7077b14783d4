# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Residual layers: the identity plus something small enough to be undone."""

from pyro_flows.transforms.residual.contractive import ContractiveResidual
from pyro_flows.transforms.residual.planar import Planar
from pyro_flows.transforms.residual.radial import Radial
from pyro_flows.transforms.residual.sylvester import Sylvester

__all__ = ["ContractiveResidual", "Planar", "Radial", "Sylvester"]
