# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Location and log-scale of a model's conditional priors, as a function of the packed vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor, nn

from pyro_flows.flows.hierarchy import MOST_LEVELS
from pyro_flows.guides.enumeration import Substitute
from pyro_flows.guides.unpack import constrain
from pyro_flows.ops.record import record
from pyro_flows.transforms import NonCentring

# Families whose unconstrained value is loc + scale * noise, with noise free of the parents.
LOCATION_SCALE = ("Cauchy", "Laplace", "LogNormal", "Normal", "StudentT", "Gumbel")
WRAPPERS = ("Independent", "ExpandedDistribution", "MaskedDistribution")


def noncentring(
    guide: AutoContinuous,
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    levels: list[int],
    start: Tensor,
) -> NonCentring | None:
    """The layer for a model's hierarchy, or None where there is none that it can use.

    Args:
        guide: set up so far that it can unpack.
        model: the Pyro model.
        args: its arguments.
        kwargs: its keyword arguments.
        levels: depth of each packed coordinate.
        start: a feasible packed vector.

    Returns:
        A centred layer, or None: no location-scale site hangs on another latent, masked elements,
        trainable parameters in the model, a chain of many levels (each costs an evaluation of the
        model), or a model whose priors can't be recorded as a graph.
    """
    if not 0 < len(set(levels) - {0}) <= MOST_LEVELS or getattr(guide, "_active", None):
        return None

    def read(z: Tensor) -> tuple[Tensor, Tensor, list[bool], bool]:
        values = {name: value for name, _, value, _ in constrain(guide, z)}
        with poutine.block(), Substitute(values):
            trace = poutine.trace(model).get_trace(*args, **kwargs)
        locs, scales, usable = [], [], []
        for name, shape in guide._unconstrained_shapes.items():
            fn: Any = trace.nodes[name]["fn"]
            while type(fn).__name__ in WRAPPERS:
                fn = fn.base_dist
            known = type(fn).__name__ in LOCATION_SCALE
            loc = torch.as_tensor(fn.loc).to(z) if known else z.new_zeros(())
            scale = torch.as_tensor(fn.scale).to(z) if known else z.new_ones(())
            locs.append(loc.expand(shape).reshape(-1))
            scales.append(scale.expand(shape).reshape(-1).log())
            usable += [known] * shape.numel()
        parameters = any(node["type"] == "param" for node in trace.nodes.values())
        return torch.cat(locs), torch.cat(scales), usable, parameters

    try:
        with pyro.validation_enabled(False), torch.no_grad():
            _, _, usable, parameters = read(start)
            depths = [level if known else 0 for level, known in zip(levels, usable, strict=True)]
            if parameters or not any(depths):
                return None
            prior = Prior(record(lambda z: read(z)[:2], start))
            elsewhere = start + 0.1 * torch.linspace(-1, 1, len(start), device="cpu").to(start)
            same = all(
                torch.allclose(a, b, equal_nan=True)
                for a, b in zip(prior(elsewhere), read(elsewhere)[:2], strict=True)
            )
            layer = NonCentring(len(start), prior, depths)
            torch.vmap(prior)(torch.stack([start, elsewhere]))
    except Exception:  # noqa: BLE001 (a model that can't be recorded is fitted as it is written)
        return None
    return layer if same else None


class Prior(nn.Module):
    """A recorded graph ``(D,) -> ((D,), (D,))``.

    The graph holds the model's data as constants. They are copied, so that nothing done to the
    guide reaches the user's tensors, and kept out of the state dict: they are the model's.
    """

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        for name, constant in list(graph.named_buffers(recurse=False)):
            graph.register_buffer(name, constant.detach().clone())
        self._graph = (graph,)  # in a tuple: not a submodule, so not in the state dict

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Location and log-scale at one point."""
        loc, log_scale = self._graph[0](x)
        return loc, log_scale

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Prior:  # noqa: FBT001, FBT002
        self._graph[0]._apply(fn)
        super()._apply(fn, recurse)
        return self
