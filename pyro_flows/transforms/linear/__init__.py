# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Linear and affine layers."""

from pyro_flows.transforms.linear.permutation import Permute
from pyro_flows.transforms.linear.triangular import CholeskyAffine

__all__ = ["CholeskyAffine", "Permute"]
