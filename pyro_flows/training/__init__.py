# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The training loop, shared by everything that fits a flow."""

from pyro_flows.training.loop import Report, Schedule, Score, train

__all__ = ["Report", "Schedule", "Score", "train"]
