# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Checks that hold for every target, whatever its family; the tests call them."""

from __future__ import annotations

import math

import pyro
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import biject_to
from torch.func import grad, vmap

from .target import Target

MAX_Z_SCORE = 4.5


def reference(target: Target, count: int) -> Tensor:
    """Every n-th reference draw, unconstrained, of shape ``(count, D)``."""
    z = target.unconstrain(target.reference())
    return z[:: len(z) // count][:count]


def constrain(target: Target, z: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Site values ``(P, *shape)`` and log|J| ``(P,)``."""
    sites, ladj, start = {}, z.new_zeros(len(z)), 0
    for name, (support, shape) in target.latents.items():
        to_support = biject_to(support)
        free_shape = to_support.inverse_shape(shape)
        stop = start + math.prod(free_shape)
        free = z[:, start:stop].reshape(-1, *free_shape)
        sites[name] = to_support(free)
        each = to_support.log_abs_det_jacobian(free, sites[name])
        ladj = ladj + each.reshape(len(z), -1).sum(-1)
        start = stop
    return sites, ladj


def assert_score_identities(target: Target, count: int = 10_000) -> None:
    """E[grad log p] = 0 and E[(z - m) grad log p] = -1 under independent reference draws."""
    z = reference(target, count)
    with pyro.validation_enabled(False):
        score = vmap(grad(target._log_joint_at), chunk_size=1000)(z)
    assert torch.isfinite(score).all()
    # Any constant will do for m; the median exists where the mean doesn't.
    for identity in (score, (z - z.median(0).values) * score + 1):
        z_score = identity.mean(0) / (identity.std(0) / math.sqrt(len(z)))
        assert z_score.abs().max() < MAX_Z_SCORE, f"{target.name}: {z_score.tolist()}"


def assert_vectorised(target: Target, z: Tensor) -> None:
    """Particles in a plate left of the model's own score as they do one at a time."""
    sites, log_p = constrain(target, z)
    with pyro.validation_enabled(False):
        one = poutine.trace(poutine.condition(target.model, {k: v[0] for k, v in sites.items()}))
        alone = one.get_trace(*target.args, **target.kwargs)
        stochastic = [s for s in alone.nodes.values() if _counts(s)]
        nesting = max([-f.dim for s in stochastic for f in s["cond_indep_stack"]], default=0)
        values = {}
        for name, value in sites.items():
            # Ones between the particles and what the site has of its own plates.
            missing = nesting - len(alone.nodes[name]["fn"].batch_shape)
            values[name] = value.reshape(len(z), *[1] * missing, *value.shape[1:])
        with pyro.plate("particles", len(z), dim=-1 - nesting):
            traced = poutine.trace(poutine.condition(target.model, data=values))
            together = traced.get_trace(*target.args, **target.kwargs)
        together.compute_log_prob()
    for site in together.nodes.values():
        if _counts(site):
            assert site["log_prob"].shape[0] == len(z)
            log_p = log_p + site["log_prob"].reshape(len(z), -1).sum(-1)
    torch.testing.assert_close(log_p, target.log_joint(z), equal_nan=True)


def assert_packages(target: Target, z: Tensor) -> None:
    """The package's log joint is this target's, in float64."""
    from pyro_flows.guides import AutoFlow, LogJoint

    pyro.clear_param_store()
    # The dtype is given because a flat prior and a factor show none.
    guide = AutoFlow(target.model, dtype=torch.float64)
    guide = guide.setup(*target.args, **target.kwargs)
    log_joint = LogJoint(target.model, guide, target.args, target.kwargs)
    torch.testing.assert_close(
        log_joint(z).detach(), target.log_joint(z), rtol=1e-9, atol=1e-8, equal_nan=True
    )


def assert_shares(target: Target, tolerance: float) -> None:
    """The reference draws fall on the modes as the true shares say, in total variation."""
    modes = target.modes
    assert modes is not None
    assert math.isclose(modes.shares.sum().item(), 1.0, abs_tol=1e-9)
    z = target.unconstrain(target.reference())
    found = torch.bincount(modes.assign(z), minlength=len(modes.shares)) / len(z)
    assert 0.5 * (found - modes.shares).abs().sum().item() < tolerance


def importance_log_z(
    target: Target, z: Tensor, *, rounds: int = 3, df: int = 20
) -> tuple[float, float]:
    """log Z and its standard error by importance sampling from a Student-t, adapted.

    Args:
        z: Points that have roughly the posterior's mean and covariance.
    """
    generator = torch.Generator().manual_seed(0)
    loc, cov = z.mean(0), z.T.cov().reshape(z.shape[1], z.shape[1])
    for _ in range(rounds):
        draws, log_q = _student_draws(loc, cov, 20_000, generator, df)
        lw = target.log_joint(draws) - log_q
        lw = torch.where(lw.isnan(), -torch.inf, lw)
        w = torch.softmax(lw, 0)
        loc = w @ draws
        cov = (draws - loc).T @ (w[:, None] * (draws - loc))
    log_z = (torch.logsumexp(lw, 0) - math.log(len(lw))).item()
    return log_z, ((w * len(w)).std() / math.sqrt(len(w))).item()


def _student_draws(
    loc: Tensor, cov: Tensor, count: int, generator: torch.Generator, df: int
) -> tuple[Tensor, Tensor]:
    dim, tril = len(loc), torch.linalg.cholesky(cov)
    normal = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    chi = torch.randn(count, df, generator=generator, dtype=torch.float64).square().sum(-1)
    scaled = normal / (chi[:, None] / df).sqrt()
    constant = math.lgamma((df + dim) / 2) - math.lgamma(df / 2) - dim / 2 * math.log(df * math.pi)
    log_q = constant - tril.diagonal().log().sum()
    return loc + scaled @ tril.T, log_q - (df + dim) / 2 * (scaled**2).sum(-1).div(df).log1p()


def _counts(site: dict) -> bool:
    return site["type"] == "sample" and not poutine.util.site_is_subsample(site)
