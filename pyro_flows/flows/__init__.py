# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Named flow architectures and their registry."""

from pyro_flows.flows.architectures import nice, nsf, realnvp
from pyro_flows.flows.registry import available, check_name, make, register_flow

__all__ = ["available", "check_name", "make", "nice", "nsf", "realnvp", "register_flow"]
