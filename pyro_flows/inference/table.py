# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The summary table of a posterior."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyro_flows.diagnostics import psislw
from pyro_flows.diagnostics.anchors import more
from pyro_flows.guides import named_sites

if TYPE_CHECKING:
    from pyro_flows.inference.posterior import Posterior

Array = NDArray[np.float64]
# Draws for the k-hat of each element: a tail fit per element and power.
KHAT_DRAWS = 10_000
MOST_KHATS = 500
MIN_DRAWS = 100
LARGEST_KHAT = 0.7
WITHHELD = {
    2: "sd withheld: the square of the value has so heavy a tail (k-hat of 0.7 or more) that its "
    f"mean doesn't settle; mean and quantiles can be used. {more('withheld-moments')}",
    1: "mean and sd withheld: the value has so heavy a tail (k-hat of 0.7 or more) that its mean "
    f"doesn't settle; quantiles can be used. {more('withheld-moments')}",
}


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
    rows, names, notes = [], list[str](), list[str]()
    for name, values in posterior._constrained(z).items():
        flat = values.cpu().double().numpy().reshape(len(z), -1)
        shape = tuple(values.shape[1:])
        mean = w @ flat
        sd = np.sqrt(np.maximum(w @ (flat - mean) ** 2, 0))
        mcse = np.sqrt((w**2) @ (flat - mean) ** 2)
        for i, index in enumerate(np.ndindex(*shape) if shape else [()]):
            quantiles = _quantiles(flat[:, i], w, [low, 0.5, high])
            kind = wide[name][i]
            if len(names) < MOST_KHATS:  # its own tail, whatever the weights
                kind = _heavy(*_tails(0.0, flat[:KHAT_DRAWS, i])) or kind
            moments = [mean[i] if kind != 1 else np.nan, sd[i] if not kind else np.nan]
            error = mcse[i] if not kind else np.nan
            rows.append([*moments, *quantiles, error, khats[name][i]])
            names.append(f"{name}[{','.join(map(str, index))}]" if shape else name)
            notes.append(WITHHELD.get(kind, ""))
    table = pd.DataFrame(rows, index=names, columns=columns)
    if any(notes):
        table["note"] = notes
    return table


def _quantiles(x: Array, w: Array, q: list[float]) -> list[float]:
    order = np.argsort(x)
    cumulative = np.cumsum(w[order]) - 0.5 * w[order]
    return [float(value) for value in np.interp(q, cumulative, x[order])]


def _tails(log_w: Array | float, values: Array) -> tuple[float, float]:
    """k-hat of weights times the size of values, and times its square; inf if it isn't finite."""
    if len(values) < MIN_DRAWS:
        return -np.inf, -np.inf
    if not np.isfinite(values).all():
        return np.inf, np.inf
    magnitude = np.log(np.abs(values - np.median(values)) + 1e-300)
    first, second = (float(psislw(log_w + p * magnitude)[1]) for p in (1, 2))
    return first, second


def _heavy(first: float, second: float) -> int:
    """Which moment the draws can't tell: 1 the mean, 2 only the second, 0 neither."""
    return 1 if not first < LARGEST_KHAT else 2 if not second < LARGEST_KHAT else 0


def _khats(posterior: Posterior) -> tuple[dict[str, list[float]], dict[str, list[int]]]:
    """Per element: the largest k-hat over w, w |h| and w h^2, with h the unconstrained element.

    Also 2 where its second moment is the only one that weights can't tell, else 0. Draws that are
    handed over as they are have no weights: of them their own tails tell.
    """
    import torch

    guide, pool = posterior.guide, posterior.pool
    z, log_ratio = pool.z[:KHAT_DRAWS], (pool.log_p - pool.log_q)[:KHAT_DRAWS]
    finite = np.isfinite(log_ratio)
    z, log_ratio = z[finite], log_ratio[finite]
    base = posterior.khat
    if not len(z):
        sizes = {name: max(1, site["value"].numel()) for name, site in named_sites(guide)}
        return {n: [base] * k for n, k in sizes.items()}, {n: [0] * k for n, k in sizes.items()}
    parameter = next(guide.parameters())
    with torch.no_grad():
        parts = torch.vmap(lambda row: {site["name"]: u for site, u in guide._unpack_latent(row)})(
            torch.as_tensor(z, device="cpu").to(parameter)
        )
    result, wide = {}, {}
    count = 0
    for name, site in named_sites(guide):
        h = parts[name].cpu().double().numpy().reshape(len(z), -1)
        size = max(1, site["value"].numel())
        tails, too_wide = [], []
        for i in range(h.shape[1]):
            count += 1
            if count > MOST_KHATS or len(z) < MIN_DRAWS:
                tails.append(base)
                too_wide.append(0)
                continue
            both = _tails(log_ratio, h[:, i])
            tails.append(max(base, *both) if posterior.weights.khat_applicable else base)
            # Where h itself is beyond it, that is for the value that is shown to tell: a bounded
            # one has a mean whatever its logit does.
            too_wide.append(2 if posterior.corrected and _heavy(*both) == 2 else 0)
        # A simplex or a Cholesky factor has more elements than coordinates: the worst stands.
        result[name] = tails if len(tails) == size else [max(tails, default=base)] * size
        wide[name] = too_wide if len(too_wide) == size else [max(too_wide, default=0)] * size
    return result, wide
