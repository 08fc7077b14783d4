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
    rhat_and_ess,
    save_netcdf,
    to_container,
)
from .calibration import Calibration, rank_among
from .calibration_plots import plot_coverage, plot_ecdf_difference, plot_ranks
from .chains import Convergence, convergence
from .comparison import compare_loo
from .ecdf_bands import ecdf_band, ecdf_p_value
from .forest import plot_forest
from .loo import LOO, psis_loo
from .pairs import plot_pairs
from .plots import plot_marginals, plot_posterior_overview, plot_training, plot_weights
from .predictive_check import PredictiveCheck, loo_pit, predictive_pvalues
from .predictive_plots import plot_predictive_check
from .psis import (
    ImportanceWeights,
    importance_weights,
    khat_threshold,
    resample,
    weighted_mcse,
)
from .sensitivity import power_scale_sensitivity
from .verdict import Remark, Verdict, judge

__all__ = [
    "Calibration",
    "Convergence",
    "ImportanceWeights",
    "LOO",
    "PredictiveCheck",
    "Remark",
    "Verdict",
    "arviz_major",
    "compare_loo",
    "convergence",
    "ecdf_band",
    "ecdf_p_value",
    "group_dataset",
    "import_arviz",
    "importance_weights",
    "judge",
    "khat_threshold",
    "load_netcdf",
    "loo_pit",
    "plot_coverage",
    "plot_ecdf_difference",
    "plot_forest",
    "plot_marginals",
    "plot_pairs",
    "plot_posterior_overview",
    "plot_predictive_check",
    "plot_ranks",
    "plot_training",
    "plot_weights",
    "power_scale_sensitivity",
    "predictive_pvalues",
    "psis_loo",
    "psislw",
    "rank_among",
    "resample",
    "rhat_and_ess",
    "save_netcdf",
    "to_container",
    "weighted_mcse",
]
