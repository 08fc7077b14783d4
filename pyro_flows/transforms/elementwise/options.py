# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Options of univariates, checked where they are given: a wrong one would show as NaN, later."""

from __future__ import annotations

from typing import Any

from pyro_flows.errors import OptionError


def require_within(univariate: Any, **ranges: tuple[float, float]) -> None:
    """Raise OptionError unless each named option of a univariate lies within its range.

    Args:
        univariate: a dataclass.
        ranges: option -> (least, most), both allowed.
    """
    for name, (least, most) in ranges.items():
        got = getattr(univariate, name)
        if not least <= got <= most:
            default = type(univariate).__dataclass_fields__[name].default
            raise OptionError(
                f"{type(univariate).__name__} expected {name} between {least:g} and {most:g}, but "
                f"got {name}={got}. The default is {default}."
            )
