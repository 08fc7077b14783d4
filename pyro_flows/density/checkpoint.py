# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What an unfinished fit of a density leaves on disk for another process to go on with."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from torch import nn

from pyro_flows.density.columns import Columns
from pyro_flows.density.fitting import Rows
from pyro_flows.training.checkpoint import Checkpoint, Keeper, Stateful, digest, layers
from pyro_flows.training.randomness import TorchGenerators

FIRST, SECOND = "first.pt", "second.pt"
# Arguments that don't alter a fit, or that are looked at where they have been used.
LEFT_OUT = frozenset({"flow", "support", "device", "checkpoint", "progress"})


class FitCheckpoint:
    """The checkpoint of one fit: the training of its flow, and of a second one if there is one.

    What comes before training is quick, and made again from the seed.

    Args:
        path: of the folder.
        clock: of the fit.

    Raises:
        CheckpointError: something else is there.
    """

    def __init__(self, path: str | os.PathLike[str], clock: Stateful) -> None:
        self.folder, self.clock = Checkpoint(path, (FIRST, SECOND)), clock

    def open(
        self, params: Mapping[str, Any], flow: nn.Module, columns: Columns, rows: Rows, held: Rows
    ) -> None:
        """Make it, or see that it is of this fit.

        Args:
            params: the estimator's.
            flow: as it was built.
            columns: with the support.
            rows: to train on.
            held: to judge by.

        Raises:
            CheckpointError: it is of another fit, or damaged.
        """
        spec = params["flow"]
        facts = {
            **{name: _plain(params[name]) for name in sorted(set(params) - LEFT_OUT)},
            "flow": spec if isinstance(spec, str) else getattr(spec, "__name__", None),
            "flow's layers": digest(layers(flow)),
            "device": str(next(flow.parameters()).device),
            "support": digest([columns.low, columns.high]),
            "rows": digest(rows.tensors()),
            "validation rows": digest(held.tensors()),
        }
        if self.folder.exists:
            self.folder.check(facts)
        else:
            self.folder.prepare()
            self.folder.begin(facts, {})

    def keeper(self, name: str) -> Keeper:
        """Of one training."""
        parts: dict[str, Stateful] = {"clock": self.clock, "random numbers": TorchGenerators()}
        return Keeper(self.folder, name, parts)


def _plain(value: Any) -> Any:
    """A value as JSON holds it, or its digest."""
    try:
        plain = value.tolist() if hasattr(value, "tolist") else value
        json.dumps(plain)
    except TypeError:
        return digest(value)
    return plain
