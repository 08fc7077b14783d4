# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Linear layers."""

from __future__ import annotations

from catalogue.entry import Entry
from pyro_flows.transforms import (
    PLU,
    ActNorm,
    BatchNorm,
    Cayley,
    CholeskyAffine,
    Conv1x1,
    DiagonalAffine,
    Householder,
    LowRankAffine,
    MatrixExponential,
    Permute,
    Pixelwise,
    Rotation,
)

HIDDEN = (8,)
IMAGES = {2: (2, 1, 1), 12: (3, 2, 2), 64: (4, 4, 4)}


def _small(dim):
    """The inverse of a triangular matrix of random entries grows exponentially with its size."""
    return min(0.5, 2 / dim)


def image(make, **options):
    """A layer of images, made of ``(shape, context_dim)``."""
    return Entry(lambda d, c: make(IMAGES[d], c), dims=tuple(IMAGES), **options)


PERMUTED = frozenset({"starts_at_identity"})

ENTRIES = {
    "diagonal": Entry(lambda d, c: DiagonalAffine(d, c, HIDDEN)),
    "cholesky": Entry(lambda d, c: CholeskyAffine(d, c, HIDDEN), perturb=_small),
    "inverse-cholesky": Entry(lambda d, c: CholeskyAffine(d, c, HIDDEN).inv, perturb=_small),
    "plu": Entry(lambda d, c: PLU(d, c, HIDDEN)),
    "plu-permuted": Entry(
        lambda d, c: PLU(d, c, HIDDEN, permutation=Permute.random(d, seed=1)), left_out=PERMUTED
    ),
    "householder": Entry(lambda d, c: Householder(d, context_dim=c, hidden_dims=HIDDEN)),
    "householder-few": Entry(lambda d, c: Householder(d, 2, c, HIDDEN)),
    "cayley": Entry(lambda d, c: Cayley(d, c, HIDDEN)),
    # Matrix exponentials of a batch of contexts.
    "rotation": Entry(lambda d, c: Rotation(d, c, HIDDEN), slow_dims=(64,)),
    "matrix_exponential": Entry(lambda d, c: MatrixExponential(d, c, HIDDEN)),
    "low_rank": Entry(lambda d, c: LowRankAffine(d, 3, c, HIDDEN)),
    "permute-reversed": Entry(lambda d, c: Permute(d), conditional=False, left_out=PERMUTED),
    "permute-random": Entry(
        lambda d, c: Permute.random(d, seed=1), conditional=False, left_out=PERMUTED
    ),
    "conv1x1": image(lambda shape, c: Conv1x1(shape, c, HIDDEN)),
    "pixelwise-act_norm": image(lambda s, c: Pixelwise(ActNorm(s[0], c, HIDDEN), s)),
    "act_norm": Entry(lambda d, c: ActNorm(d, c, HIDDEN)),
    # In training mode the directions differ and a batch is normalised together, as its docstring
    # says: the laws are for what is kept.
    "batch_norm": Entry(lambda d, c: BatchNorm(d, c, HIDDEN).eval()),
}
