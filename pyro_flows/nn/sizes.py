# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Sizes that many constructors are given, checked in one place."""

from __future__ import annotations

from collections.abc import Collection
from numbers import Integral
from typing import Any

from pyro_flows.errors import ShapeError


def is_size(value: Any, least: int = 1) -> bool:
    """Whether it is an integer, of Python or numpy, and large enough."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= least


def check_sizes(who: str, dim: Any, context_dim: Any) -> None:
    """Raise ShapeError unless they are the sizes of some value and of some context, or of none."""
    if not (is_size(dim) and is_size(context_dim, least=0)):
        raise ShapeError(
            f"{who} expected integers dim >= 1 and context_dim >= 0, but got dim={dim!r} and "
            f"context_dim={context_dim!r}. Give the size of the last axis of your values."
        )


def hidden_widths(who: str, hidden_dims: Any) -> tuple[int, ...]:
    """Widths of hidden layers as a tuple, from a sequence or an array.

    Raises:
        ShapeError: they aren't integers of at least 1.
    """
    given = hidden_dims.tolist() if hasattr(hidden_dims, "tolist") else hidden_dims
    if not isinstance(given, Collection) or not all(map(is_size, given)):
        raise ShapeError(
            f"{who} expected hidden_dims to be a sequence of integers >= 1, but got "
            f"{hidden_dims!r}. Give (64, 64), say, or () for a linear map."
        )
    return tuple(map(int, given))


def image_shape(who: str, shape: Any) -> tuple[int, int, int]:
    """The shape of an image as three integers.

    Raises:
        ShapeError: it isn't one.
    """
    if not isinstance(shape, Collection) or len(shape) != 3 or not all(map(is_size, shape)):
        raise ShapeError(
            f"{who} expected an image's shape (C, H, W), but got {shape!r}. Give three positive "
            "sizes."
        )
    channels, height, width = map(int, shape)
    return channels, height, width
