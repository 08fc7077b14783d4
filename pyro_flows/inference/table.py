# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The summary table of a posterior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyro_flows.diagnostics import psislw
from pyro_flows.guides import named_sites

if TYPE_CHECKING:
    from pyro_flows.inference.posterior import Posterior

Array = NDArray[np.float64]
# Draws for the k-hat of each element: a tail fit per element and power.
KHAT_DRAWS = 10_000
MOST_KHATS = 500
LARGEST_KHAT = 0.7
WITHHELD = (
    "sd withheld: the square of the unconstrained value has so heavy a tail (k-hat of 0.7 or "
    "more) that its mean doesn't settle; quantiles can be used"
)


def summarise(posterior: Posterior, interval: float) -> Any:
    """See :meth:`Posterior.summary`."""
    import pandas as pd

    pool, weights = posterior.pool, posterior.weights
    inside = np.isfinite(pool.log_p)
    z = pool.z[inside] if inside.any() else pool.z
    if posterior.corrected:
        log_w = weights.log_weights[inside]
    else:
        log_w = np.full(len(z), -np.log(len(z)))
    w = np.exp(log_w - np.logaddexp.reduce(log_w))
    low, high = (1 - interval) / 2, (1 + interval) / 2
    columns = [
        "mean",
        "sd",
        f"{low:.1%}".replace(".0%", "%"),
        "median",
        f"{high:.1%}".replace(".0%", "%"),
        "mcse",
        "khat",
    ]
    khats, wide = _khats(posterior)
    rows, names, notes = [], [], []
    for name, values in posterior._constrained(z).items():
        flat = values.cpu().double().numpy().reshape(len(z), -1)
        shape = tuple(values.shape[1:])
        mean = w @ flat
        sd = np.sqrt(np.maximum(w @ (flat - mean) ** 2, 0))
        mcse = np.sqrt((w**2) @ (flat - mean) ** 2)
        for i, index in enumerate(np.ndindex(*shape) if shape else [()]):
            quantiles = _quantiles(flat[:, i], w, [low, 0.5, high])
            withheld = wide[name][i]
            rows.append(
                [mean[i], np.nan if withheld else sd[i], *quantiles, mcse[i], khats[name][i]]
            )
            names.append(f"{name}[{','.join(map(str, index))}]" if shape else name)
            notes.append(WITHHELD if withheld else "")
    table = pd.DataFrame(rows, index=names, columns=columns)
    if any(notes):
        table["note"] = notes
    return table


def _quantiles(x: Array, w: Array, q: list[float]) -> list[float]:
    order = np.argsort(x)
    cumulative = np.cumsum(w[order]) - 0.5 * w[order]
    return [float(value) for value in np.interp(q, cumulative, x[order])]


def _khats(posterior: Posterior) -> tuple[dict[str, list[float]], dict[str, list[bool]]]:
    """Per element: the largest k-hat over w, w |h| and w h^2, with h the unconstrained element.

    Also whether its second moment is the only one that the draws can't tell. Draws that are
    handed over as they are have no weights: there it is h^2 alone that counts.
    """
    import torch

    guide, pool = posterior.guide, posterior.pool
    z, log_ratio = pool.z[:KHAT_DRAWS], (pool.log_p - pool.log_q)[:KHAT_DRAWS]
    finite = np.isfinite(log_ratio)
    z, log_ratio = z[finite], log_ratio[finite]
    base = posterior.khat
    parameter = next(guide.parameters())
    with torch.no_grad():
        parts = torch.vmap(lambda row: {site["name"]: u for site, u in guide._unpack_latent(row)})(
            torch.as_tensor(z).to(parameter)
        )
    result, wide = {}, {}
    count = 0
    handed = log_ratio if posterior.corrected else np.zeros(len(log_ratio))
    for name, site in named_sites(guide):
        h = parts[name].cpu().double().numpy().reshape(len(z), -1)
        size = max(1, site["value"].numel())
        tails, too_wide = [], []
        for i in range(h.shape[1]):
            count += 1
            if count > MOST_KHATS or len(z) < 100:
                tails.append(base)
                too_wide.append(False)
                continue
            magnitude = np.log(np.abs(h[:, i] - np.median(h[:, i])) + 1e-300)
            first, second = (psislw(handed + p * magnitude)[1] for p in (1, 2))
            too_wide.append(first < LARGEST_KHAT <= second)
            if posterior.weights.khat_applicable:
                both = (psislw(log_ratio + p * magnitude)[1] for p in (1, 2))
                tails.append(max(base, *both))
            else:
                tails.append(base)
        # A simplex or a Cholesky factor has more elements than coordinates: the worst stands.
        result[name] = tails if len(tails) == size else [max(tails, default=base)] * size
        wide[name] = too_wide if len(too_wide) == size else [any(too_wide)] * size
    return result, wide
