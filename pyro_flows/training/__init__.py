# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The training loop, shared by everything that fits a flow."""

from pyro_flows.training.loop import Words, train
from pyro_flows.training.schedule import Schedule
from pyro_flows.training.score import INSIDE, Report, Score

__all__ = ["INSIDE", "Report", "Schedule", "Score", "Words", "train"]
