# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Squeezes, splits, multiscale stacks and Glow: what goes where, and starts from data."""

import itertools
import re

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch.nn import functional

from pyro_flows.distributions import Flow
from pyro_flows.errors import ShapeError
from pyro_flows.ops import random_mask
from pyro_flows.transforms import (
    ActNorm,
    AffineCoupling,
    CholeskyAffine,
    Compose,
    Coupling,
    Elementwise,
    Multiscale,
    RationalQuadraticSpline,
    Sigmoid,
    SplineCoupling,
    Split,
    Squeeze,
    conv_coupling,
    glow_stack,
    glow_step,
)


def randomise(layer, scale=0.3):
    for p in layer.parameters():
        p.data.add_(scale * torch.randn_like(p))
    return layer


# Squeeze


@pytest.mark.parametrize("shape", [(1, 2, 2), (3, 4, 6), (2, 6, 12)])
@pytest.mark.parametrize("factor", [1, 2])
def test_squeeze_is_pixel_unshuffle_with_positions_first(shape, factor):
    layer = Squeeze(shape, factor)
    image = torch.randn(5, *shape)
    theirs = functional.pixel_unshuffle(image, factor)
    theirs = theirs.unflatten(1, (shape[0], factor**2)).transpose(1, 2).flatten(1, 2)
    assert theirs.shape[1:] == layer.out_shape
    assert torch.equal(layer(image.flatten(1)), theirs.flatten(1))
    assert torch.equal(layer.inv(theirs.flatten(1)), image.flatten(1))


def test_squeeze_by_its_formula():
    layer, (channels, height, width) = Squeeze((2, 6, 3), 3), (2, 6, 3)
    x = torch.arange(36.0).view(channels, height, width)
    y = layer(x.flatten()).view(layer.out_shape)
    for c, a, b, i in itertools.product(range(2), range(3), range(3), range(2)):
        assert y[(3 * a + b) * 2 + c, i, 0] == x[c, 3 * i + a, b]


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (((1, 3, 4),), "Squeeze expected a height and width that factor=2 divides, but got shape "
         "(1, 3, 4). Pad the images, or choose another factor."),
        (((1, 4, 6), 4), "that factor=4 divides, but got shape (1, 4, 6)."),
        (((4, 4),), "Squeeze expected an image's shape (C, H, W), but got (4, 4). Give three "
         "positive sizes."),
    ],
)  # fmt: skip
def test_squeeze_refuses(args, text):
    with pytest.raises(ShapeError, match=re.escape(text)):
        Squeeze(*args)


# Split and Multiscale


def test_split_hands_the_rest_to_the_base():
    inner = randomise(SplineCoupling(3))
    layer = Split(5, inner)
    x = torch.randn(7, 5)
    y, ladj = layer.forward_and_ladj(x)
    expected, expected_ladj = inner.forward_and_ladj(x[:, :3])
    assert torch.equal(y, torch.cat([expected, x[:, 3:]], 1))
    assert torch.equal(ladj, expected_ladj)


def test_multiscale_is_a_chain_of_splits():
    stages = [randomise(AffineCoupling(d, context_dim=2)) for d in (2, 3, 7)]
    nested = Multiscale(stages)
    chain = Compose([Split(7, stages[0]), Split(7, stages[1]), stages[2]])
    context = torch.randn(4, 2)
    for name in ("forward_and_ladj", "inverse_and_ladj"):
        x = torch.randn(3, 4, 7)
        for a, b in zip(
            getattr(nested, name)(x, context), getattr(chain, name)(x, context), strict=True
        ):
            assert torch.allclose(a, b)


def test_what_is_finished_is_finished():
    """From data to base, the last coordinates see the last stage only."""
    outer = randomise(CholeskyAffine(5))
    layer = Multiscale([randomise(CholeskyAffine(2)), randomise(CholeskyAffine(3)), outer])
    y = torch.randn(7, 5)
    x = layer.inv(y)
    assert torch.allclose(x[:, 3:], outer.inv(y)[:, 3:])
    assert not torch.isclose(x[:, :3], outer.inv(y)[:, :3]).any()


def test_one_stage_is_that_stage():
    stage = randomise(AffineCoupling(3))
    x = torch.randn(7, 3)
    assert torch.equal(Multiscale([stage])(x), stage(x))


def test_every_stage_is_set_from_its_part_of_the_data():
    torch.manual_seed(0)
    outer = Compose([ActNorm(5), randomise(CholeskyAffine(5))])
    layer = Multiscale([ActNorm(2), ActNorm(3), outer])
    y = 3 + 2 * torch.randn(500, 5)
    layer.initialize(y)
    x = layer.inv(y)
    assert torch.allclose(x.mean(0), torch.zeros(5), atol=1e-10)
    assert torch.allclose(x.std(0, correction=0), torch.ones(5))
    first = layer.layers[0].layer.layers[0].layer  # the innermost ActNorm, on two coordinates
    assert first.dim == 2
    # Its data have mean 0 and sd 1 already, by the outer ones: it stays where it is.
    assert torch.allclose(first(torch.ones(2)), torch.ones(2), atol=1e-6)


