# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Linear and affine layers."""

from pyro_flows.transforms.linear.act_norm import ActNorm
from pyro_flows.transforms.linear.affine import AffineMap
from pyro_flows.transforms.linear.batch_norm import BatchNorm
from pyro_flows.transforms.linear.cayley import Cayley
from pyro_flows.transforms.linear.diagonal import DiagonalAffine
from pyro_flows.transforms.linear.exponential import MatrixExponential, Rotation
from pyro_flows.transforms.linear.householder import Householder
from pyro_flows.transforms.linear.low_rank import LowRankAffine
from pyro_flows.transforms.linear.permutation import Permute
from pyro_flows.transforms.linear.pixelwise import Conv1x1, Pixelwise
from pyro_flows.transforms.linear.plu import PLU
from pyro_flows.transforms.linear.triangular import CholeskyAffine

__all__ = [
    "ActNorm",
    "AffineMap",
    "BatchNorm",
    "Cayley",
    "CholeskyAffine",
    "Conv1x1",
    "DiagonalAffine",
    "Householder",
    "LowRankAffine",
    "MatrixExponential",
    "PLU",
    "Permute",
    "Pixelwise",
    "Rotation",
]
