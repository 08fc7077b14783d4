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
    khats = _khats(posterior)
    rows, names, column = [], [], 0
    for name, values in posterior._constrained(z).items():
        flat = values.cpu().double().numpy().reshape(len(z), -1)
        shape = tuple(values.shape[1:])
        mean = w @ flat
        sd = np.sqrt(np.maximum(w @ (flat - mean) ** 2, 0))
        mcse = np.sqrt((w**2) @ (flat - mean) ** 2)
        for i, index in enumerate(np.ndindex(*shape) if shape else [()]):
            quantiles = _quantiles(flat[:, i], w, [low, 0.5, high])
            rows.append([mean[i], sd[i], *quantiles, mcse[i], khats[name][i]])
            names.append(f"{name}[{','.join(map(str, index))}]" if shape else name)
        column += flat.shape[1]
    return pd.DataFrame(rows, index=names, columns=columns)


def _quantiles(x: Array, w: Array, q: list[float]) -> list[float]:
    order = np.argsort(x)
    cumulative = np.cumsum(w[order]) - 0.5 * w[order]
    return [float(value) for value in np.interp(q, cumulative, x[order])]


def _khats(posterior: Posterior) -> dict[str, list[float]]:
    """Per element: the largest k-hat over w, w |h| and w h^2, with h the unconstrained element."""
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
    result = {}
    count = 0
    for name, site in named_sites(guide):
        h = parts[name].cpu().double().numpy().reshape(len(z), -1)
        size = max(1, site["value"].numel())
        tails = []
        for i in range(h.shape[1]):
            count += 1
            if count > MOST_KHATS or not posterior.weights.khat_applicable or len(z) < 100:
                tails.append(base)
                continue
            magnitude = np.log(np.abs(h[:, i] - np.median(h[:, i])) + 1e-300)
            tails.append(max(base, *(psislw(log_ratio + p * magnitude)[1] for p in (1, 2))))
        # A simplex or a Cholesky factor has more elements than coordinates: the worst stands.
        result[name] = tails if len(tails) == size else [max(tails, default=base)] * size
    return result
