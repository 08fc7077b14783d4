# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What the default fit is asked to reach, figure by figure, and what it reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import figures
from .figures import Figure
from .tables import over_seeds, spread

Row = dict[str, Any]


@dataclass(frozen=True)
class Bar:
    """One line of the table.

    Attributes:
        what: the figure's name.
        figure: from a row to the figure; None where it has none.
        bars: of the median over targets, the 90 % point and the worst fit; or of one figure.
        targets: names of targets, or of their groups.
        guide: whose rows.
        form: how a figure is printed.
        least: the bars are lower ones.
        mean: the one figure is the mean over fits; else the worst.
    """

    what: str
    figure: Figure
    bars: tuple[float, ...]
    targets: tuple[str, ...]
    guide: str = "flow"
    form: str = "{:.4f}"
    least: bool = False
    mean: bool = False

    def measured(self, rows: list[Row]) -> list[float]:
        """What is compared with the bars."""
        if len(self.bars) > 1:
            worst, share = (min, 0.1) if self.least else (max, 0.9)
            return list(spread(over_seeds(rows, self.figure, worst), share))
        values = [value for row in rows if (value := self.figure(row)) is not None]
        if self.mean:  # of what has a value: constant weights have no k-hat
            values = [value for value in values if value > -np.inf] or values
        return [float(np.mean(values) if self.mean else np.max(values))]

    def line(self, rows: Sequence[Row]) -> str:
        """The line of markdown."""
        wanted = ", ".join(self.form.format(bar) for bar in self.bars)
        mine = [
            row
            for row in rows
            if row["guide"] == self.guide
            and (row["target"] in self.targets or row.get("group") in self.targets)
            and self.figure(row) is not None
        ]
        seeds = len({row["seed"] for row in mine})
        if not mine:
            return f"| {self.what} | {wanted} | not measured | 0 | 0 | |"
        found = self.measured(mine)
        sign = -1 if self.least else 1
        met = all(sign * x <= sign * bar for x, bar in zip(found, self.bars, strict=True))
        shown = ", ".join(map(self.form.format, found))
        return (
            f"| {self.what} | {wanted} | {shown} | {len(mine)} | {seeds} "
            f"| {'yes' if met else '**no**'} |"
        )


