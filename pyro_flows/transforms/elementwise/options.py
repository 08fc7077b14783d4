# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Options of univariates, checked where they are given: a wrong one would show as NaN, later."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from pyro_flows.errors import OptionError


def require_within(univariate: Any, **ranges: tuple[float, float]) -> None:
    """Raise OptionError unless each named option of a univariate is a number within its range.

    Args:
        univariate: a dataclass; its fields of type ``int`` take integers alone.
        ranges: option -> (least, most), both allowed.
    """
    for name, (least, most) in ranges.items():
        got, field = getattr(univariate, name), type(univariate).__dataclass_fields__[name]
        counted = field.type in ("int", int)
        kind = Integral if counted else Real
        if not isinstance(got, kind) or isinstance(got, bool) or not least <= float(got) <= most:
            raise OptionError(
                f"{type(univariate).__name__} expected {name} between {least:g} and {most:g}"
                f"{', an integer' if counted else ''}, but got {name}={got!r}. The default is "
                f"{field.default}."
            )
