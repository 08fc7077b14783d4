# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Whether Python may look at values: iterations stop early only where they can."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode

# Recorders at work. Seen by all threads, since autograd's own may run part of what is recorded.
_recorders = 0


@contextmanager
def recording() -> Iterator[None]:
    """Inside, :func:`is_recording` is true: for recorders that torch doesn't know."""
    global _recorders  # noqa: PLW0603
    _recorders += 1
    try:
        yield
    finally:
        _recorders -= 1


def is_recording() -> bool:
    """Whether the operations are being recorded, so that a loop must not depend on values.

    True under ``torch.compile``, ``torch.jit.trace``, ``make_fx``, functorch's transforms
    (``vmap``, ``grad``, ...) and inside :func:`recording`. An early stop taken there would freeze
    the number of passes of one call for all others, or can't be evaluated at all.

    Example:
        >>> is_recording(), bool(torch.vmap(lambda x: x * is_recording())(torch.ones(2)).all())
        (False, True)
    """
    if torch.compiler.is_compiling():
        return True
    return (
        torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or get_proxy_mode() is not None
        or _recorders > 0
    )
