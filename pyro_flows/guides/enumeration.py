# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The log joint with discrete sites summed out, per particle."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.guides import AutoContinuous
from pyro.infer.traceenum_elbo import _compute_model_factors
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.ops.rings import LogRing
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import prune_subsample_sites
from torch import Tensor

from pyro_flows.guides.unpack import constrain

PARTICLES = "_pyro_flows_particles"


class Substitute(Messenger):
    """Give named sample sites a value, as replaying a guide's trace does."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True


class _Ring(LogRing):
    _backend = "pyro_flows.guides.log_einsum"


class _Enumerate(EnumMessenger):
    """``poutine.enum``, which asks for ``value.data.shape`` where vmap knows no ``data``."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        if isinstance(value, Tensor):
            msg["value"] = torch.empty(value.shape, device="meta")
        super()._pyro_post_sample(msg)
        msg["value"] = value


def enumerated_log_prob(
    model: Callable[..., Any],
    guide: AutoContinuous,
    z: Tensor,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    nesting: int,
) -> Tensor:
    """Log joint of each row of ``z`` with the model's enumerated sites summed out.

    The sum that ``TraceEnum_ELBO`` does, kept apart for each particle: particles are an outermost
    plate, which the elimination of discrete sites never contracts.

    Args:
        model: a Pyro model with sites marked for parallel enumeration.
        guide: the ``AutoContinuous`` that decides the packing.
        z: shape ``(P, D)``, or one vector ``(D,)``, which goes without a particle plate.
        args: the model's.
        kwargs: the model's.
        nesting: the depth of its plates, see :func:`max_plate_nesting`.

    Returns:
        Shape ``(P,)``.
    """
    single = z.dim() == 1
    latent = z if single else z.reshape(len(z), *(1,) * nesting, z.shape[-1])
    values, total = {}, z.new_zeros(z.shape[:-1])
    for name, _, value, ladj in constrain(guide, latent):
        values[name] = value
        total = total + ladj.reshape(*z.shape[:-1], -1).sum(-1)

    # One vector goes without a particle plate: some models index by position from the left.
    plate = nullcontext() if single else pyro.plate(PARTICLES, len(z), dim=-1 - nesting)
    enumerated = _Enumerate(first_available_dim=-2 - nesting)(model)
    with poutine.block(), plate, Substitute(values):
        trace = poutine.trace(enumerated).get_trace(*args, **kwargs)
    trace = prune_subsample_sites(trace)
    trace.compute_log_prob()
    trace.pack_tensors()
    symbol = None if single else trace.plate_to_symbol[PARTICLES]
    costs, factors, _, sum_dims, scale = _compute_model_factors(trace, poutine.Trace())
    terms = [term for group in costs.values() for term in group]
    if factors:
        for group in contract_tensor_tree(factors, sum_dims, ring=_Ring()).values():
            terms += [packed.scale_and_mask(term, scale=scale) for term in group]
    for term in terms:
        others = [i for i, dim in enumerate(term._pyro_dims) if dim != symbol]
        total = total + (term.sum(others) if others else term)
    return total


def max_plate_nesting(trace: poutine.Trace) -> int:
    """The depth of the model's vectorised plates."""
    depths = [
        -frame.dim
        for site in trace.nodes.values()
        if site["type"] == "sample"
        for frame in site["cond_indep_stack"]
        if frame.dim is not None  # a sequential plate has none
    ]
    return max(depths, default=0)
