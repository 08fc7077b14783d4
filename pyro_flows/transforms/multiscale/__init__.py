# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Layers of images and of latents at several resolutions."""

from pyro_flows.transforms.multiscale.glow import conv_coupling, glow_stack, glow_step
from pyro_flows.transforms.multiscale.split import Multiscale, Split
from pyro_flows.transforms.multiscale.squeeze import Squeeze

__all__ = ["Multiscale", "Split", "Squeeze", "conv_coupling", "glow_stack", "glow_step"]
