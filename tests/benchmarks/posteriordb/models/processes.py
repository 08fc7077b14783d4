# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Gaussian processes: gp_regr, gp_pois_regr and accel_gp."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from .common import Data, Entries, Port, Variables, vector

JITTER = 1e-10  # of gp_pois_regr; the reference draws were made with it

# Models


def gp_regression(x: Tensor, y: Tensor) -> None:
    """Regression with the process integrated out. ``sigma`` is a variance, as in Stan's code."""
    rho, alpha = _gp_hyperpriors(y)
    sigma = pyro.sample("sigma", dist.HalfNormal(y.new_tensor(1.0)))
    scale_tril = cholesky(exp_quad(x, alpha, rho), sigma)
    pyro.sample("y", dist.MultivariateNormal(torch.zeros_like(y), scale_tril=scale_tril), obs=y)


def gp_poisson_regression(x: Tensor, k: Tensor) -> None:
    """Counts whose log rate is a Gaussian process, ``f = L f_tilde``."""
    rho, alpha = _gp_hyperpriors(x)
    f_tilde = pyro.sample("f_tilde", dist.Normal(torch.zeros_like(x), 1.0).to_event(1))
    scale_tril = cholesky(exp_quad(x, alpha, rho), x.new_tensor(JITTER))
    f = (scale_tril @ f_tilde.unsqueeze(-1)).squeeze(-1)
    pyro.sample("k", dist.Poisson(f.exp()).to_event(1), obs=k)


def accel_gp(
    mean_basis: Tensor, mean_slambda: Tensor, sd_basis: Tensor, sd_slambda: Tensor, y: Tensor
) -> None:
    """Acceleration of a head in a crash: processes for the mean and for the log sd.

    Args:
        mean_basis: Eigenfunctions at the observations, ``(N, 40)``.
        mean_slambda: Square roots of their eigenvalues, ``(40,)``.
        sd_basis: The same for the log sd, ``(N, 20)``.
        sd_slambda: The same for the log sd, ``(20,)``.
        y: The accelerations, ``(N,)``.
    """
    three = y.new_tensor(3.0)
    intercept = pyro.sample("Intercept", dist.StudentT(three, -13.0, 36.0))
    mean = intercept.unsqueeze(-1) + _approximate_gp("1", mean_basis, mean_slambda)
    intercept = pyro.sample("Intercept_sigma", dist.StudentT(three, 0.0, 10.0))
    log_sd = intercept.unsqueeze(-1) + _approximate_gp("sigma_1", sd_basis, sd_slambda)
    pyro.sample("y", dist.Normal(mean, log_sd.exp()).to_event(1), obs=y)


def _gp_hyperpriors(like: Tensor) -> tuple[Tensor, Tensor]:
    rho = pyro.sample("rho", dist.Gamma(like.new_tensor(25.0), 4.0))
    return rho, pyro.sample("alpha", dist.HalfNormal(like.new_tensor(2.0)))


def _approximate_gp(name: str, basis: Tensor, slambda: Tensor) -> Tensor:
    """A Gaussian process by its Laplacian eigenfunctions (Solin and Sarkka 2020)."""
    half_t = dist.FoldedDistribution(dist.StudentT(basis.new_tensor(3.0), 0.0, 36.0))
    sd = pyro.sample(f"sdgp_{name}", half_t).unsqueeze(-1)
    prior = dist.InverseGamma(basis.new_tensor(1.124909), 0.0177)
    length = pyro.sample(f"lscale_{name}", prior).unsqueeze(-1)
    z = pyro.sample(f"zgp_{name}", dist.Normal(torch.zeros_like(slambda), 1.0).to_event(1))
    # The square root of the spectral density, which Stan takes: its gradient is finite where the
    # density itself underflows.
    root = sd * (math.sqrt(2 * math.pi) * length).sqrt() * (-0.25 * (length * slambda) ** 2).exp()
    return (root * z) @ basis.mT


def exp_quad(x: Tensor, alpha: Tensor, rho: Tensor) -> Tensor:
    """The covariance alpha^2 exp(-(x - x')^2 / (2 rho^2)), of shape ``(..., N, N)``."""
    scaled = (x.unsqueeze(-1) - x) / rho[..., None, None]
    return alpha[..., None, None].square() * (-0.5 * scaled.square()).exp()


def cholesky(cov: Tensor, added: Tensor) -> Tensor:
    """The Cholesky factor of ``cov + added * I``; NaN where there is none.

    ``torch.linalg.cholesky`` would raise for all particles where it fails for one.
    """
    eye = torch.eye(cov.shape[-1], dtype=cov.dtype)
    factor, info = torch.linalg.cholesky_ex(cov + added[..., None, None] * eye)
    return torch.where((info == 0)[..., None, None], factor, math.nan)


# Builders


def _gp_regr(data: Data) -> Port:
    return Port(gp_regression, (vector(data["x"]), vector(data["y"])))


def _gp_pois_regr(data: Data) -> Port:
    x = vector(data["x"])

    def to_sites(draws: Variables) -> Variables:
        alpha, rho = torch.from_numpy(draws["alpha"]), torch.from_numpy(draws["rho"])
        scale_tril = cholesky(exp_quad(x, alpha, rho), x.new_tensor(JITTER)).numpy()
        f_tilde = np.linalg.solve(scale_tril, draws["f"][..., None])[..., 0]
        return {"rho": draws["rho"], "alpha": draws["alpha"], "f_tilde": f_tilde}

    return Port(gp_poisson_regression, (x, vector(data["k"])), to_sites)


def _accel_gp(data: Data) -> Port:
    args = [vector(data[name]) for name in ("Xgp_1", "slambda_1", "Xgp_sigma_1")]
    args += [vector(data[name]) for name in ("slambda_sigma_1", "Y")]
    args[1], args[3] = args[1].squeeze(-1), args[3].squeeze(-1)
    return Port(accel_gp, tuple(args), moments=True)


ENTRIES: Entries = {
    "gp_regr": ("gp_pois_regr-gp_regr", _gp_regr),
    "gp_pois_regr": ("gp_pois_regr-gp_pois_regr", _gp_pois_regr),
    "accel_gp": ("mcycle_gp-accel_gp", _accel_gp),
}
