# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Linear layers."""

from __future__ import annotations

import torch

from catalogue.entry import Entry
from pyro_flows.transforms import CholeskyAffine, Permute


def _order(dim):
    return torch.randperm(dim, generator=torch.Generator("cpu").manual_seed(1), device="cpu")


def _small(dim):
    """The inverse of a triangular matrix of random entries grows exponentially with its size."""
    return min(0.5, 2 / dim)


PERMUTED = frozenset({"starts_at_identity"})

ENTRIES = {
    "cholesky": Entry(lambda d, c: CholeskyAffine(d), conditional=False, perturb=_small),
    "inverse-cholesky": Entry(
        lambda d, c: CholeskyAffine(d).inv, conditional=False, perturb=_small
    ),
    "permute-reversed": Entry(lambda d, c: Permute(d), conditional=False, left_out=PERMUTED),
    "permute-random": Entry(lambda d, c: Permute(_order(d)), conditional=False, left_out=PERMUTED),
}
