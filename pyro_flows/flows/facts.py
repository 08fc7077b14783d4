# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What is known of a named flow: directions, costs, source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

UNKNOWN = "not stated"


@dataclass(frozen=True)
class FlowFacts:
    """What :func:`pyro_flows.flows.register_flow` was told of a flow; prints as a paragraph.

    Costs are in words. *One pass*: every network runs once. *dim steps*: coordinate by
    coordinate, steps that together cost about one pass, or whole passes until nothing moves,
    whichever is less work. *Up to dim passes*: whole passes until nothing moves. *Roots*: no
    formula, but a root finder, element by element, with the gradient of the implicit function
    theorem. *Fixed point*: an iteration to rounding error. *dim tangents*: the Jacobian goes
    along. *ODE steps*: a solver's.

    Args:
        name: what it is registered under.
        summary: first line of its description.
        density: cost of ``log_prob`` of given values, from data to base.
        sampling: cost of ``rsample``, from base to data.
        conditional: whether it takes a context; None if nobody said.
        space: where its values live.
        paper: authors and title.
        year: of the paper.
        link: to the paper.

    Example:
        >>> nsf = flows.facts("nsf")
        >>> nsf.density, nsf.sampling, nsf.conditional, nsf.year
        ('one pass', 'one pass', True, 2019)
    """

    name: str
    summary: str
    density: str = UNKNOWN
    sampling: str = UNKNOWN
    conditional: bool | None = None
    space: str = "real numbers"
    paper: str = ""
    year: int | None = None
    link: str = ""

    def __str__(self) -> str:
        source = f"{self.paper}, {self.year}, {self.link}" if self.paper else UNKNOWN
        return (
            f"{self.name}: {self.summary}\n"
            f"  log_prob (data to base): {self.density}\n"
            f"  sampling (base to data): {self.sampling}\n"
            f"  context: {_yes(self.conditional)}\n"
            f"  values: {self.space}\n"
            f"  paper: {source}"
        )


def as_table(rows: Iterable[FlowFacts]) -> str:
    """The facts as a table in Markdown, a row for each flow."""
    lines = [
        "| name | what it is | `log_prob` | sampling | context | paper |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        paper = f"[{row.paper}]({row.link}), {row.year}" if row.link else row.paper
        cells = (
            f"`{row.name}`",
            row.summary.rstrip("."),
            row.density,
            row.sampling,
            _yes(row.conditional),
            paper,
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _yes(stated: object) -> str:
    return UNKNOWN if stated is None else "yes" if stated else "no"
