# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The command line ``pyro-flows``: it parses, calls a room, and prints."""

from pyro_flows.cli.program import main

__all__ = ["main"]
