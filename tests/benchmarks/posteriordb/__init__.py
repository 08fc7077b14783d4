# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Ports of posteriordb models to Pyro, with their data, reference draws and log Z."""

from .database import Database, Draws, MissingData
from .models import targets
from .target import Target

__all__ = ["Database", "Draws", "MissingData", "Target", "targets"]
