# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What FlowDensity is given, checked before any work is done."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from copy import deepcopy
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_flows import flows
from pyro_flows.density import tables
from pyro_flows.density.columns import Columns
from pyro_flows.density.device import check_device
from pyro_flows.density.fitting import Rows
from pyro_flows.density.support import Bounds
from pyro_flows.density.tails import squeezed_columns
from pyro_flows.diagnostics.anchors import more
from pyro_flows.distributions import Flow
from pyro_flows.errors import ContextError, DataError, DensityError, ShapeError
from pyro_flows.flows.options import complaint
from pyro_flows.flows.registry import constructor_of
from pyro_flows.transforms import Layer

if TYPE_CHECKING:
    from pyro_flows.density.flow_density import FlowDensity

FlowSpec = str | Flow | Callable[..., "Flow | Iterable[Layer]"]
DTYPES = {"float32": torch.float32, "float64": torch.float64}
FEWEST_ROWS = 10
OPTIONS_EXPECTED = "FlowDensity expected flow_options"


def check_arguments(density: FlowDensity) -> None:
    """Raise DensityError if an argument of the constructor can't be used."""
    for name in ("batch_size", "max_epochs", "num_steps", "patience"):
        value = getattr(density, name)
        if not is_count(value) and not (value is None and name in ("num_steps", "patience")):
            raise DensityError(
                f"FlowDensity expected {name} to be an integer >= 1, but got {value!r}. Leave it "
                "out for the default."
            )
    for name in ("learning_rate", "max_seconds"):
        number = getattr(density, name)
        if not (isinstance(number, Real) and float(number) > 0) and number is not None:
            raise DensityError(
                f"FlowDensity expected {name} > 0, but got {number!r}. Leave it out for the "
                "default."
            )
    _check_shares(density)
    counts = density.components
    several = counts if isinstance(counts, Collection) and np.ndim(counts) else [counts]
    if counts is not None and not (len(several) and all(map(is_count, several))):
        raise DensityError(
            f"FlowDensity expected components to be integers >= 1, but got {counts!r}. Leave "
            "it out for the default, or say None for no mixture."
        )
    check_seed(density.seed, "FlowDensity", "leave it out for 0")
    if density.dtype not in DTYPES:
        raise DensityError(
            f"FlowDensity expected dtype to be 'float32' or 'float64', but got {density.dtype!r}."
        )
    check_device(density.device)
    if density.compile not in ("auto", True, False):
        raise DensityError(
            'FlowDensity expected compile to be "auto", True or False, but got '
            f"{density.compile!r}. False is the default."
        )
    _check_options(density.flow, density.flow_options)


def check_seed(seed: Any, who: str, default: str) -> None:
    """Raise DensityError unless torch takes the seed."""
    if not isinstance(seed, Integral) or not -(2**63) <= int(seed) < 2**63:
        raise DensityError(
            f"{who} expected seed to be an integer of 64 bits, but got {seed!r}. Random numbers "
            f"have one, so that they can be drawn again; {default}."
        )


def _check_options(flow: FlowSpec, options: Any) -> None:
    """Raise DensityError if options are given to a flow that doesn't take them."""
    if options is not None and not isinstance(options, Mapping):
        raise DensityError(
            "FlowDensity expected flow_options to be a dict of options by name, but got "
            f"{options!r}. Give them as in flow_options={{'layers': 4}}."
        )
    if isinstance(flow, str):
        constructor = constructor_of(flow)
        unknown = complaint(constructor, options or (), OPTIONS_EXPECTED, f"'{flow}'")
        if unknown:
            raise DensityError(unknown)
    elif options and isinstance(flow, torch.nn.Module):
        raise DensityError(
            f"FlowDensity expected no flow_options beside a {type(flow).__name__} that is already "
            f"built, but got {', '.join(map(repr, options))}. Build it with them."
        )


def _check_shares(density: FlowDensity) -> None:
    """Raise DensityError if a share isn't between 0 and 1, or weight_decay is below 0."""
    if not (isinstance(density.holdout, Real) and 0 < density.holdout < 1):
        raise DensityError(
            f"FlowDensity expected holdout between 0 and 1, but got {density.holdout!r}. It is "
            "the share of rows that decide when to stop; or give fit a validation set."
        )
    dropout = density.dropout
    if dropout is not None and not (isinstance(dropout, Real) and 0 <= dropout < 1):
        raise DensityError(
            f"FlowDensity expected dropout of at least 0 and less than 1, but got "
            f"{density.dropout!r}. 0 is none."
        )
    decay = density.weight_decay
    if not (isinstance(decay, Real) and 0 <= decay < math.inf):
        raise DensityError(
            f"FlowDensity expected weight_decay to be a number >= 0, but got {decay!r}. 0 is none."
        )


