# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A posterior to be approximated, and what is known of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.func import vmap

from .database import MissingData

Model: TypeAlias = Callable[..., Any]
Sites: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Moments:
    """Means and sds of a posterior that has no reference draws.

    Attributes:
        mean: By site.
        sd: By site.
        mean_se: Standard errors of the means, by site; None where they are exact.
        sd_se: Standard errors of the sds, by site; None where they are exact.
        constrained: Whether they are those of the sites' own values, or of the unconstrained ones,
            which then have the unconstrained shape.
        quantiles: Of the sites' own values at ``scoring.QUANTILES``: ``(5, *shape)``, by site.
    """

    mean: dict[str, np.ndarray]
    sd: dict[str, np.ndarray]
    mean_se: dict[str, np.ndarray] | None = None
    sd_se: dict[str, np.ndarray] | None = None
    constrained: bool = True
    quantiles: dict[str, np.ndarray] | None = None


@dataclass(frozen=True)
class Modes:
    """The modes of a posterior.

    Attributes:
        assign: From unconstrained vectors ``(P, D)`` to the index of a mode, ``(P,)``.
        shares: The mass of each mode, of shape ``(K,)``.
    """

    assign: Callable[[Tensor], Tensor]
    shares: Tensor


@dataclass(frozen=True)
class Target:
    """A posterior to be approximated, with what is known of it.

    Attributes:
        name: Its short name here.
        model: The Pyro model.
        args: The model's positional arguments, float64 where they are real.
        kwargs: The model's keyword arguments.
        log_z: log Z in Pyro's convention (half-priors normalised, flat priors count as 1), or
            None where it isn't known.
        log_z_se: The standard error of ``log_z``; 0 where it is exact.
        moments: Gives reference means and sds where there are no draws.
        modes: Its modes, where it has several.
        canonical: A relabelling of site values that undoes a symmetry.
        opaque: Whether the model is a flat prior and a factor.
        improper: Whether no posterior exists.
        group: The family it is listed with: "posteriordb", "classic", "sbibm", "synthetic",
            "trap", or "hierarchical".
    """

    name: str
    model: Model
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    log_z: float | None = None
    log_z_se: float = 0.0
    moments: Callable[[], Moments] | None = None
    modes: Modes | None = None
    canonical: Callable[[Sites], Sites] | None = None
    opaque: bool = False
    improper: bool = False
    group: str = "posteriordb"
    _read_reference: Callable[[], dict[str, np.ndarray]] | None = field(default=None, repr=False)

    def reference(self) -> dict[str, np.ndarray]:
        """Gives the reference draws: site -> ``(draws, *shape)``, constrained.

        The draws of one chain stand next to each other.

        Raises:
            MissingData: If there are none.
        """
        if self._read_reference is None:
            raise MissingData(
                f"{self.name} has no reference draws: there are none, or it was made without the "
                "data's path. Give that path to targets(), or judge it by its log Z or moments."
            )
        return self._read_reference()

    @cached_property
    def latents(self) -> dict[str, tuple[constraints.Constraint, torch.Size]]:
        """The support and shape of each latent site, in the model's order."""
        # Not validated: a draw of the prior may lie where the model can't be computed.
        with poutine.block(), torch.random.fork_rng(devices=[]), pyro.validation_enabled(False):
            trace = poutine.trace(InitMessenger(_feasible)(self.model)).get_trace(
                *self.args, **self.kwargs
            )
        return {
            name: (site["fn"].support, site["value"].shape)
            for name, site in trace.nodes.items()
            if site["type"] == "sample"
            and not site["is_observed"]
            and not poutine.util.site_is_subsample(site)
        }

    @property
    def dim(self) -> int:
        """The number of unconstrained parameters."""
        return sum(
            math.prod(biject_to(support).inverse_shape(shape))
            for support, shape in self.latents.values()
        )

    def unconstrain(self, sites: dict[str, Any]) -> Tensor:
        """Packs constrained values, site -> ``(P, *shape)``, into a float64 array ``(P, D)``."""
        parts = []
        for name, (support, _) in self.latents.items():
            value = torch.as_tensor(sites[name], dtype=torch.float64)
            parts.append(biject_to(support).inv(value).reshape(len(value), -1))
        return torch.cat(parts, -1)

    def log_joint(self, z: Tensor, *, chunk_size: int | None = 1000) -> Tensor:
        """Scores unconstrained vectors, without any code of the package under test.

        Args:
            z: Points of shape ``(P, D)``, laid out as :meth:`unconstrain` does.
            chunk_size: How many points are scored at a time.

        Returns:
            The log joint of shape ``(P,)``: model plus log|J| of the constraining maps.

        Raises:
            ValueError: If the points don't have this target's dimension.
        """
        if z.dim() != 2 or z.shape[-1] != self.dim:
            raise ValueError(
                f"{self.name} has {self.dim} unconstrained parameters, so z should have shape "
                f"(P, {self.dim}); got {tuple(z.shape)}."
            )
        with pyro.validation_enabled(False):
            return vmap(self._log_joint_at, chunk_size=chunk_size)(z)

    def _log_joint_at(self, z: Tensor) -> Tensor:
        sites, ladj, start = {}, z.new_zeros(()), 0
        for name, (support, shape) in self.latents.items():
            to_support = biject_to(support)
            free_shape = to_support.inverse_shape(shape)
            stop = start + math.prod(free_shape)
            free = z[start:stop].reshape(free_shape)
            sites[name] = to_support(free)
            ladj = ladj + to_support.log_abs_det_jacobian(free, sites[name]).sum()
            start = stop
        conditioned = poutine.condition(self.model, data=sites)
        trace = poutine.trace(conditioned).get_trace(*self.args, **self.kwargs)
        return trace.log_prob_sum() + ladj


def _feasible(site: dict[str, Any]) -> Tensor:
    distribution = site["fn"]
    if isinstance(distribution, dist.ImproperUniform):
        to_support = biject_to(distribution.support)
        free_shape = to_support.inverse_shape(distribution.shape())
        return to_support(torch.zeros(free_shape, dtype=torch.float64))
    return distribution.sample()
