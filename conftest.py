# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
"""Names that the examples in docstrings use without importing them."""

import pytest


@pytest.fixture(autouse=True)
def _names_of_doctests(request: pytest.FixtureRequest) -> None:
    """Give docstring examples the usual imports, a seed and an empty parameter store."""
    if not isinstance(request.node, pytest.DoctestItem):
        return
    import numpy as np
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import SVI, Trace_ELBO

    import pyro_flows
    from pyro_flows import (
        density,
        diagnostics,
        distributions,
        flows,
        guides,
        inference,
        nn,
        ops,
        testing,
        training,
        transforms,
    )

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    space = {
        "SVI": SVI,
        "Trace_ELBO": Trace_ELBO,
        "dist": dist,
        "distributions": distributions,
        "flows": flows,
        "testing": testing,
        "np": np,
        "pyro": pyro,
        "torch": torch,
        "transforms": transforms,
    }
    for room in (density, diagnostics, guides, inference, nn, ops, testing, training, pyro_flows):
        space.update({name: getattr(room, name) for name in room.__all__})
    for name, value in space.items():
        request.node.dtest.globs.setdefault(name, value)
