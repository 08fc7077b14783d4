# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Estimates of traces and log-determinants."""

import pytest
import torch

from pyro_flows.ops import log_det_estimate, rademacher, terms_until


@pytest.mark.parametrize("exact_terms", [0, 3])
def test_estimates_are_unbiased(exact_terms):
    a = torch.randn(4, 4)
    a = 0.7 * a / torch.linalg.matrix_norm(a, ord=2)
    noise = rademacher(torch.zeros(50, 4))
    draws = torch.stack(
        [
            log_det_estimate(
                lambda v: v @ a.T,
                rademacher(noise),
                lipschitz=0.7,
                exact_terms=exact_terms,
            ).mean()
            for _ in range(300)
        ]
    )
    expected = torch.linalg.slogdet(torch.eye(4) + a)[1]
    error = draws.std() / 300**0.5
    assert error < 0.05
    assert (draws.mean() - expected).abs() < 4 * error


def test_terms_until():
    assert terms_until(0.5, 0.5) == 1
    assert terms_until(1e-3, 0.5) == 10
    assert terms_until(2.0, 0.5) == 1
