# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Flows by name; other packages add theirs by the entry-point group ``pyro_flows.flows``."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import entry_points
from typing import Any

from pyro_flows.distributions import Flow
from pyro_flows.errors import OptionError, UnknownFlowError
from pyro_flows.flows.facts import FlowFacts, as_table
from pyro_flows.flows.options import complaint

Constructor = Callable[..., Flow]
_constructors: dict[str, Constructor] = {}
_stated: dict[str, dict[str, Any]] = {}


def register_flow(
    name: str, *, replace: bool = False, **stated: Any
) -> Callable[[Constructor], Constructor]:
    """Register a constructor ``(dim, context_dim=0, **options) -> Flow`` under a name.

    The name then works wherever a flow is asked for: ``AutoFlow``, ``FlowVI``.

    Args:
        name: the name.
        replace: take the place of another constructor of that name. A function that is defined
            again, as in a notebook, needs no such word.
        stated: what is known of it, for :func:`facts` and :func:`table`: ``density``,
            ``sampling``, ``conditional``, ``space``, ``paper``, ``year``, ``link``, as in
            :class:`FlowFacts`; any may be left out.

    Raises:
        TypeError: another word among ``stated``.
        OptionError: another constructor has that name.

    Example:
        >>> @flows.register_flow("one_coupling", density="one pass", year=2016)
        ... def one_coupling(dim, context_dim=0):
        ...     "A single affine coupling."
        ...     layer = transforms.AffineCoupling(dim, context_dim=context_dim)
        ...     return distributions.Flow([layer])
        >>> flows.make("one_coupling", 3).dim, flows.available()["one_coupling"]
        (3, 'A single affine coupling.')
    """
    FlowFacts(name, "", **stated)  # complain here about a word that isn't one

    def decorate(constructor: Constructor) -> Constructor:
        older = _constructors.get(name)
        if older is not None and not replace and _origin(older) != _origin(constructor):
            where = ".".join(_origin(older)[:2])
            raise OptionError(
                f"register_flow expected a new name, but '{name}' is {where}. "
                "Choose another name, or say replace=True."
            )
        _constructors[name] = constructor
        _stated[name] = stated
        return constructor

    return decorate


def _origin(constructor: Any) -> tuple[str, ...]:
    """Where it was defined, and as what; of a partial, with what it was given."""
    if isinstance(constructor, partial):
        given = repr(constructor.args), repr(constructor.keywords)
        return (*_origin(constructor.func), *given)
    kind = type(constructor)  # of objects without a name
    module = getattr(constructor, "__module__", kind.__module__)
    name = getattr(constructor, "__qualname__", kind.__qualname__)
    # Lambdas, and functions made by functions, share a name: they are the same only as objects.
    return (module, name, str(id(constructor))) if "<" in name else (module, name)


def available() -> dict[str, str]:
    """Names of all flows, each with the first line of its description.

    Example:
        >>> flows.available()["nice"]
        'Additive couplings, volume preserving.'
    """
    found = {name: _first_line(c) for name, c in _constructors.items()}
    for point in entry_points(group="pyro_flows.flows"):
        found.setdefault(point.name, f"from {point.value}")
    return dict(sorted(found.items()))


def facts(name: str) -> FlowFacts:
    """What is known of the flow registered under ``name``: directions, costs, paper.

    Raises:
        UnknownFlowError: no such name.

    Example:
        >>> print(flows.facts("realnvp"))
        realnvp: Affine couplings.
          log_prob (data to base): one pass
          sampling (base to data): one pass
          context: yes
          values: real numbers
          paper: Dinh et al., Density estimation using Real NVP, 2016, https://arxiv.org/abs/1605.08803
    """
    check_name(name)
    return _facts(name, available()[name])


def table() -> str:
    """All flows with their facts, as a table in Markdown.

    Example:
        >>> print(flows.table().splitlines()[0])
        | name | what it is | `log_prob` | sampling | context | paper |
    """
    return as_table(_facts(name, summary) for name, summary in available().items())


def check_name(name: str) -> None:
    """Raise UnknownFlowError unless ``name`` is registered.

    Example:
        >>> check_name("nsf")
    """
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
        OptionError: an option that the constructor doesn't take.

    Example:
        >>> flow = flows.make("nsf", 4, context_dim=2, layers=2, bins=16)
        >>> flow(torch.zeros(5, 2)).sample().shape
        torch.Size([5, 4])
    """
    constructor = constructor_of(name)
    unknown = complaint(constructor, options, "flows.make expected options", f"'{name}'")
    if unknown:
        raise OptionError(unknown)
    if levels is not None and "levels" in inspect.signature(constructor).parameters:
        options["levels"] = levels
    return constructor(dim, context_dim, **options)


def constructor_of(name: str) -> Constructor:
    """The constructor registered under ``name``, loaded if it is another package's."""
    check_name(name)
    constructor = _constructors.get(name)
    if constructor is None:
        points = entry_points(group="pyro_flows.flows")
        constructor = next(point for point in points if point.name == name).load()
    return constructor


def _facts(name: str, summary: str) -> FlowFacts:
    return FlowFacts(name, summary, **_stated.get(name, {}))


def _first_line(constructor: Constructor) -> str:
    return (constructor.__doc__ or "").strip().split("\n")[0]
