# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Pure tensor functions: no parameters, no Pyro."""

from pyro_flows.ops.autoregressive_masks import (
    autoregressive_masks,
    generations,
    order_adjacency,
)
from pyro_flows.ops.circle import (
    moebius_mixture,
    wrap,
)
from pyro_flows.ops.clusters import kmeans
from pyro_flows.ops.gaussians import Gaussians, factor_covariance, fit_gaussians
from pyro_flows.ops.implicit import implicit_fixed_point, solve_by_passes
from pyro_flows.ops.linear_rational_splines import (
    linear_rational_spline,
)
from pyro_flows.ops.masks import (
    alternating_masks,
    channel_mask,
    checkerboard_mask,
    random_mask,
)
from pyro_flows.ops.matrices import (
    cosines,
    matvec,
    strict_lower,
    strict_lower_positions,
    triangular_solve,
)
from pyro_flows.ops.mixtures import logit_of_mixture, probit_of_mixture
from pyro_flows.ops.near_identity import contraction_inverse, log_det, near_identity_inverse
from pyro_flows.ops.normal import log_normal_cdf, normal_quantile_of_log
from pyro_flows.ops.ode import integrate, integrate_adaptive, runge_kutta_step
from pyro_flows.ops.polynomial_splines import (
    cubic_spline,
    piecewise_linear,
    quadratic_spline,
)
from pyro_flows.ops.polynomials import bernstein_basis, powers
from pyro_flows.ops.quadrature import gauss_legendre
from pyro_flows.ops.rank_one import rank_ones, rank_ones_inverse
from pyro_flows.ops.roots import fixed_point, monotone_inverse
from pyro_flows.ops.spectral import spectral_norm_bound
from pyro_flows.ops.splines import (
    periodic_rational_quadratic_spline,
    rational_quadratic_spline,
)
from pyro_flows.ops.squashes import (
    elu_squash,
    leaky_tanh,
    sigmoid_squash,
    softplus_squash,
    tanh_squash,
)
from pyro_flows.ops.stable import soft_clamp
from pyro_flows.ops.tails import linear_tails
from pyro_flows.ops.trace import (
    log_det_estimate,
    rademacher,
    terms_until,
)
from pyro_flows.ops.tracing import is_recording

__all__ = [
    "Gaussians",
    "alternating_masks",
    "autoregressive_masks",
    "bernstein_basis",
    "channel_mask",
    "checkerboard_mask",
    "contraction_inverse",
    "cosines",
    "cubic_spline",
    "elu_squash",
    "factor_covariance",
    "fit_gaussians",
    "fixed_point",
    "gauss_legendre",
    "generations",
    "implicit_fixed_point",
    "integrate",
    "integrate_adaptive",
    "is_recording",
    "kmeans",
    "leaky_tanh",
    "linear_rational_spline",
    "linear_tails",
    "log_det",
    "log_det_estimate",
    "log_normal_cdf",
    "logit_of_mixture",
    "matvec",
    "moebius_mixture",
    "monotone_inverse",
    "near_identity_inverse",
    "normal_quantile_of_log",
    "order_adjacency",
    "periodic_rational_quadratic_spline",
    "piecewise_linear",
    "powers",
    "probit_of_mixture",
    "quadratic_spline",
    "rademacher",
    "random_mask",
    "rank_ones",
    "rank_ones_inverse",
    "rational_quadratic_spline",
    "runge_kutta_step",
    "sigmoid_squash",
    "soft_clamp",
    "softplus_squash",
    "solve_by_passes",
    "spectral_norm_bound",
    "strict_lower",
    "strict_lower_positions",
    "tanh_squash",
    "terms_until",
    "triangular_solve",
    "wrap",
]