_CREDIT = ("credit_flat", "credit_n10", "credit_gym")
_FUNNELS = ("funnel_10", "funnel_100")
_GAPS = {
    "sonar": 0.10,
    "ionosphere": 0.05,
    "seeds": 0.03,
    "brownian": 0.03,
    **dict.fromkeys(_CREDIT, 0.005),
    **dict.fromkeys(_FUNNELS, 0.001),
    "eight_schools_centered": 0.01,
    "low_dim_gauss_mix_two_modes": 0.05,
    "slcp_opaque": 0.05,
}
_BUDGETS = (
    ("eight_schools_centered", "70", 0.01),
    ("funnel_10_opaque", "100", 0.05),
    ("funnel_10_opaque", "500", 0.01),
    ("rotated_funnel_10_opaque", "100", 0.05),
    ("rotated_funnel_10_opaque", "500", 0.01),
)
_OFF = figures.LARGEST_OFF
_SEVERAL_MODES = (
    *("low_dim_gauss_mix_two_modes", "slcp_opaque", "gmm_40_opaque", "two_moons_opaque"),
    *("many_well_6_opaque", "many_well_32_opaque"),
)
_ALL = ("posteriordb",)
_KNOWN = ("posteriordb", "classic", "hierarchical", "synthetic", "sbibm")
BARS = (
    Bar("posteriordb, gap: median, 90 %, worst", figures.gap, (0.001, 0.005, 0.02), _ALL),
    Bar(
        "posteriordb, effective share: median, 90 %, worst",
        *(figures.share, (0.99, 0.95, 0.85), _ALL),
        form="{:.3f}",
        least=True,
    ),
    Bar(
        "posteriordb, share of fits with an error beyond its bound",
        *(figures.beyond, (0.0,), _ALL),
        form="{:.3f}",
        mean=True,
    ),
    Bar("posteriordb, k-hat, worst", figures.khat, (0.7,), _ALL, form="{:.2f}"),
    Bar("posteriordb, k-hat, mean", figures.khat, (0.7,), _ALL, form="{:.2f}", mean=True),
    *(Bar(f"{name}, gap", figures.gap, (bar,), (name,)) for name, bar in _GAPS.items()),
    Bar("credit_*, gradients", figures.gradients, (500_000,), _CREDIT, form="{:,.0f}"),
    Bar("funnels as sites, gradients", figures.gradients, (5_000,), _FUNNELS, form="{:,.0f}"),
    *(
        Bar(
            f"{name}, gap within {budget},000 gradients",
            *(figures.within(figures.gap, 1000 * int(budget)), (bar,), (name,)),
            guide=f"flow_{budget}k",
        )
        for name, budget, bar in _BUDGETS
    ),
    Bar(
        "eight_schools_centered, seconds within 70,000 gradients",
        *(figures.seconds, (20.0,), ("eight_schools_centered",)),
        guide="flow_70k",
        form="{:.0f}",
    ),
    *(
        Bar(f"{name}, shares of modes", figures.modes, (_OFF,), (name,), form="{:.3f}")
        for name in _SEVERAL_MODES
    ),
    Bar(
        "shares of modes that are off, and the verdict doesn't tell",
        *(figures.untold, (0.0,), _SEVERAL_MODES),
        form="{:.0f}",
    ),
    Bar("gmm_40_opaque, modes missing", figures.missing, (0,), ("gmm_40_opaque",), form="{:.0f}"),
    Bar(
        "evidence from 2,000 draws, mean absolute error",
        *(figures.evidence, (0.01,), _KNOWN),
        mean=True,
    ),
)


def table(rows: Sequence[Row]) -> str:
    """Gives markdown: every bar, what was measured, and whether it is met."""
    lines = ["| figure | wanted | measured | fits | seeds | met |", "|---|---|---|---|---|---|"]
    lines += [bar.line(rows) for bar in BARS]
    ours = [row for row in rows if row["guide"].startswith("flow")]
    failed = sum("error" in row for row in ours)
    sound = [row for row in ours if row["target"] != "edge_nan"]  # whose density has NaN in it
    broken = sum(row.get("n_nan", 0) > 1e-3 * row.get("n", 1) for row in sound)
    answer = "**no**" if failed + broken else "yes"
    lines.append(
        "| fits without a result; with NaN beyond 0.1 %, but edge_nan "
        f"| 0; 0 | {failed}; {broken} "
        f"| {len(ours)} | {len({row['seed'] for row in ours})} | {answer} |"
    )
    return "\n".join([*lines, _compiled(rows)])


def _compiled(rows: Sequence[Row]) -> str:
    """The line that tells how much compiled steps change: equal seeds, compiled and not."""
    what, bar = "with `compile=True`, largest difference of gaps", 0.01
    gaps: dict[str, dict[Any, float]] = {"flow": {}, "flow_compiled": {}}
    for row in rows:
        if row["guide"] not in gaps or row.get("gap") is None:
            continue
        if row["guide"] == "flow" or str(row.get("compiled")).startswith("compiled"):
            gaps[row["guide"]][row["target"], row["seed"]] = row["gap"]
    pairs = sorted(gaps["flow"].keys() & gaps["flow_compiled"].keys())
    if not pairs:
        return f"| {what} | {bar} | not measured | 0 | 0 | |"
    apart = [abs(gaps["flow"][pair] - gaps["flow_compiled"][pair]) for pair in pairs]
    most = float(np.nan_to_num(apart, nan=np.inf).max())
    met = "yes" if most <= bar else "**no**"
    return f"| {what} | {bar} | {most:.4f} | {len(pairs)} | {len({s for _, s in pairs})} | {met} |"
