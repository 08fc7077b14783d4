# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Other libraries as oracles: with the same parameters they give the same numbers, to 1e-6.

The peers are optional: ``pip install -c constraints.txt -e ".[peers]"``. These are slow tests
only, since importing zuko switches the validation of distributions off, for the whole process.
"""

import pytest
import torch
import torch.nn.functional as F

from pyro_flows.ops import rational_quadratic_spline
from pyro_flows.ops.splines import MAX_LOG_SLOPE, MIN_BIN
from pyro_flows.transforms import (
    AffineAutoregressive,
    AffineCoupling,
    SplineAutoregressive,
    SplineCoupling,
)

pytestmark = pytest.mark.slow
BINS, BOUND = 8, 5.0


@pytest.fixture
def zuko():
    """The library, with the validation of distributions as it was."""
    validate = torch.distributions.Distribution._validate_args
    yield pytest.importorskip("zuko")
    torch.distributions.Distribution.set_default_validate_args(validate)


def spline_parameters(count=400, scale=1.5):
    return scale * torch.randn(count, 3 * BINS - 1)


def knots(logits):
    """Where our spline has its knots: the documented formula, written again."""
    sizes = 2 * BOUND * (MIN_BIN + (1 - MIN_BIN * BINS) * logits.softmax(-1))
    return F.pad(sizes.cumsum(-1), (1, 0)) - BOUND


def slopes(raw):
    """Inner slopes: softly bounded log-slopes."""
    return (MAX_LOG_SLOPE * torch.tanh(raw / MAX_LOG_SLOPE)).exp()


def zuko_spline(zuko, params):
    """zuko's spline with the knots and slopes of ours."""
    theirs = zuko.transforms.MonotonicRQSTransform(
        params[..., :BINS], params[..., BINS : 2 * BINS], params[..., 2 * BINS :], bound=BOUND
    )
    theirs.horizontal = knots(params[..., :BINS])
    theirs.vertical = knots(params[..., BINS : 2 * BINS])
    theirs.derivatives = F.pad(slopes(params[..., 2 * BINS :]), (1, 1), value=1.0)
    return theirs


def test_spline_against_zuko(zuko):
    params = spline_parameters()
    x = 2.5 * torch.randn(400)
    theirs = zuko_spline(zuko, params)
    y, ladj = theirs.call_and_ladj(x)
    got = rational_quadratic_spline(x, params, BOUND)
    assert (got[0] - y).abs().max() < 1e-6
    assert (got[1] - ladj).abs().max() < 1e-6
    back, back_ladj = rational_quadratic_spline(y, params, BOUND, inverse=True)
    assert (back - theirs.inv(y)).abs().max() < 1e-6
    assert (back_ladj + ladj).abs().max() < 1e-6


@pytest.mark.parametrize("inverse", [False, True])
def test_spline_against_nflows(inverse):
    splines = pytest.importorskip("nflows.transforms.splines.rational_quadratic")
    params = spline_parameters()
    x = 2.5 * torch.randn(400)
    # Their slopes are 1e-3 + softplus(raw).
    raw = (slopes(params[..., 2 * BINS :]) - 1e-3).expm1().log()
    y, ladj = splines.unconstrained_rational_quadratic_spline(
        x,
        params[..., :BINS],
        params[..., BINS : 2 * BINS],
        raw,
        inverse=inverse,
        tail_bound=BOUND,
    )
    got = rational_quadratic_spline(x, params, BOUND, inverse=inverse)
    assert (got[0] - y).abs().max() < 1e-6
    assert (got[1] - ladj).abs().max() < 1e-6


def perturbed(layer):
    for p in layer.parameters():
        p.data.add_(0.5 * torch.randn_like(p))
    return layer


def test_coupling_against_zuko(zuko):
    """zuko's scheme with our conditioner: an affine and a spline coupling."""
    for layer, univariate in (
        (perturbed(AffineCoupling(6, [False, True] * 3)), "affine"),
        (perturbed(SplineCoupling(6, [False, True] * 3, bins=BINS, bound=BOUND)), "spline"),
    ):

        def meta(kept, layer=layer, univariate=univariate):
            params = layer.conditioner(kept).unflatten(-1, (3, -1))
            if univariate == "spline":
                return zuko.transforms.DependentTransform(zuko_spline(zuko, params), 1)
            shift, raw = params.unbind(-1)
            log_scale = 3 * torch.tanh(raw / 3)
            affine = torch.distributions.AffineTransform(shift, log_scale.exp())
            return zuko.transforms.DependentTransform(affine, 1)

        theirs = zuko.transforms.CouplingTransform(meta, torch.tensor([True, False] * 3))
        x = torch.randn(200, 6)
        y, ladj = theirs.call_and_ladj(x)
        got = layer.forward_and_ladj(x)
        assert (got[0] - y).abs().max() < 1e-6
        assert (got[1] - ladj).abs().max() < 1e-6
        assert (layer.inv(y) - theirs.inv(y)).abs().max() < 1e-6


@pytest.mark.parametrize("kind", ["affine", "spline"])
def test_autoregressive_against_zuko(zuko, kind):
    """zuko's scheme, and its inverse of as many passes as coordinates, with our conditioner."""
    if kind == "spline":
        layer = perturbed(SplineAutoregressive(12, order="random", bins=BINS, bound=BOUND))
    else:
        layer = perturbed(AffineAutoregressive(12, order="random"))

    def meta(x):
        params = layer.conditioner(x.unsqueeze(-1))
        if kind == "spline":
            return zuko.transforms.DependentTransform(zuko_spline(zuko, params), 1)
        shift, raw = params.unbind(-1)
        log_scale = 3 * torch.tanh(raw / 3)
        affine = torch.distributions.AffineTransform(shift, log_scale.exp())
        return zuko.transforms.DependentTransform(affine, 1)

    theirs = zuko.transforms.AutoregressiveTransform(meta, passes=12)
    x = torch.randn(200, 12)
    y, ladj = theirs.call_and_ladj(x)
    got = layer.forward_and_ladj(x)
    assert (got[0] - y).abs().max() < 1e-6
    assert (got[1] - ladj).abs().max() < 1e-6
    assert (layer.by_steps(y)[0] - theirs.inv(y)).abs().max() < 1e-6
    assert (layer.by_passes(y)[0] - theirs.inv(y)).abs().max() < 1e-6


def test_masked_perceptron_against_zuko(zuko):
    """zuko's masked network, its masks and weights copied into ours."""
    theirs = zuko.flows.MaskedAutoregressiveTransform(
        5, hidden_features=(32,), activation=torch.nn.Tanh
    )
    layer = AffineAutoregressive(5, hidden_dims=(32,))
    first, last = (m for m in theirs.hyper if hasattr(m, "mask"))
    ours = layer.conditioner
    with torch.no_grad():
        for mine, its in ((ours.hidden[0], first), (ours.last, last)):
            mine.mask.copy_(its.mask)
            mine.weight.copy_(its.weight)
            mine.bias.copy_(its.bias)
    x = torch.randn(50, 5)
    its_params = theirs.hyper(x).unflatten(-1, (5, 2))
    assert (ours(x.unsqueeze(-1)) - its_params).abs().max() < 1e-6
