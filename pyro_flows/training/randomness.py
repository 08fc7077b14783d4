# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Random numbers of a run: its own, from one seed, torch's left as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def torch_seeded(seed: int) -> Iterator[None]:
    """Seed torch inside; put its state back outside, also that of accelerators in use.

    Args:
        seed: any integer.
    """
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


class TorchGenerators:
    """torch's global generators, also those of accelerators in use, for a checkpoint."""

    def state(self) -> dict[str, Any]:
        """Where they are."""
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        return {"cpu": torch.get_rng_state(), "cuda": cuda}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        torch.set_rng_state(state["cpu"])
        if state["cuda"]:
            torch.cuda.set_rng_state_all(state["cuda"])
