# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A fitted density draws and scores under ``torch.inference_mode()``."""

import numpy as np
import pytest
import torch

from pyro_flows.density import FlowDensity

QUICK = {"flow": "realnvp", "num_steps": 5, "progress": False}
OPTIONS = {"flow_options": {"layers": 2, "hidden_dims": (8,)}}


@pytest.mark.parametrize("components", [None, (1, 2)])
def test_draws_and_scores(components):
    x = np.random.default_rng(0).normal(size=(200, 2))
    density = FlowDensity(**QUICK, **OPTIONS, components=components).fit(x)
    with torch.inference_mode():
        draws = density.sample(7, seed=1)
        scores = density.score_samples(x[:5])
        values = density.distribution().sample((7,))
    np.testing.assert_allclose(draws, density.sample(7, seed=1), rtol=1e-5)
    np.testing.assert_allclose(scores, density.score_samples(x[:5]), rtol=1e-5)
    assert values.shape == (7, 2)
