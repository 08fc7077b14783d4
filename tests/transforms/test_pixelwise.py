# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Layers at every pixel, the 1x1 convolution among them."""

import re

import pytest
import torch
from torch.nn.functional import conv2d

from pyro_flows.errors import ShapeError
from pyro_flows.testing import Case
from pyro_flows.transforms import (
    PLU,
    ActNorm,
    Affine,
    Conv1x1,
    DiagonalAffine,
    Elementwise,
    Permute,
    Pixelwise,
    Sigmoid,
)

SHAPE = (3, 2, 4)


def test_conv1x1_is_torchs_convolution():
    layer = Case(lambda d, c: Conv1x1(SHAPE, permutation=Permute.random(3, seed=2)), 24).layer()
    plu = layer.layer
    matrix = (plu(torch.eye(3)) - plu(torch.zeros(3))).mT
    images = torch.randn(5, *SHAPE)
    expected = conv2d(images, matrix[..., None, None], bias=plu.tensors.start["loc"])
    y, ladj = layer.forward_and_ladj(images.flatten(1))
    torch.testing.assert_close(y.view(images.shape), expected)
    torch.testing.assert_close(ladj, (8 * torch.linalg.slogdet(matrix)[1]).expand(5))


def test_pixels_share_the_context_of_their_image():
    layer = Case(lambda d, c: Conv1x1(SHAPE, c, (4,)), 24, 2).layer()
    contexts = torch.randn(5, 2)
    images = torch.randn(7, 5, *SHAPE)
    y, ladj = layer.forward_and_ladj(images.flatten(2), contexts)
    for image, c, out, total in zip(images[1], contexts, y[1], ladj[1], strict=True):
        pixels, one = layer.layer.forward_and_ladj(image.view(3, 8).mT, c)
        torch.testing.assert_close(out.view(3, 8).mT, pixels)
        torch.testing.assert_close(total, one.sum())


def test_one_image_under_many_contexts():
    layer = Case(lambda d, c: Conv1x1(SHAPE, c, (4,)), 24, 2).layer()
    contexts, image = torch.randn(8, 2), torch.randn(24)
    y, ladj = layer.forward_and_ladj(image, contexts)
    assert (y.shape, ladj.shape) == ((8, 24), (8,))
    torch.testing.assert_close(y[3], layer.forward_and_ladj(image, contexts[3])[0])


def test_any_layer_serves():
    """Also those onto another space."""
    layer = Pixelwise(Elementwise(3, Sigmoid()), SHAPE)
    y = layer(torch.randn(5, 24))
    assert layer.codomain.check(y).all()
    assert not layer.codomain.check(2 + y).any()
    assert Pixelwise(Elementwise(3, Affine()), (3, 5)).dim == 15


def test_contexts_reach_the_layers_start_from_data():
    layer = Case(lambda d, c: Pixelwise(ActNorm(3, c), SHAPE), 24, 2, perturb=1.0).layer()
    contexts = torch.randn(50, 2)
    images = 4 + 3 * torch.randn(50, 24)
    layer.initialize(images, contexts)
    x = layer.inverse_and_ladj(images, contexts)[0].view(50, 3, 8).movedim(1, -1).reshape(-1, 3)
    torch.testing.assert_close(x.mean(0), torch.zeros(3))
    torch.testing.assert_close(x.std(0, unbiased=False), torch.ones(3))


@pytest.mark.parametrize("shape", [(2, 4, 4), (3,), (), (3, 0, 4)])
def test_shapes_must_fit(shape):
    text = (
        "Pixelwise expected a shape (channels, height, width) with 3 channel(s), as its layer has "
        f"coordinates, but got {shape}. Build the layer with dim equal to the number of channels."
    )
    with pytest.raises(ShapeError, match=re.escape(text)):
        Pixelwise(DiagonalAffine(3), shape)


def test_a_given_matrix_at_every_pixel():
    rotation = torch.linalg.qr(torch.randn(3, 3))[0]
    layer = Pixelwise(PLU.from_matrix(rotation), SHAPE)
    image = torch.randn(24)
    torch.testing.assert_close(layer(image).view(3, 8), rotation @ image.view(3, 8))