def test_a_learned_prior_is_a_coupling_at_the_start_of_a_stage():
    """The split-off part given the kept one: normal, with the mean and scale of the coupling."""
    prior = randomise(AffineCoupling(5, [False, False, False, True, True]))
    inner = randomise(AffineCoupling(3))
    flow = Flow([Multiscale([inner, prior])])
    y = torch.randn(4, 5)
    shift, raw = prior.conditioner(y[:, :3]).view(4, 2, 2).unbind(-1)
    scale = (3 * torch.tanh(raw / 3)).exp()
    expected = Flow([inner]).log_prob(y[:, :3])
    expected = expected + dist.Normal(shift, scale).to_event(1).log_prob(y[:, 3:])
    assert torch.allclose(flow.log_prob(y), expected)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: Split(3, AffineCoupling(3)), "Split expected a layer of fewer than dim=3 "
         "coordinates, but got one of 3. Use the layer itself where nothing is split off."),
        (lambda: Split(3, Elementwise(2, Sigmoid())), "Split expected a layer of real vectors, "
         "but got Elementwise from"),
        (lambda: Multiscale([AffineCoupling(3), AffineCoupling(3)]), "Multiscale expected stages "
         "from base to data, each of more coordinates than the one before, but got dims [3, 3]. "
         "Put layers of one size into one stage by Compose."),
        (lambda: Multiscale([]), "expected at least one layer"),
    ],
)  # fmt: skip
def test_splits_refuse(call, text):
    with pytest.raises(ShapeError, match=re.escape(text)):
        call()


# Images


@pytest.mark.parametrize("shape", [(1, 4, 3), (3, 2, 2)])
def test_conv_coupling_with_any_mask_and_univariate(shape):
    dim = torch.Size(shape).numel()
    for mask in (None, random_mask(dim)):
        layer = randomise(conv_coupling(shape, RationalQuadraticSpline(4), mask, parity=1))
        assert isinstance(layer, Coupling)
        x = torch.randn(5, dim)
        y = layer(x)
        assert torch.allclose(layer.inv(y), x)
        still = (y == x).all(0)
        if mask is not None:
            assert torch.equal(still, ~mask)
        elif shape[0] == 1:
            assert still.tolist() == [False, True] * 6
        else:
            assert still.view(shape)[1:].all()
            assert not still.view(shape)[:1].any()


def test_a_step_is_set_from_images():
    shape = (3, 4, 4)
    step = glow_step(shape)
    images = torch.rand(64, 48).view(64, 3, 16) * torch.tensor([[1.0], [5.0], [0.1]]) + 2
    step.initialize(images.flatten(1))
    x = step.inv(images.flatten(1)).view(64, 3, 16)
    assert torch.allclose(x.mean((0, 2)), torch.zeros(3), atol=1e-10)
    assert torch.allclose(x.std((0, 2), correction=0), torch.ones(3))


def test_a_stack_starts_as_a_reordering():
    shape = (1, 8, 8)
    layer = glow_stack(shape, steps=2)
    y, ladj = layer.forward_and_ladj(torch.arange(64.0))
    assert torch.allclose(y.sort()[0], torch.arange(64.0), atol=1e-9)
    assert ladj.abs() < 1e-9
    # The coarsest latents are every fourth row: a level goes on with the even rows.
    coarse = layer.inv(torch.arange(64.0))
    assert coarse[0] == 0
    assert set(coarse[:16].round().int().tolist()) == set(
        (8 * i + j for i, j in itertools.product(range(0, 8, 4), range(8)))
    )


def test_a_stack_has_latents_at_every_level():
    layer = glow_stack((1, 8, 8), levels=3, steps=1)
    assert [type(part) for part in layer.layers] == [Split, Compose]
    inner = layer.layers[0].layer
    assert (inner.dim, inner.layers[0].layer.dim) == (32, 16)
    assert glow_stack((3, 28, 28), steps=1, hidden_channels=2).dim == 3 * 28 * 28


@pytest.mark.parametrize("learned_prior", [True, False])
def test_only_a_learned_prior_ties_latents_together(learned_prior):
    """What a level hands over depends on coarser levels in the base only if a prior is learned."""
    layer = glow_stack((1, 4, 4), levels=2, steps=1, learned_prior=learned_prior)
    stage = layer.layers[-1].layers
    assert isinstance(stage[0], Coupling) == learned_prior
    if learned_prior:
        assert stage[0].moved.tolist() == list(range(8, 16))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shape": (1, 3, 4)}, "glow_stack expected at least one level and one step, and an image "
         "of even height and width, but got levels=None, steps=4 and shape (1, 3, 4). Pad the "
         "images to an even size."),
        ({"shape": (1, 4, 4), "steps": 0}, "but got levels=None, steps=0 and shape (1, 4, 4)."),
        ({"shape": (1, 4, 4), "levels": 3}, "Squeeze expected a height and width that factor=2 "
         "divides, but got shape (4, 1, 1)."),
    ],
)  # fmt: skip
def test_stacks_refuse(options, text):
    with pytest.raises(ShapeError, match=re.escape(text)):
        glow_stack(**options)


def test_a_stack_learns_images():
    """Bars at random rows: pixels of a row depend on each other, and it learns how."""
    shape, rows = (1, 4, 4), torch.arange(4).view(4, 1)
    images = (torch.randint(4, (128, 1, 1, 1)) == rows) + 0.1 * torch.randn(128, *shape)
    flow = Flow([glow_stack(shape, steps=1, hidden_channels=8, blocks=1)], event_shape=shape)
    flow.initialize(images)
    optimiser = torch.optim.Adam(flow.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimiser.zero_grad()
        loss = -flow.log_prob(images).mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 5
    assert flow().rsample((2,)).isfinite().all()


def test_as_a_pyro_model_of_images():
    shape = (1, 4, 4)
    flow = Flow([glow_stack(shape, steps=1, context_dim=2, hidden_channels=4)], event_shape=shape)
    randomise(flow, 0.1)

    def model(context):
        with pyro.plate("images", len(context)):
            return pyro.sample("x", flow(context))

    trace = pyro.poutine.trace(model).get_trace(torch.randn(5, 2))
    trace.compute_log_prob()
    assert trace.nodes["x"]["value"].shape == (5, *shape)
    assert trace.nodes["x"]["log_prob"].shape == (5,)
