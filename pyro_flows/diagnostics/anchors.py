# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Where the documentation says more about what is printed."""

from __future__ import annotations

__all__ = ["WARNINGS", "more"]

# From the repository's root. Each of its sections has an anchor, which stays when titles change.
WARNINGS = "docs/explanation/warnings.md"


def more(anchor: str) -> str:
    """The line under a warning that says where to read on.

    Args:
        anchor: of a section of the page of warnings.

    Example:
        >>> more("missed-modes")
        'More: docs/explanation/warnings.md#missed-modes'
    """
    return f"More: {WARNINGS}#{anchor}"
