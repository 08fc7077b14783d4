# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Pure tensor functions: no parameters, no Pyro."""

from pyro_flows.ops.autoregressive_masks import (
    autoregressive_masks,
    generations,
    order_adjacency,
)
from pyro_flows.ops.clusters import kmeans
from pyro_flows.ops.masks import alternating_masks
from pyro_flows.ops.roots import fixed_point, monotone_inverse
from pyro_flows.ops.splines import rational_quadratic_spline
from pyro_flows.ops.stable import soft_clamp
from pyro_flows.ops.tracing import is_recording

__all__ = [
    "alternating_masks",
    "autoregressive_masks",
    "fixed_point",
    "generations",
    "is_recording",
    "kmeans",
    "monotone_inverse",
    "order_adjacency",
    "rational_quadratic_spline",
    "soft_clamp",
]
