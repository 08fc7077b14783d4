# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The layer that knows a hierarchical model's own location and scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pyro_flows.errors import ShapeError
from pyro_flows.transforms.base import Layer


class NonCentring(Layer):
    """Undo a hierarchical prior's location and scale, which the parents' values decide.

    With ``loc`` and ``scale`` of a coordinate's prior given its parents and a degree of centring
    ``c``: ``y = loc + scale^(1 - c) (x - c loc)``. At ``c = 1`` this is the identity (the model as
    it is written), at ``c = 0`` the non-centred parametrisation, in which a funnel such as Neal's
    is a plain normal, exactly and at any depth of its neck.

    Args:
        dim: number of coordinates.
        prior: a module ``(dim,) -> ((dim,), (dim,))``: location and log-scale of each coordinate's
            prior at a point; only those of moved coordinates are used, and they may depend on
            coordinates of lower levels only.
        levels: per coordinate its depth in the hierarchy; 0 is never moved.

    Starts centred, that is as the identity; :meth:`set_centring` changes it. The degree is chosen,
    not trained: it is a buffer.

    Cost: forward, one evaluation of ``prior`` per level; inverse, one. At ``c = 1`` none.

    When to choose it: as the last layer of a guide for a hierarchical model; ``AutoFlow`` puts it
    there by itself where the model has levels.

    Reference: Gorinova et al., Automatic Reparameterisation of Probabilistic Programs, 2020,
    https://arxiv.org/abs/1906.03028

    Example:
        >>> class Funnel(torch.nn.Module):
        ...     def forward(self, x):
        ...         return torch.zeros_like(x), torch.stack([torch.zeros_like(x[0]), x[0]])
        >>> layer = transforms.NonCentring(2, Funnel(), levels=[0, 1])
        >>> layer.set_centring(torch.tensor([1.0, 0.0]))
        >>> layer(torch.tensor([0.0, 2.0])), layer(torch.tensor([-20.0, 2.0]))[1] < 1e-8
        (tensor([0., 2.]), tensor(True))
    """

    masks: Tensor
    centring: Tensor

    def __init__(self, dim: int, prior: nn.Module, levels: Sequence[int]) -> None:
        super().__init__(dim)
        if len(levels) != dim or max(levels, default=0) < 1:
            raise ShapeError(
                f"NonCentring expected {dim} levels, one of them at least 1, but got "
                f"{list(levels)}. Give the depth of every coordinate; 0 for the top."
            )
        self.prior = prior
        depths = torch.as_tensor(levels, device="cpu")
        masks = [depths == level for level in sorted(set(levels) - {0})]
        self.register_buffer("masks", torch.stack(masks))
        self.register_buffer("centring", torch.ones(dim))
        # A fact of the buffer that Python branches on, without asking the device each time.
        self.centred = True

    @torch.no_grad()
    def set_centring(self, degree: Tensor) -> None:
        """Set the degree of centring, shape ``(dim,)``: 1 centred, 0 non-centred."""
        self.centring.copy_(degree)
        self.centred = bool((self.centring == 1).all())

    def get_extra_state(self) -> dict[str, bool]:
        """Part of the state dict: whether all coordinates are centred."""
        return {"centred": self.centred}

    def set_extra_state(self, state: Any) -> None:
        """Read back what :meth:`get_extra_state` wrote."""
        self.centred = bool(state["centred"])

    def _prior(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        rows = x.reshape(-1, self.dim)
        if x.dim() == 1:
            loc, log_scale = (part.unsqueeze(0) for part in self.prior(x))
        elif torch._C._get_tracing_state():  # torch.jit.trace can't see through vmap
            pairs = [self.prior(row) for row in rows]
            loc, log_scale = (torch.stack(part) for part in zip(*pairs, strict=True))
        else:
            loc, log_scale = torch.vmap(self.prior)(rows)
        zero = torch.zeros_like(loc)
        loc, log_scale = torch.where(mask, loc, zero), torch.where(mask, log_scale, zero)
        power = (1 - self.centring) * log_scale
        return loc.reshape(x.shape), power.reshape(x.shape)

    def forward_and_ladj(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Put location and scale on, level by level, so that parents come first."""
        self.check(x, context)
        y, total = x, x.new_zeros(x.shape[:-1])
        if self.centred:
            return y, total
        for mask in self.masks:
            loc, power = self._prior(y, mask)
            y = torch.where(mask, loc + power.exp() * (x - self.centring * loc), y)
            total = total + power.sum(-1)
        return y, total

    def inverse_and_ladj(self, y: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Take location and scale off; all parents are known, so one evaluation does."""
        self.check(y, context)
        if self.centred:
            return y, y.new_zeros(y.shape[:-1])
        mask = self.masks.any(0)
        loc, power = self._prior(y, mask)
        x = torch.where(mask, (y - loc) * (-power).exp() + self.centring * loc, y)
        return x, -power.sum(-1)
