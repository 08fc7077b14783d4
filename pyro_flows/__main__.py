# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""``python -m pyro_flows`` is ``pyro-flows``."""

import sys

from pyro_flows.cli import main

if __name__ == "__main__":
    sys.exit(main())