def is_count(value: Any) -> bool:
    """Whether it is an integer of at least 1, of Python or numpy."""
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 1


def read_rows(x: Any, context: Any = None, what: str = "") -> Rows:
    """Finite rows in float64 with their context; one context row serves all rows."""
    rows = tables.as_rows(x, f"{what}x")
    tables.check_finite(rows, f"{what}x")
    if context is None:
        return Rows(rows)
    given = tables.as_rows(context, f"{what}context").to(rows.device)
    tables.check_finite(given, f"{what}context")
    if len(given) == 1:
        given = given.expand(len(rows), -1)
    if len(given) != len(rows):
        raise ContextError(
            f"Expected one row of {what}context for each of {len(rows)} rows of x, but got "
            f"{len(given)}. Pass as many, or a single one for all."
        )
    return Rows(rows, given)


def read_validation(validation: Any, rows: Rows, *tables_of_fit: Any) -> Rows:
    """The validation set as rows like those to train on, which came in those tables."""
    pair = validation if isinstance(validation, tuple) else (validation, None)
    if len(pair) != 2 or (pair[1] is None) != (rows.context is None):
        wanted = "x_val" if rows.context is None else "(x_val, context_val)"
        raise ContextError(
            f"Expected validation={wanted}, since fit was called with"
            f"{'out' if rows.context is None else ''} a context. Pass it like that."
        )
    for given, known, what in zip(pair, tables_of_fit, ("x", "context"), strict=False):
        names = tables.column_names(given), tables.column_names(known)
        tables.check_names(*names, f"validation {what}")
    held = read_rows(*pair, what="validation ")
    if not len(held):
        raise DataError("Expected validation rows, but got none. Leave validation= out for none.")
    tables.check_width(held.x, rows.x.shape[1], "validation x")
    if held.context is not None and rows.context is not None:
        tables.check_width(held.context, rows.context.shape[1], "context")
    return held


def check_number(rows: Rows) -> None:
    """Raise DataError if there are too few rows to fit to."""
    if len(rows) < FEWEST_ROWS:
        raise DataError(
            f"Expected at least {FEWEST_ROWS} rows, but got {len(rows)}. A density of so few rows "
            "says nothing."
        )


def split(rows: Rows, holdout: float) -> tuple[Rows, Rows]:
    """Rows to train on and rows held out, by chance."""
    copies = tables.count_copies(rows.x, rows.context)
    if copies > tables.MOST_SHARED * len(rows):
        warnings.warn(
            f"{copies} of {len(rows)} rows repeat others. With copies among the rows held out, a "
            "flow can learn rows by heart and best_score_ doesn't show it. Drop the copies, or "
            f"give fit a validation set of other rows. {more('repeated-rows')}",
            stacklevel=3,
        )
    count = min(max(1, round(holdout * len(rows))), len(rows) - 2)
    order = torch.randperm(len(rows)).to(rows.x.device)
    return rows[order[count:]], rows[order[:count]]


def make_columns(x: Tensor, bounds: list[Bounds], names: list[str] | None) -> Columns:
    """Supports as given, tails, mean and standard deviation from data."""
    tables.check_varies(x, "x", names)
    low, high = torch.tensor(bounds, dtype=x.dtype, device=x.device).unbind(-1)
    columns = Columns(low, high, torch.zeros_like(low), torch.ones_like(low))
    check_inside(columns, x, "x", names)
    columns = Columns.of(x, low, high)
    tables.check_spread(columns.loc, columns.scale, names)
    squeezed = squeezed_columns(columns.inverse_and_ladj(x)[0])
    if squeezed:
        warnings.warn(
            f"x has columns with values so far from the rest that the rest is squeezed to nearly "
            f"one value beside them: {tables.label(squeezed, names)}. A flow sees little of it "
            f"then. Mend or drop those values, or take logarithms. {more('squeezed-columns')}",
            stacklevel=3,
        )
    return columns


def make_context_columns(context: Tensor) -> Columns:
    """Mean and standard deviation of the context, where it varies.

    A rare category may be in none of the rows to train on; that it is in the table is checked by
    ``fit``.
    """
    low = torch.full_like(context[0], -torch.inf)
    columns = Columns.of(context, low, -low)
    constant = (context == context[:1]).all(0)
    columns.scale = torch.where(constant, torch.ones_like(columns.scale), columns.scale)
    return columns


