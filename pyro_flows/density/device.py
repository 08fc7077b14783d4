# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Whether a device asked for is here."""

from __future__ import annotations

from typing import Any

import torch

from pyro_flows.errors import DensityError


def check_device(device: Any) -> None:
    """Raise DensityError unless tensors can be put there; None is where the data are."""
    trouble = None if device is None else device_trouble(device)
    if trouble:
        raise DensityError(
            f"FlowDensity expected device to be one that torch has here, such as 'cpu', but got "
            f"{device!r} ({trouble}). Leave it out to train where the data are."
        )


def device_trouble(device: Any) -> str | None:
    """Why tensors can't be put on a device, in a line; None if they can."""
    try:
        if torch.empty(0, device=device).is_meta:
            return "tensors there hold no numbers"
    except (RuntimeError, TypeError, AssertionError, ImportError) as error:  # by kind of device
        return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(". ")
    return None
