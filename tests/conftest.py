# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Every test starts from the same state, and leaves none: dtype, seeds, parameter store.

torch and Pyro are imported only if they are there: the run against ArviZ 1.x has neither.
"""

from __future__ import annotations

import importlib.util

import pytest

HAS_PYRO = all(importlib.util.find_spec(name) for name in ("torch", "pyro"))


@pytest.fixture(autouse=True)
def clean_state():
    """float64, seed 0, no parameters in the store, checks on, one thread; restored after it."""
    if not HAS_PYRO:
        yield
        return
    import pyro
    import torch

    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    pyro.enable_validation(True)  # torch.compile switches it off for the rest of the process
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(None)
        pyro.clear_param_store()
