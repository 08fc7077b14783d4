# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""ActNorm's start from data and BatchNorm's two modes."""

import copy
import re

import pyro.distributions as dist
import pytest
import torch

from pyro_flows.distributions import Flow
from pyro_flows.errors import DataError, OptionError, ShapeError
from pyro_flows.testing import LAWS, Case, check_layer
from pyro_flows.transforms import ActNorm, BatchNorm, Compose, Permute, Pixelwise


def data(count=200, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scale, loc = torch.tensor([1e-3, 1.0, 500.0]), torch.tensor([1e3, -2.0, 0.0])
    return loc + scale * torch.randn(count, 3, generator=generator)


def is_standard(x, atol=1e-3):
    assert torch.allclose(x.mean(0), x.new_zeros(x.shape[-1]), atol=atol)
    assert torch.allclose(x.std(0, unbiased=False), x.new_ones(x.shape[-1]), atol=atol)


def test_before_it_is_initialized_act_norm_is_the_identity():
    x = data()
    y, ladj = ActNorm(3).forward_and_ladj(x)
    assert torch.equal(y, x)
    assert not ladj.any()


def test_act_norm_standardises_the_base_side():
    layer, y = ActNorm(3), data()
    layer.initialize(y)
    x, ladj = layer.inverse_and_ladj(y)
    is_standard(x, atol=1e-9)
    expected = -y.std(0, unbiased=False).log().sum()
    assert torch.allclose(ladj, expected.expand(200))


def test_act_norm_in_float32_loses_no_more_than_the_data_did():
    layer, y = ActNorm(3).float(), data().float()
    layer.initialize(y)
    x = layer.inv(y)
    assert x.isfinite().all()
    is_standard(x[:, 1:], atol=1e-5)
    assert abs(x[:, 0].std() - 1) < 0.05


def test_initializing_twice_is_initializing_once():
    layer, y = ActNorm(3), data()
    layer.initialize(data(seed=1) * 7 + 3)
    layer.initialize(y)
    is_standard(layer.inv(y), atol=1e-9)


def test_act_norm_with_a_context_counts_what_its_network_adds():
    layer = Case(lambda d, c: ActNorm(d, c), 3, 2, perturb=1.0).layer()
    y, context = data(), torch.randn(200, 2)
    layer.initialize(y, context)
    is_standard(layer.inverse_and_ladj(y, context)[0], atol=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6, -3e-8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_columns_keep_their_scale(value, dtype):
    layer = ActNorm(2).to(dtype)
    y = torch.stack([torch.full((77,), value, dtype=dtype), data(77)[:, 1].to(dtype)], -1)
    layer.initialize(y)
    assert layer.tensors.start["log_scale"][0] == 0
    x, ladj = layer.inverse_and_ladj(y)
    assert torch.allclose(x[:, 0], torch.zeros(77, dtype=dtype), atol=1e-6)
    assert ladj.isfinite().all()


def test_one_row_sets_the_location_alone():
    layer = ActNorm(3)
    layer.initialize(data(1))
    assert torch.equal(layer.inv(data(1)), torch.zeros(1, 3))
    assert not layer.tensors.start["log_scale"].any()


def test_act_norm_refuses_what_has_no_mean():
    y = data()
    y[3, 1], y[7, 0], y[7, 2] = torch.nan, torch.inf, torch.nan
    layer = ActNorm(3)
    text = (
        "ActNorm.initialize expected finite values, but 2 of 200 rows hold NaN or infinity. "
        "Drop those rows."
    )
    with pytest.raises(DataError, match=re.escape(text)):
        layer.initialize(y)
    text = (
        "ActNorm.initialize expected at least one row of values, but got shape (0, 3). "
        "Pass some of the training data."
    )
    with pytest.raises(ShapeError, match=re.escape(text)):
        layer.initialize(y[:0])
    with pytest.raises(ShapeError, match=re.escape("values of shape (..., 3), but got (200, 2)")):
        layer.initialize(y[:, :2])
    assert torch.equal(layer(data()), data())


def test_flows_initialize_their_layers_from_what_later_ones_leave():
    first, last = ActNorm(3), ActNorm(3)
    flow = Flow([first, Permute(3), last])
    y = data()
    flow.initialize(y)
    is_standard(last.inv(y), atol=1e-9)
    # Nothing is left for the first: its data side is standard already.
    assert torch.allclose(first.tensors.start["loc"], torch.zeros(3))
    assert torch.allclose(first.tensors.start["log_scale"], torch.zeros(3))


def test_act_norm_of_images_is_one_for_each_channel():
    layer = Pixelwise(ActNorm(2), (2, 4, 4))
    images = torch.randn(10, 2, 4, 4) * torch.tensor([3.0, 0.1]).view(2, 1, 1) + 5
    layer.initialize(images.flatten(1))
    x = layer.inv(images.flatten(1)).view(10, 2, 16)
    is_standard(x.movedim(1, -1).reshape(-1, 2))
    assert layer.layer.tensors.start["loc"].shape == (2,)


def trained_batch_norm(dim=3, context_dim=0):
    """In evaluation mode, with statistics that are not those of the start."""
    layer = BatchNorm(dim, context_dim, (8,))
    layer.running_mean.copy_(torch.linspace(-3.0, 2.0, dim))
    layer.running_variance.copy_(torch.linspace(0.1, 5.0, dim))
    return layer.eval()


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("dim", [1, 2, 5])
def test_laws_hold_of_a_trained_batch_norm(dim, context_dim):
    """The catalogue has it at its start's statistics; ``copies`` loads these into new layers."""
    laws = [law for law in LAWS if law not in ("starts_at_identity", "compiles")]
    check_layer(trained_batch_norm, dim=dim, context_dim=context_dim, batch_shape=(3,), laws=laws)


def test_statistics_are_saved():
    new = BatchNorm(3, hidden_dims=(8,)).eval()
    new.load_state_dict(trained_batch_norm().state_dict())
    x = torch.randn(4, 3)
    assert torch.equal(new(x), trained_batch_norm()(x))


def test_training_normalises_by_the_batch():
    layer, y = BatchNorm(3), data()
    x, ladj = layer.inverse_and_ladj(y)
    assert torch.allclose(x.mean(0), torch.zeros(3), atol=1e-9)
    variance = y.var(0, unbiased=False)
    assert torch.allclose(x.var(0, unbiased=False), variance / (variance + 1e-5))
    assert torch.allclose(ladj, (-0.5 * (variance + 1e-5).log().sum()).expand(200))


def test_training_uses_all_batch_axes_and_pixels():
    y = torch.randn(4, 5, 3) * 2 + 1
    shaped, flat = (
        BatchNorm(3).inverse_and_ladj(y)[0],
        BatchNorm(3).inverse_and_ladj(y.view(20, 3))[0],
    )
    assert torch.allclose(shaped.view(20, 3), flat, atol=1e-6)
    images = Pixelwise(BatchNorm(3), (3, 5, 1))
    x = images.inverse_and_ladj(y.mT.reshape(4, 15))[0]
    assert torch.allclose(x.view(4, 3, 5).mT, shaped, atol=1e-6)


def test_running_statistics_converge_to_the_data():
    layer, y = BatchNorm(3, momentum=0.05), data(4000)
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        rows = torch.randint(4000, (500,), generator=generator)
        layer.inverse_and_ladj(y[rows])
    assert ((layer.running_mean - y.mean(0)).abs() < 0.05 * y.std(0)).all()
    assert torch.allclose(layer.running_variance, y.var(0), rtol=0.05)
    x = layer.eval().inv(y)
    assert torch.allclose(x[:, 1:].std(0), torch.ones(2), atol=0.05)


def test_the_first_batches_are_averaged_evenly():
    """Nothing of the start is left after one batch, however far from it the data are."""
    layer = BatchNorm(3)
    batches = [data(10, seed=seed) for seed in range(4)]
    layer.inverse_and_ladj(batches[0])
    assert torch.allclose(layer.running_mean, batches[0].mean(0), rtol=1e-12)
    assert torch.allclose(layer.running_variance, batches[0].var(0), rtol=1e-9)
    for y in batches[1:]:
        layer.inverse_and_ladj(y)
    mean = torch.stack([y.mean(0) for y in batches]).mean(0)
    assert torch.allclose(layer.running_mean, mean, rtol=1e-12)


def test_momentum_is_the_share_of_later_batches():
    layer = BatchNorm(1, momentum=0.5)
    for value in (0.0, 0.0, 0.0, 8.0):
        layer.inverse_and_ladj(torch.full((4, 1), value))
    assert layer.running_mean.item() == 4.0


def test_only_training_from_data_to_base_moves_the_statistics():
    layer, y = BatchNorm(3), data()
    before = copy.deepcopy(layer.state_dict())
    layer.forward_and_ladj(y)
    layer.eval().inverse_and_ladj(y)
    assert all(torch.equal(before[k], v) for k, v in layer.state_dict().items())
    layer.train().inverse_and_ladj(y)
    assert not torch.equal(before["running_mean"], layer.running_mean)


def test_a_batch_with_nan_does_not_spoil_the_statistics():
    layer, y = BatchNorm(3), data()
    y[5, 1] = torch.nan
    layer.inverse_and_ladj(y)
    assert layer.running_mean.isfinite().all()
    assert layer.running_mean[1] == 0
    assert layer.running_mean[0] != 0


def test_a_constant_column_is_finite_in_training():
    y = torch.full((8, 1), 0.1).requires_grad_()
    x, ladj = BatchNorm(1).inverse_and_ladj(y)
    (x.sum() + ladj.sum()).backward()
    assert all(t.isfinite().all() for t in (x, ladj, y.grad))


def weighted(layer, y, weights, context=None):
    x, ladj = layer.inverse_and_ladj(y, context)
    return (weights * (ladj - 0.5 * x.square().sum(-1))).sum()


@pytest.mark.parametrize("context_dim", [0, 2])
def test_training_gradients_go_through_the_statistics(context_dim):
    """Of a loss that weighs its samples, by values, parameters and context."""
    layer = Case(lambda d, c: BatchNorm(d, c, (4,)), 2, context_dim).layer()
    y = torch.randn(6, 2, requires_grad=True)
    context = torch.randn(6, 2, requires_grad=True) if context_dim else None
    weights = torch.tensor([-2.0, 0.0, 5.0, 1.0, 0.5, 3.0])
    leaves = [y, *layer.parameters()] + ([context] if context_dim else [])
    assert torch.autograd.gradcheck(lambda *_: weighted(layer, y, weights, context), leaves)


@pytest.mark.parametrize("context_dim", [0, 2])
def test_pyro_scores_a_batch_by_its_own_statistics_in_training(context_dim):
    """Pyro asks for the log-determinant apart; it must belong to the same direction."""
    layer, y = BatchNorm(3, context_dim), data()
    context = torch.randn(200, 2) if context_dim else None
    base = dist.Normal(torch.zeros(3), 1.0).to_event(1)
    x, ladj = layer.inverse_and_ladj(y, context)
    expected = base.log_prob(x) + ladj
    if context_dim:
        flow = dist.ConditionalTransformedDistribution(base, [layer]).condition(context)
    else:
        flow = dist.TransformedDistribution(base, [layer])
    assert torch.allclose(flow.log_prob(y), expected)
    assert torch.allclose(Flow([layer])(context).log_prob(y), expected)


def test_batch_norm_trains_a_flow():
    """A flow of batch norms fits data of any scale, and is a density in evaluation mode."""
    torch.manual_seed(0)
    flow, y = Flow([BatchNorm(3), Permute(3), BatchNorm(3)]), data(1000)[:, [1, 1, 2]]
    optimiser = torch.optim.Adam(flow.parameters(), lr=0.01)
    for _ in range(100):
        optimiser.zero_grad()
        (-flow().log_prob(y).mean()).backward()
        optimiser.step()
    flow.eval()
    exact = dist.Normal(y.mean(0), y.std(0)).to_event(1).log_prob(y).mean()
    assert abs(flow().log_prob(y).mean() - exact) < 0.05
    value, log_prob = flow().rsample_and_log_prob((5,))
    assert torch.allclose(flow().log_prob(value), log_prob, atol=1e-4)


@pytest.mark.parametrize("shape", [(3,), (1, 3), (0, 3)])
def test_training_needs_two_values(shape):
    text = (
        "BatchNorm in training mode expected a batch of at least 2 values, but got shape "
        f"{shape}. Call eval() to use the running statistics, or use ActNorm."
    )
    layer = BatchNorm(3)
    with pytest.raises(ShapeError, match=re.escape(text)):
        layer.inverse_and_ladj(torch.zeros(shape))
    assert layer.eval().inverse_and_ladj(torch.zeros(shape))[0].shape == shape


@pytest.mark.parametrize("options", [{"momentum": 0.0}, {"momentum": 1.5}, {"epsilon": 0.0}])
def test_batch_norm_refuses(options):
    with pytest.raises(OptionError, match=r"momentum in \(0, 1\] and epsilon > 0, but got"):
        BatchNorm(3, **options)


def test_compose_keeps_modes():
    flow = Compose([BatchNorm(3), ActNorm(3)])
    assert flow.eval().layers[0].training is False
