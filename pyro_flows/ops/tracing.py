# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Whether Python may look at values: iterations stop early only where they can."""

from __future__ import annotations

import torch
from torch.fx.experimental.proxy_tensor import get_proxy_mode


def is_recording() -> bool:
    """Whether the operations are being recorded, so that a loop must not depend on values.

    True under ``torch.compile``, ``torch.jit.trace``, ``make_fx`` and functorch's transforms
    (``vmap``, ``grad``, ...). An early stop taken there would freeze the number of passes of one
    call for all others, or can't be evaluated at all.

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
    )
