# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Integers that a model observes where only floating point will do, as 0 and 1 of Bernoulli."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def settle(model: Callable[..., Any], values: dict[str, Any]) -> list[str]:
    """Make integers floating point, in place, where a distribution can't score them.

    A table says ``0`` and ``1``, and doesn't say what for: an index must be an integer, what a
    ``Bernoulli`` is to score must not be. The model is run once to see.

    Args:
        model: the model.
        values: its arguments by name.

    Returns:
        What was changed, a line each.

    Cost: one run of the model, if it is given integers.
    """
    import torch
    from pyro import get_param_store

    from pyro_flows.guides.structure import observed_sites, random_state_kept, trace_model

    whole = {
        name: value
        for name, value in values.items()
        if isinstance(value, torch.Tensor) and not value.is_floating_point()
    }
    if not whole:
        return []
    try:
        with random_state_kept(), get_param_store().scope():
            sites = observed_sites(trace_model(model, **values))
    except Exception:  # noqa: BLE001 (the fit itself will say what is wrong, and better)
        return []
    changed = []
    for site_name, site in sites.items():
        for name, value in whole.items():
            if site["value"] is value and _only_floating(site["fn"], value):
                values[name] = value.to(torch.get_default_dtype())
                kind = type(site["fn"]).__name__
                changed.append(f"{name}: as floating point, which {site_name!r} ({kind}) needs")
    return changed


def _only_floating(distribution: Any, value: Any) -> bool:
    import torch

    try:
        distribution.log_prob(value)
    except (RuntimeError, TypeError):
        try:
            distribution.log_prob(value.to(torch.get_default_dtype()))
        except (RuntimeError, TypeError, ValueError):
            return False
        return True
    except ValueError:  # outside the support, whatever its dtype
        return False
    return False
