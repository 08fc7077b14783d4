# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Normalizing flows for Pyro: guides, layers, density, judged posteriors."""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

from pyro_flows._version import __version__

if TYPE_CHECKING:
    from pyro_flows import distributions, flows, transforms
    from pyro_flows.density import FlowDensity
    from pyro_flows.distributions import Flow
    from pyro_flows.guides import AutoFlow
    from pyro_flows.inference import (
        FlowVI,
        Posterior,
        assess,
        compare,
        importance_resampling,
        independence_metropolis,
        loo,
        neutra_nuts,
        predictive,
        warm_start,
    )

__all__ = [
    "AutoFlow",
    "Flow",
    "FlowDensity",
    "FlowVI",
    "Posterior",
    "__version__",
    "assess",
    "compare",
    "distributions",
    "flows",
    "importance_resampling",
    "independence_metropolis",
    "loo",
    "neutra_nuts",
    "predictive",
    "transforms",
    "warm_start",
]

# Where the names are that are no rooms themselves.
_HOMES = ("inference", "guides", "density", "distributions")

if not TYPE_CHECKING:  # a type checker should go on to complain about names that aren't there

    def __getattr__(name: str) -> Any:
        """Import a name when it is asked for: ``pyro-flows --help`` waits for no torch."""
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
