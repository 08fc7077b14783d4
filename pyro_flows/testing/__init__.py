# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The laws every layer obeys, public so that other packages' layers can be held to them."""

from pyro_flows.testing.case import Case
from pyro_flows.testing.laws import EXEMPTIONS, LAWS, check_layer

__all__ = ["EXEMPTIONS", "LAWS", "Case", "check_layer"]
