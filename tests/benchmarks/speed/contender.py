# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What is timed, in the words that all workers share: no torch, no JAX."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Spec = dict[str, Any]
Facts = dict[str, Any]


@dataclass(frozen=True)
class Contender:
    """Something that is ready to take steps.

    Attributes:
        steps: Takes so many steps, and is done with them when it returns.
        judge: What is known of the state after the latest steps; not timed.
        facts: What is known beforehand, such as the number of parameters.
    """

    steps: Callable[[int], None]
    judge: Callable[[], Facts] = dict
    facts: Facts = field(default_factory=dict)


class LeftOut(Exception):
    """This contender can't take part here; the text says why."""
