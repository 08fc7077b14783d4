# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Flows by name; other packages add theirs by the entry-point group ``pyro_flows.flows``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any

from pyro_flows.distributions import Flow
from pyro_flows.errors import UnknownFlowError

Constructor = Callable[..., Flow]
_constructors: dict[str, Constructor] = {}


def register_flow(name: str) -> Callable[[Constructor], Constructor]:
    """Register a constructor ``(dim, context_dim=0, **options) -> Flow`` under a name.

    The name then works wherever a flow is asked for: ``AutoFlow``, ``FlowVI``.

    Example:
        >>> @flows.register_flow("one_coupling")
        ... def one_coupling(dim, context_dim=0):
        ...     layer = transforms.AffineCoupling(dim, context_dim=context_dim)
        ...     return distributions.Flow([layer])
        >>> flows.make("one_coupling", 3).dim
        3
    """

    def decorate(constructor: Constructor) -> Constructor:
        _constructors[name] = constructor
        return constructor

    return decorate


def available() -> dict[str, str]:
    """Names of all flows, each with the first line of its description.

    Example:
        >>> "nsf" in flows.available()
        True
    """
    found = {name: _first_line(c) for name, c in _constructors.items()}
    for point in entry_points(group="pyro_flows.flows"):
        found.setdefault(point.name, f"from {point.value}")
    return dict(sorted(found.items()))


def check_name(name: str) -> None:
    """Raise UnknownFlowError unless ``name`` is registered."""
    names = list(available())
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise UnknownFlowError(
            f"Expected the name of a registered flow, one of {', '.join(names)}, but got '{name}'."
            f"{hint} Register your own with @flows.register_flow('{name}')."
        )


def make(
    name: str,
    dim: int,
    context_dim: int = 0,
    *,
    levels: Sequence[int] | None = None,
    **options: Any,
) -> Flow:
    """Build the flow registered under ``name``.

    Args:
        name: one of :func:`available`.
        dim: size of the event.
        context_dim: size of the context, 0 for none.
        levels: depth of each coordinate in a model's hierarchy, for constructors that take it.
        options: the constructor's own.

    Raises:
        UnknownFlowError: no such name.
    """
    check_name(name)
    constructor = _constructors.get(name)
    if constructor is None:
        constructor = next(
            p for p in entry_points(group="pyro_flows.flows") if p.name == name
        ).load()
    if levels is not None and "levels" in inspect.signature(constructor).parameters:
        options["levels"] = levels
    return constructor(dim, context_dim, **options)


def _first_line(constructor: Constructor) -> str:
    return (constructor.__doc__ or "").strip().split("\n")[0]
