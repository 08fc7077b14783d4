# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Conditioners: networks that make a transform's parameters. No Pyro."""

from pyro_flows.nn.activations import pseudo_huber
from pyro_flows.nn.attention import Encoder, PixelAttention, SelfAttention
from pyro_flows.nn.block_linear import BlockLinear
from pyro_flows.nn.causal_transformer import CausalTransformer
from pyro_flows.nn.conv import ConvNet
from pyro_flows.nn.dropout import WithDropout, set_dropout
from pyro_flows.nn.image import MaskedImage
from pyro_flows.nn.lipschitz import LipschitzMLP
from pyro_flows.nn.masked import MaskedLinear, MaskedMLP
from pyro_flows.nn.mlp import MLP
from pyro_flows.nn.parameters import Parameters
from pyro_flows.nn.residual_mlp import ResidualMLP
from pyro_flows.nn.vector_field import VectorField
from pyro_flows.nn.walk import Walk, Walkable

__all__ = [
    "MLP",
    "BlockLinear",
    "CausalTransformer",
    "ConvNet",
    "Encoder",
    "LipschitzMLP",
    "MaskedImage",
    "MaskedLinear",
    "MaskedMLP",
    "Parameters",
    "PixelAttention",
    "ResidualMLP",
    "SelfAttention",
    "VectorField",
    "Walk",
    "Walkable",
    "WithDropout",
    "pseudo_huber",
    "set_dropout",
]
