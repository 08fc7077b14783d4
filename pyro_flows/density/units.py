# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Between the user's tables and what the flow sees, both ways."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from pyro_flows.density import tables
from pyro_flows.density.arguments import read_rows
from pyro_flows.density.columns import Columns
from pyro_flows.density.fitting import Rows
from pyro_flows.errors import ContextError, DataError


class Units:
    """The units of a fit: how its tables are read, standardised, and answered in kind.

    Args:
        columns: layer from standardised rows to those of x, in float64.
        context_columns: the same for the context, if there is one.
        kind: what the table of the fit was.
        names: its columns' names, if it had any.
        dtype: of the flow.
        device: of the flow.
        context_names: the names of the context's columns, if it had any.
    """

    def __init__(
        self,
        columns: Columns,
        context_columns: Columns | None,
        kind: tables.Kind,
        names: list[str] | None,
        dtype: torch.dtype,
        device: torch.device,
        context_names: list[str] | None = None,
    ) -> None:
        self.columns, self.context_columns = columns, context_columns
        self.kind, self.names, self.dtype, self.device = kind, names, dtype, device
        self.context_names = context_names

    @property
    def dim(self) -> int:
        """Number of columns."""
        return self.columns.dim

    @property
    def context_dim(self) -> int:
        """Number of columns of the context, 0 for none."""
        return 0 if self.context_columns is None else self.context_columns.dim

    def read(self, x: Any, context: Any) -> Rows:
        """Tables like those of the fit, in their own units, on the columns' device."""
        given = self._read_context(context)
        rows = read_rows(x, None if given is None else given[0])
        tables.check_width(rows.x, self.dim, "x")
        tables.check_names(tables.column_names(x), self.names, "x")
        here = self.columns.loc.device
        return Rows(rows.x.to(here), None if rows.context is None else rows.context.to(here))

    def read_context(self, context: Any) -> Tensor | None:
        """A context to sample at, standardised: ``(m, context_dim)`` or ``(context_dim,)``."""
        given = self._read_context(context)
        if given is None or self.context_columns is None:
            return None
        rows, single = given
        tables.check_finite(rows, "context")
        inner = self._standardise_context(self.context_columns, rows)
        return inner[0] if single else inner

    def _read_context(self, context: Any) -> tuple[Tensor, bool] | None:
        """Rows of a context like that of the fit, and whether it was a single one, flat."""
        if (context is None) != (self.context_dim == 0):
            wanted = "no context" if context is not None else f"{self.context_dim} columns of it"
            got = "none" if context is None else "one"
            raise ContextError(
                f"Expected {wanted}, as in fit, but got {got}. Pass a context if, and only if, "
                "fit was given one."
            )
        if context is None:
            return None
        numbers = tables.as_numbers(context, "context")
        # Several numbers where one is wanted may be meant as a column of as many rows.
        single = numbers.dim() == 1 and (self.context_dim > 1 or len(numbers) == 1)
        rows = tables.as_rows(numbers.unsqueeze(0) if single else numbers, "context")
        tables.check_width(rows, self.context_dim, "context")
        names = tables.row_names(context) if single else tables.column_names(context)
        tables.check_names(names, self.context_names, "context")
        return rows, single

    def _standardise_context(self, columns: Columns, context: Tensor) -> Tensor:
        """Context as the flow sees it."""
        here = context.to(columns.loc.device)
        inner = self._place(columns.inverse_and_ladj(here)[0])
        beyond = ~inner.isfinite().all(-1)
        if bool(beyond.any()):
            raise DataError(
                f"context has {int(beyond.sum())} rows so far from those of fit that "
                f"{str(self.dtype).removeprefix('torch.')} doesn't hold them; the first is row "
                f"{int(beyond.nonzero()[0, 0])}. Mend those rows: nothing is known of such ones."
            )
        return inner

    def standardise(self, rows: Rows) -> tuple[Rows, Tensor]:
        """Rows as the flow sees them, and log|dz/dx| of each in float64.

        Rows so far out that the flow's dtype doesn't hold them have no density: -inf.
        """
        wide, ladj = self.columns.inverse_and_ladj(rows.x)
        z = self._place(wide)
        held = z.isfinite()
        ladj = torch.where(held.all(-1).to(ladj.device), ladj, torch.full_like(ladj, -torch.inf))
        z = torch.where(held, z, torch.zeros_like(z))
        context = rows.context
        if self.context_columns is not None and context is not None:
            context = self._standardise_context(self.context_columns, context)
        return Rows(z, context), ladj

    def restore(self, z: Tensor) -> Any:
        """Standardised rows in the units of x and of the kind that fit was given."""
        draws = self.columns.forward_and_ladj(z.to(self.columns.loc))[0].to(self.kind.dtype)
        return self.kind.answer(self.columns.pull_inside(draws))

    def layer(self) -> Columns:
        """The columns in the dtype and on the device of the flow."""
        return deepcopy(self.columns).to(self.device, self.dtype)

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, self.dtype)
