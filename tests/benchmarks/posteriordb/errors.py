# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""How far draws are from what is known of a target."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scoring import QUANTILES, moment_errors, quantile_errors, tail_index, total_variation
from torch.distributions import biject_to

from .database import MissingData
from .target import Moments, Sites, Target

Row = dict[str, Any]

# Above these tail indices a mean, or a standard deviation, has no error to speak of.
MEAN_NEEDS, SD_NEEDS = 0.5, 0.25
_TAILS: dict[str, np.ndarray] = {}


def errors(target: Target, sites: Sites) -> Row:
    """The largest errors of draws against the reference draws, or the reference moments.

    Args:
        target: With reference draws, moments, modes, or none of these.
        sites: Constrained draws, site -> ``(n, *shape)``.

    Returns:
        None for what isn't known: ``mean``, ``log_sd`` (on the unconstrained scale, where the
        reference's tails allow them), ``met`` (each within its bar), ``quantile`` (constrained),
        ``modes`` (total variation of the shares), ``missing`` (modes with less than half of their
        share), ``worst`` (the coordinate of the largest mean error). inf where draws aren't
        numbers.
    """
    out: Row = dict.fromkeys(("mean", "log_sd", "met", "quantile", "modes", "missing", "worst"))
    sites = {name: torch.as_tensor(sites[name], dtype=torch.float64) for name in target.latents}
    if not all(bool(torch.isfinite(value).all()) for value in sites.values()):
        known = ("modes", "missing") if target.modes is not None else ()
        return (
            out | dict.fromkeys((*known, "mean", "log_sd", "quantile"), math.inf) | {"met": False}
        )
    if target.modes is not None:
        out["modes"], out["missing"] = mode_errors(target, sites)
    try:
        reference = target.reference()
    except MissingData:
        return out | _against_moments(target, sites)
    if target.canonical is not None:
        sites, reference = target.canonical(sites), target.canonical(reference)
    return out | _against_draws(target, sites, reference)


def mode_errors(target: Target, sites: Sites) -> tuple[float, int]:
    """The total variation of the shares of the modes, and how many have less than half of it."""
    assert target.modes is not None
    index = target.modes.assign(target.unconstrain(sites))
    shares = torch.bincount(index, minlength=len(target.modes.shares)) / len(index)
    missing = int((shares < 0.5 * target.modes.shares).sum())
    return total_variation(shares.numpy(), target.modes.shares.numpy()), missing


def _against_draws(target: Target, sites: Sites, reference: Sites) -> Row:
    z, z_ref = target.unconstrain(sites).numpy(), target.unconstrain(reference).numpy()
    found = moment_errors(z, z_ref)
    tails = _tails(target)
    mean = np.where(tails < MEAN_NEEDS, np.abs(found["mean_error"]), np.nan)
    log_sd = np.where(tails < SD_NEEDS, np.abs(found["log_sd_error"]), np.nan)
    met = not (mean > found["mean_bar"]).any() and not (log_sd > found["log_sd_bar"]).any()
    quantile = quantile_errors(_flat(target, sites), _flat(target, reference))
    return {
        "mean": _largest(mean),
        "log_sd": _largest(log_sd),
        "met": bool(met),
        "quantile": float(np.abs(quantile).max()),
        "worst": None if np.isnan(mean).all() else int(np.nanargmax(mean)),
    }


def _against_moments(target: Target, sites: Sites) -> Row:
    if target.moments is None:
        return {}
    known = target.moments()
    judged = sites if known.constrained else _unconstrained(target, sites)
    mean, log_sd, met = [], [], True
    for name, centre in known.mean.items():
        value, scale = judged[name].numpy(), known.sd[name]
        mean.append(np.abs(value.mean(0) - centre) / scale)
        log_sd.append(np.abs(np.log(value.std(0) / scale)))
        se_mean, se_sd = _errors_of(known, name, len(value))
        met &= bool((mean[-1] <= 0.05 + 3 * se_mean).all())
        met &= bool((log_sd[-1] <= 0.05 + 3 * se_sd).all())
    flat = [np.concatenate([np.ravel(part) for part in parts]) for parts in (mean, log_sd)]
    return {
        "mean": float(flat[0].max()),
        "log_sd": float(flat[1].max()),
        "met": met,
        "quantile": _against_quantiles(known, sites),
        "worst": int(flat[0].argmax()),
    }


def _unconstrained(target: Target, sites: Sites) -> Sites:
    supports = {name: support for name, (support, _) in target.latents.items()}
    return {name: biject_to(support).inv(sites[name]) for name, support in supports.items()}


def _against_quantiles(known: Moments, sites: Sites) -> float | None:
    if known.quantiles is None:
        return None
    levels = np.array(QUANTILES)
    found = [
        np.moveaxis((sites[name].numpy() <= at[:, None]).mean(1), 0, -1) - levels
        for name, at in known.quantiles.items()
    ]
    return float(max(np.abs(part).max() for part in found))


def _errors_of(known: Moments, name: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    scale, ours = known.sd[name], 1 / count
    se_mean = 0.0 if known.mean_se is None else known.mean_se[name] / scale
    se_sd = 0.0 if known.sd_se is None else known.sd_se[name] / scale
    return np.sqrt(np.square(se_mean) + ours), np.sqrt(np.square(se_sd) + ours)


def _tails(target: Target) -> np.ndarray:
    """The tail index of each coordinate of the reference, computed once."""
    if target.name not in _TAILS:
        z = target.unconstrain(target.reference()).numpy()
        _TAILS[target.name] = np.array([tail_index(column) for column in z.T])
    return _TAILS[target.name]


def _flat(target: Target, sites: Sites) -> np.ndarray:
    parts = [np.asarray(sites[name], dtype=np.float64) for name in target.latents]
    return np.concatenate([part.reshape(len(part), -1) for part in parts], 1)


def _largest(values: np.ndarray) -> float | None:
    return None if np.isnan(values).all() else float(np.nanmax(values))
