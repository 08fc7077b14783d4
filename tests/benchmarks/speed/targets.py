# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Data, sizes and exact answers, as numpy arrays: the same for torch and for JAX."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

Array = np.ndarray

# The spline flows whose training step is timed, and the autoregressive ones that are drawn from.
LAYERS, HIDDEN, BINS, BOUND = 5, (64, 64), 8, 5.0
ROWS, LEARNING_RATE = 256, 1e-3
# An ELBO step: affine couplings, and draws.
COUPLINGS, PARTICLES = 6, 128

# Rubin (1981), Journal of Educational Statistics 6: effects and standard errors of eight schools.
SCHOOLS = (
    np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]),
    np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]),
)


def rows(dim: int) -> Array:
    """The batch of a training step, nearly all of it inside the splines' box."""
    return np.random.default_rng(0).standard_normal((ROWS, dim)).astype(np.float32)


def observations(model: str) -> tuple[Array, Array]:
    """Observed effects and their standard errors, for a model of two levels."""
    if model == "eight schools":
        return SCHOOLS
    random = np.random.default_rng(0)
    sigma = random.uniform(0.5, 2.0, 88)
    return 1.0 + 0.7 * random.standard_normal(88) + sigma * random.standard_normal(88), sigma


def logistic(count: int, columns: int = 10) -> tuple[Array, Array]:
    """Rows of a logistic regression, ``(count, columns)``, and the outcomes."""
    random = np.random.default_rng(0)
    x = random.standard_normal((count, columns))
    chance = 1 / (1 + np.exp(-x @ np.linspace(-1.0, 1.0, columns)))
    return x, (random.random(count) < chance).astype(float)


def eight_schools() -> tuple[float, Array, Array]:
    """log Z of centred eight schools, and the means and sds of (mu, log tau, theta).

    Given tau all else is Gaussian; tau is integrated by the trapezoidal rule over its log.
    """
    y, sigma = SCHOOLS
    log_tau = np.linspace(-30.0, 15.0, 20_001)
    tau2 = np.exp(2 * log_tau)[:, None]
    variance = sigma**2 + tau2
    precision = 1 / 25 + (1 / variance).sum(1)
    mu = (y / variance).sum(1) / precision
    log_mass = (precision * mu**2 - (y**2 / variance + np.log(2 * math.pi * variance)).sum(1)) / 2
    log_mass -= np.log(25 * precision) / 2
    log_mass += math.log(2 / (5 * math.pi)) - np.log1p(tau2[:, 0] / 25) + log_tau
    peak = log_mass.max()
    mass = np.exp(log_mass - peak)
    log_z = peak + math.log(mass.sum() * (log_tau[1] - log_tau[0]))
    kept = tau2 / variance  # of a school's own effect, the rest is shrunk to mu
    means = [mu, log_tau, *(kept * y + (1 - kept) * mu[:, None]).T]
    own = kept * sigma**2 + (1 - kept) ** 2 / precision[:, None]
    variances = [1 / precision, np.zeros_like(mu), *own.T]
    weights = mass / mass.sum()
    mean = np.array(means) @ weights
    sd = np.sqrt((np.array(variances) + (np.array(means) - mean[:, None]) ** 2) @ weights)
    return log_z, mean, sd


def errors(mu: Array, tau: Array, theta: Array) -> dict[str, Any]:
    """The largest error of a mean and of an sd over (mu, log tau, theta), in sds."""
    _, mean, sd = eight_schools()
    draws = np.column_stack([mu.ravel(), np.log(tau.ravel()), theta.reshape(-1, 8)])
    return {
        "mean_error": float((np.abs(draws.mean(0) - mean) / sd).max()),
        "sd_error": float(np.abs(draws.std(0) / sd - 1).max()),
    }
