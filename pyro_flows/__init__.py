# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Normalizing flows for Pyro: guides, layers, density, judged posteriors."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from pyro_flows._version import __version__

# What a type checker reads; at run time a name is imported when it is first asked for.
if TYPE_CHECKING:
    from pyro_flows import distributions, flows, transforms
    from pyro_flows.density import *
    from pyro_flows.distributions import *
    from pyro_flows.guides import *
    from pyro_flows.inference import *

__all__ = [
    "AutoFlow",
    "Flow",
    "FlowDensity",
    "FlowVI",
    "Posterior",
    "Refits",
    "__version__",
    "assess",
    "calibrate",
    "compare",
    "distributions",
    "flows",
    "from_mcmc",
    "importance_resampling",
    "independence_metropolis",
    "loo",
    "neutra_nuts",
    "predictive",
    "predictive_check",
    "refit",
    "sensitivity",
    "transforms",
    "warm_start",
]

# Where the names are that are no rooms themselves: to publish another, add it to __all__.
_HOMES = ("inference", "guides", "density", "distributions")

if not TYPE_CHECKING:  # a type checker should go on to complain about names that aren't there

    def __getattr__(name: str) -> Any:
        """Import a name when it is asked for, so that ``pyro-flows --help`` waits for no torch."""
        if not name.startswith("_") and importlib.util.find_spec(f"{__name__}.{name}"):
            return importlib.import_module(f"{__name__}.{name}")
        for home in _HOMES if name in __all__ else ():
            room = importlib.import_module(f"{__name__}.{home}")
            if name in room.__all__:
                value = globals()[name] = getattr(room, name)
                return value
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
