# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Options of a flow's constructor, held against those that were given."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable
from inspect import Parameter
from typing import Any


def complaint(
    constructor: Callable[..., Any], options: Iterable[Any], who: str, flow: str, sizes: int = 2
) -> str | None:
    """A sentence if the constructor doesn't take all of these options, else None.

    Args:
        constructor: ``(dim, context_dim=0, **options)``.
        options: their names.
        who: how the sentence begins, such as ``"FlowDensity expected flow_options"``.
        flow: what to call the constructor.
        sizes: how many of its first arguments are sizes, and no options.
    """
    known = _names(constructor, sizes)
    unknown = [name for name in options if known is not None and name not in known]
    if known is None or not unknown:
        return None
    close = [difflib.get_close_matches(str(name), known, n=1) for name in unknown]
    hints = [f"'{match[0]}'" for match in close if match]
    return (
        f"{who} among those that {flow} takes ({', '.join(known) or 'it takes none'}), but got "
        f"{', '.join(map(repr, unknown))}. "
        + (f"Did you mean {', '.join(hints)}?" if hints else "Leave out what it doesn't take.")
    )


def _names(constructor: Callable[..., Any], sizes: int) -> list[str] | None:
    """Options by name; None if it takes any, or doesn't say."""
    try:
        parameters = list(inspect.signature(constructor).parameters.values())
    except (TypeError, ValueError):  # some callables written in C have no signature
        return None
    if any(p.kind is Parameter.VAR_KEYWORD for p in parameters):
        return None
    places = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
    taken = [p.name for p in parameters if p.kind in places][:sizes]
    named = (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in named and p.name not in taken]
