# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What the ports share: a port itself, tensors from data, and linear predictors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from ..target import Model, Modes, Sites

Data: TypeAlias = dict[str, Any]
Variables: TypeAlias = dict[str, np.ndarray]


@dataclass(frozen=True)
class Port:
    """A model, its arguments, and the way from Stan's draws to its sites.

    Attributes:
        model: The Pyro model.
        args: Its arguments.
        to_sites: From Stan's variables to the model's sites.
        log_z_shift: What is added to log Z of the table, beyond log 2 for each half-prior.
        log_z: log Z in Pyro's convention, where the table has none.
        moments: Whether posteriordb's summary statistics are its reference.
        modes: Its modes, where it has several.
        canonical: A relabelling of site values that undoes a symmetry.
        group: The family it is listed with.
    """

    model: Model
    args: tuple[Any, ...]
    to_sites: Callable[[Variables], Variables] = dict
    log_z_shift: float = 0.0
    log_z: float | None = None
    moments: bool = False
    modes: Modes | None = None
    canonical: Callable[[Sites], Sites] | None = None
    group: str = "posteriordb"


Builder: TypeAlias = Callable[[Data], Port]
# By the target's name: the posterior's name in posteriordb, and its builder.
Entries: TypeAlias = dict[str, tuple[str, Builder]]


def vector(values: Any) -> Tensor:
    """Gives data as a float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def design(*columns: Tensor) -> Tensor:
    """Gives columns beside a column of ones."""
    return torch.stack([torch.ones_like(columns[0]), *columns], -1)


def flat_vector(size: int) -> dist.ImproperUniform:
    """A flat prior on a vector of reals."""
    return dist.ImproperUniform(constraints.real, (), (size,))


def linear(x: Tensor, beta: Tensor) -> Tensor:
    """Gives ``x @ beta`` in the data plate, of shape ``(..., N)``.

    A ``beta`` drawn outside the plate by vectorised particles has shape ``(..., 1, k)``: the 1
    is the place of the plate.
    """
    return x @ beta if beta.dim() == 1 else (x @ beta.mT).squeeze(-1)
