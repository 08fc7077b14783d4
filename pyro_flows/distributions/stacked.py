# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Several flows of one architecture, evaluated together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pyro_flows.distributions.flow import Flow


class Stacked:
    """Flows that differ in their parameters only, as one batch of flows.

    Their parameters are stacked at every call, so that gradients reach each flow's own.

    Args:
        flows: alike, as :meth:`alike` says.

    Cost: the flows' arithmetic, with the Python of one.
    """

    def __init__(self, flows: Sequence[Flow]) -> None:
        self.flows = flows
        # In a list, so that a module that holds this object doesn't own the flow twice.
        self._call = [_Call(flows[0])]

    @staticmethod
    def alike(flows: Sequence[Flow]) -> bool:
        """Whether flows without a context are of one architecture."""
        first = flows[0]
        shapes = _shapes(first)
        return len(flows) > 1 and all(
            type(flow) is Flow
            and not flow.context_dim
            and len(flow.event_shape) == 1
            and repr(flow) == repr(first)
            and _options(flow) == _options(first)
            and _shapes(flow) == shapes
            and all(
                a.is_floating_point() or torch.equal(a, b)
                for a, b in zip(flow.buffers(), first.buffers(), strict=True)
            )
            for flow in flows
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of values ``(*, dim)`` under every flow, ``(K, *)``."""
        return self._map("log_prob", value, None)

    def forward(self, noise: Tensor) -> Tensor:
        """Images of each flow's own noise, ``(K, n, dim)``."""
        return self._map("forward", noise, 0)

    def _map(self, what: str, x: Tensor, dim: int | None) -> Tensor:
        tensors = [_tensors(flow) for flow in self.flows]
        stacked = {
            f"flow.{name}": torch.stack([own[name] for own in tensors]) for name in tensors[0]
        }

        def one(tensors: dict[str, Tensor], x: Tensor) -> Any:
            return functional_call(self._call[0], tensors, (what, x))

        mapped: Callable[..., Tensor] = torch.vmap(one, in_dims=(0, dim))
        return mapped(stacked, x)


class _Call(nn.Module):
    """What ``functional_call`` can call: one flow's methods, chosen by name."""

    def __init__(self, flow: Flow) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, what: str, x: Tensor) -> Tensor:
        if what == "log_prob":
            return self.flow.log_prob(x)
        image, _ = self.flow.transform.forward_and_ladj(x)
        return image


def _tensors(flow: Flow) -> dict[str, Tensor]:
    """Parameters and buffers of real numbers, by name; indices are alike in all flows."""
    buffers = {name: value for name, value in flow.named_buffers() if value.is_floating_point()}
    return dict(flow.named_parameters()) | buffers


def _options(flow: Flow) -> list[dict[str, Any]]:
    """Settings of every part that its repr may not show, such as an activation or a bound."""
    return [
        {
            name: value
            for name, value in vars(part).items()
            if name[0] != "_" and (isinstance(value, (bool, float, str)) or callable(value))
        }
        for part in flow.modules()
    ]


def _shapes(flow: Flow) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in _tensors(flow).items()}
