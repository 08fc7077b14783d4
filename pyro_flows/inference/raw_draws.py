# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Draws of the guide itself with their weights, and the points of a model's data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyro_flows.errors import GuideError, ModelError, OptionError
from pyro_flows.guides import structure
from pyro_flows.inference.export import dims_of, observed_data, to_numpy
from pyro_flows.inference.per_draw import PerDraw, Values, why_no_log_likelihood

if TYPE_CHECKING:
    from pyro_flows.inference.posterior import Posterior

Array = NDArray[np.float64]
LARGEST_RATIO = 1e150
# Weights are smoothed by a fit to the largest fifth, which needs five.
FEWEST = 25


@dataclass(frozen=True)
class RawDraws:
    """Draws of the guide, never resampled, that the model can be run at.

    Attributes:
        runs: the model at the draws inside the support.
        log_ratio: log p - log q of these, ``(S,)``, finite.
        outside: draws outside the support, of weight zero, by site; empty where there are none.
        n_invalid: draws left out, of NaN or infinite density.
    """

    runs: PerDraw
    log_ratio: Array
    outside: Values
    n_invalid: int

    @classmethod
    def of(cls, posterior: Posterior, n: int, *, caller: str) -> RawDraws:
        """The first n draws of a posterior's pool that are inside the support, and those between.

        Where n is more than the pool has, further ones are made alike.

        Call it under ``posterior.under_model_state()``.

        Raises:
            GuideError: n isn't a number of draws, or none is inside the support.
        """
        if not isinstance(n, int) or n < FEWEST:
            raise GuideError(
                f"{caller} expected draws >= {FEWEST}, but got {n!r}. Fewer can't be weighted; "
                "some thousands are usual."
            )
        pool = posterior.pool
        z, log_p, log_q = pool.z, pool.log_p, pool.log_q
        if n > len(pool):
            more = posterior.sample_guide(n - len(pool), seed=posterior.seed + 1)
            z, log_p, log_q = (
                np.concatenate(parts) for parts in zip((z, log_p, log_q), more, strict=True)
            )
        with np.errstate(over="ignore", invalid="ignore"):
            ratio = log_p - log_q
            inside = np.abs(ratio) < LARGEST_RATIO
        # As many of the first draws as make n inside the support, or all there are.
        last = int(np.argmax(np.cumsum(inside) == n)) + 1 if inside.sum() >= n else len(z)
        z, ratio, inside = z[:last], ratio[:last], inside[:last]
        outside = np.isneginf(log_p[:last]) & np.isfinite(log_q[:last])
        if not inside.any():
            raise GuideError(
                f"{caller} expected draws inside the support, but none of {len(z)} is. See the "
                "verdict: print(posterior)."
            )
        joint = posterior.log_joint
        return cls(
            runs=PerDraw(
                joint.model, posterior.args, posterior.kwargs, posterior._constrained(z[inside])
            ),
            log_ratio=ratio[inside],
            outside=posterior._constrained(z[outside]) if outside.any() else {},
            n_invalid=int((~inside & ~outside).sum()),
        )


