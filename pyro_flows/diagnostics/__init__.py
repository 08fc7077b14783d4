# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""Arrays in, judgement out: importance weights, plots, and results as ArviZ knows them.

This room imports neither torch nor Pyro, and ArviZ and matplotlib only where they are used.
"""

from .arviz_seam import (
    arviz_major,
    group_dataset,
    import_arviz,
    load_netcdf,
    psislw,
    save_netcdf,
    to_container,
)
from .plots import plot_marginals, plot_posterior_overview, plot_training, plot_weights
from .psis import (
    ImportanceWeights,
    importance_weights,
    khat_threshold,
    resample,
    weighted_mcse,
)
from .verdict import Verdict, judge

__all__ = [
    "ImportanceWeights",
    "Verdict",
    "arviz_major",
    "group_dataset",
    "import_arviz",
    "importance_weights",
    "judge",
    "khat_threshold",
    "load_netcdf",
    "plot_marginals",
    "plot_posterior_overview",
    "plot_training",
    "plot_weights",
    "psislw",
    "resample",
    "save_netcdf",
    "to_container",
    "weighted_mcse",
]
