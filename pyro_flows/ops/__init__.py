# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Pure tensor functions: no parameters, no Pyro."""

from pyro_flows.ops.masks import alternating_masks
from pyro_flows.ops.splines import rational_quadratic_spline
from pyro_flows.ops.stable import soft_clamp

__all__ = ["alternating_masks", "rational_quadratic_spline", "soft_clamp"]