def warn_of_repeats(x: Tensor, names: list[str] | None) -> None:
    """Warn of columns whose density could be driven to infinity: repeated values, dependence."""
    few, one = tables.repeated_columns(x, names)
    for columns, what in ((few, "of few distinct values"), (one, "where many rows share a value")):
        if columns:
            warnings.warn(
                f"x has columns {what}: {columns}. A flow can make their density as high as it "
                "likes at those values, and scores then say nothing. Add noise of the size of "
                "their resolution (x + resolution * uniform), or make them the context. "
                f"{more('repeated-values')}",
                stacklevel=3,
            )
    dependent = tables.dependent_columns(x, names)
    if dependent:
        warnings.warn(
            f"x has columns that are sums of multiples of those before them: {dependent}. The "
            "rows lie in a plane, where a flow can make their density as high as it likes, and "
            f"scores then say nothing. Drop those columns. {more('dependent-columns')}",
            stacklevel=3,
        )


def check_inside(columns: Columns, x: Tensor, what: str, names: list[str] | None) -> None:
    """Raise DataError if values lie outside the support or on its edge."""
    outside = ~columns.inside(x)
    if not bool(outside.any()):
        return
    row, column = outside.nonzero()[0].tolist()
    low, high = float(columns.low[column]), float(columns.high[column])
    label = repr(names[column]) if names else column
    raise DataError(
        f"{what} has {int(outside.any(-1).sum())} rows outside the support: row {row}, column "
        f"{label} is {float(x[row, column]):.6g}, and support= says strictly between {low:g} and "
        f"{high:g}. Mend the value, or widen the support; values on an edge can be moved inside "
        "by noise of the size of the column's resolution."
    )


def check_reach(z: Tensor, ladj: Tensor) -> None:
    """Raise DataError if no standardised validation row is near enough to be scored."""
    far = z.abs() > torch.finfo(z.dtype).max ** 0.5  # their squares are infinite
    if not bool(((~far).all(-1) & ladj.isfinite().to(z.device)).any()):
        raise DataError(
            f"All {len(z)} rows of validation x are so far from those of fit that "
            f"{str(z.dtype).removeprefix('torch.')} can't score them. Give both in one unit."
        )


def check_space(space: Any, columns: Columns, *tables_of_rows: Tensor) -> None:
    """Raise DataError if rows lie where a flow of bounded space, such as angles, never is."""
    for x in tables_of_rows:
        inside = space.check(columns.inverse_and_ladj(x)[0])
        if not bool(inside.all()):
            row = int((~inside).nonzero()[0, 0])
            raise DataError(
                f"x has {int((~inside).sum())} rows outside of the space of this flow, which is "
                f"{getattr(space, 'base_constraint', space)}; one is {x[row].tolist()}. Bring "
                "them there (angles by pyro_flows.ops.wrap), or choose a flow over all numbers."
            )


def build_flow(spec: FlowSpec, dim: int, context_dim: int, options: Mapping[str, Any]) -> Any:
    """A new flow from what the user gave.

    Raises:
        DensityError: it isn't a flow.
        ShapeError: it has other sizes than the data.
    """
    if isinstance(spec, str):
        made: Any = flows.make(spec, dim, context_dim, **options)
    elif isinstance(spec, torch.nn.Module):
        made = deepcopy(spec)
    elif callable(spec):
        sizes = (dim, context_dim) if context_dim else (dim,)
        unknown = complaint(spec, options, OPTIONS_EXPECTED, "the function given", len(sizes))
        if unknown:
            raise DensityError(unknown)
        made = spec(*sizes, **options)
    else:
        raise DensityError(
            "FlowDensity expected flow to be a registered name, a function of dim, or a Flow, but "
            f"got {type(spec).__name__}. Registered are: {', '.join(flows.available())}."
        )
    if isinstance(made, Layer):
        made = Flow([made])
    if not isinstance(made, (torch.nn.Module, Iterable)):
        raise DensityError(
            f"FlowDensity expected the function given as flow to make a Flow or a list of layers, "
            f"but got {type(made).__name__}. Return what it builds."
        )
    flow = made if isinstance(made, torch.nn.Module) else Flow(list(made))
    if not hasattr(flow, "log_prob"):
        raise DensityError(
            f"FlowDensity expected a flow, which has log_prob(x, context), but got "
            f"{type(flow).__name__}. Pass a Flow, or layers."
        )
    found = (getattr(flow, "dim", dim), getattr(flow, "context_dim", context_dim))
    if found != (dim, context_dim):
        raise ShapeError(
            f"x has {dim} columns and context {context_dim}, so FlowDensity expected a flow of "
            f"dim={dim}, context_dim={context_dim}, but got dim={found[0]}, "
            f"context_dim={found[1]}. Pass a name, or a function (dim, context_dim)."
        )
    return flow
