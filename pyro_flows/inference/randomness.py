# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Random numbers of a run: its own, from one seed, the world's left as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from pyro_flows.guides import structure
from pyro_flows.training.randomness import TorchGenerators


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, numpy and torch inside; put their states back outside.

    Args:
        seed: any integer.
    """
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with structure.random_state_kept():
            random.seed(seed)
            np.random.seed(seed % 2**32)
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


class Generators:
    """The global generators of Python, numpy and torch, for a checkpoint."""

    def state(self) -> dict[str, Any]:
        """Where they are."""
        name, keys, *rest = np.random.get_state()
        numpy = [name, np.asarray(keys).tolist(), *rest]
        return {"python": random.getstate(), "numpy": numpy, "torch": TorchGenerators().state()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        random.setstate(state["python"])
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
        TorchGenerators().set_state(state["torch"])