@dataclass(frozen=True)
class Points:
    """The data of one or more sites as points that a likelihood scores one by one.

    Attributes:
        sites: names, in the order of their points.
        kept: by site, which elements of its batch are observed.
        observed: the data: of the batch's own shape where one site is observed in full, else all
            that is kept in a row; event axes last, flattened where sites are taken together.
        shape: of the points.
        dims: names of its axes.
        coords: labels along them, where the points were put in a row.
        discrete: whether all sites are.
    """

    sites: tuple[str, ...]
    kept: dict[str, NDArray[np.bool_]]
    observed: NDArray[Any]
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    coords: dict[str, list[str]]
    discrete: bool

    @classmethod
    def of(cls, trace: Any, site: str | Sequence[str] | None, *, caller: str) -> Points:
        """The points of the sites that are asked for, masked-out elements left out.

        Raises:
            ModelError: nothing is observed.
            OptionError: several sites are observed and none is named, or an unknown one is.
        """
        found = {
            name: s
            for name, s in structure.observed_sites(trace).items()
            if isinstance(s["value"], Tensor)
        }
        names = _chosen(list(found), site, caller)
        data = {name: to_numpy(observed_data(found[name])) for name in names}
        kept = {
            name: ~np.isnan(values).all(axis=tuple(range(_batch_dim(found[name]), values.ndim)))
            if values.dtype.kind == "f"
            else np.ones(values.shape[: _batch_dim(found[name])], dtype=bool)
            for name, values in data.items()
        }
        discrete = all(getattr(found[n]["fn"].support, "is_discrete", False) for n in names)
        if len(names) == 1 and kept[names[0]].all():
            (name,) = names
            shape = kept[name].shape
            dims = dims_of(trace)[name][: len(shape)]
            return cls((name,), kept, data[name], shape, tuple(dims), {}, discrete)
        rows = [values[kept[name]] for name, values in data.items()]
        if len(rows) > 1:
            rows = [row.reshape(len(row), -1) for row in rows]
            width = max(row.shape[1] for row in rows)
            rows = [
                np.pad(row.astype(float), ((0, 0), (0, width - row.shape[1])), constant_values=0)
                for row in rows
            ]
        labels = [
            f"{name}[{', '.join(map(str, index))}]" if index else name
            for name in names
            for index in map(tuple, np.argwhere(kept[name]).tolist())
        ]
        observed = np.concatenate(rows)
        if not len(observed):
            raise ModelError(f"{caller} expected data, but all of {names} is masked out.")
        shape = (len(observed),)
        return cls(names, kept, observed, shape, ("point",), {"point": labels}, discrete)

    def take(self, values: Values) -> NDArray[Any]:
        """Per-draw values of these sites, ``(S, *batch, ...)``, at these points.

        Returns:
            ``(S, *shape, ...)``.
        """
        arrays = {name: to_numpy(values[name]) for name in self.sites}
        if self.coords:
            return np.concatenate([a[:, self.kept[name]] for name, a in arrays.items()], axis=1)
        return arrays[self.sites[0]]


def check_log_likelihood(raw: RawDraws, posterior: Posterior, *, caller: str) -> None:
    """Raise ModelError where one run of the model doesn't give each point's likelihood."""
    why = why_no_log_likelihood(raw.runs.trace, stochastic=posterior.log_joint.stochastic)
    if why:
        raise ModelError(f"{caller} expected a log likelihood by point, but there is none. {why}")


def check_unscaled(name: str, site: Any, *, caller: str) -> None:
    """Raise ModelError where a site counts more or less than once."""
    scale = torch.as_tensor(site["scale"], device="cpu")
    if not bool((scale == 1).all()):
        raise ModelError(
            f"{caller} expected sites that count once, but '{name}' is scaled (poutine.scale). "
            "Fit without the scale."
        )


def _chosen(found: list[str], site: str | Sequence[str] | None, caller: str) -> tuple[str, ...]:
    listed = ", ".join(f"'{name}'" for name in found)
    if not found:
        raise ModelError(
            f"{caller} expected a model with data, but no site is observed. Pass the data that "
            "obs= takes to FlowVI.run."
        )
    if site is None:
        if len(found) > 1:
            raise OptionError(
                f"{caller} expected to be told which of the {len(found)} observed sites to take: "
                f"{listed}. Say site='{found[0]}', or give a list, whose points go together."
            )
        return (found[0],)
    names = (site,) if isinstance(site, str) else tuple(site)
    unknown = [name for name in names if name not in found]
    if unknown or not names:
        raise OptionError(
            f"{caller} expected observed sites among {listed}, but got {unknown or names}. "
            "Name one of these."
        )
    return names


def _batch_dim(site: Any) -> int:
    return len(structure.scored_shape(site)) - int(site["fn"].event_dim)
