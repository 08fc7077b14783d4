# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Columns with power-law tails, and single values far out."""

import numpy as np
import pytest
import torch
from scipy import stats

from pyro_flows.density import FlowDensity
from pyro_flows.density.columns import Columns
from pyro_flows.density.tails import Tails, fit_tails
from pyro_flows.errors import DataError


def cauchy(n, seed=0, dim=1):
    return torch.as_tensor(np.random.default_rng(seed).standard_cauchy((n, dim)))


@pytest.mark.parametrize("sample", [stats.norm, stats.laplace, stats.uniform, stats.gamma(2.0)])
def test_light_tails_are_left_alone(sample):
    x = sample.rvs(size=(2000, 2), random_state=np.random.default_rng(0))
    assert Tails.of(torch.as_tensor(x)) is None


def test_only_heavy_columns_are_changed():
    x = torch.cat([cauchy(2000), torch.randn(2000, 1, dtype=torch.float64)], -1)
    tails = Tails.of(x)
    assert tails.heavy.tolist() == [True, False]
    z, _ = tails.inverse_and_ladj(x)
    assert torch.equal(z[:, 1], x[:, 1])
    assert stats.kstest(z[:, 0].numpy(), "norm").pvalue > 1e-3


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1e-4), (1e5, 1e4)])
def test_units_do_not_matter(shift, scale):
    u = cauchy(1000)[:, 0]
    plain, moved = fit_tails(u), fit_tails(shift + scale * u)
    expected = [shift + scale * plain[0], scale * plain[1], *plain[2:]]
    np.testing.assert_allclose(moved, expected, rtol=1e-2, atol=1e-2 * scale)


@pytest.mark.parametrize("power", [0.8, 0.5])
def test_tails_on_one_side(power):
    """A few hundred rows, where the likelihood has a kink at every row."""
    for seed in range(3):
        x = torch.as_tensor(np.random.default_rng(seed).pareto(power, 300))
        _, _, left, right = fit_tails(x)
        assert left < right


@pytest.mark.parametrize(("shift", "scale"), [(20231125.0, 0.01), (0.0, 1e100)])
@pytest.mark.parametrize("default", [torch.float32, torch.float64])
def test_columns_keep_their_precision(shift, scale, default):
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        tails = Tails.of(shift + scale * cauchy(2000))
    finally:
        torch.set_default_dtype(before)
    assert tails.centre.dtype == torch.float64
    assert abs(float(tails.centre) - shift) < 0.2 * scale


@pytest.mark.parametrize("distance", [100.0, 300.0, 1000.0])
def test_a_second_cluster_is_no_tail(distance):
    g = np.random.default_rng(0)
    z = g.standard_normal(2000)
    x = np.where(g.random(2000) < 0.2, z + distance, z)
    assert fit_tails(torch.as_tensor(x)) is None


@pytest.mark.parametrize("value", [1e6, 1e20, 1e30])
@pytest.mark.parametrize("rows", [1000, 50_001])
def test_no_value_is_too_far_or_overlooked(value, rows):
    x = torch.as_tensor(np.random.default_rng(0).standard_normal(rows))
    x[101] = value
    tails = Tails.of(x[:, None])
    z = tails.inverse_and_ladj(x[:, None])[0]
    assert z.std() < 3
    assert 0.3 < z[:100].std() < 3, "the rest isn't squeezed beside it"


def test_values_beyond_all_tails_are_warned_of():
    x = np.random.default_rng(0).standard_normal((100, 2))
    x[3, 1] = 1e150
    with pytest.warns(UserWarning, match=r"so far from the rest .* value beside them: 1\."):
        FlowDensity("realnvp", num_steps=2, progress=False).fit(x)


def test_a_column_that_is_mostly_one_value():
    x = torch.zeros(1000, dtype=torch.float64)
    assert fit_tails(x) is None
    x[:300] = cauchy(300)[:, 0]
    assert fit_tails(x) is None, "the likelihood has a kink there: no fit is to be trusted"


def test_wherever_the_default_device_is():
    x = cauchy(500)
    expected = Tails.of(x).centre
    with torch.device("meta"):
        assert Tails.of(x).centre.item() == expected.item()


def test_it_is_a_layer():
    heavy = torch.tensor([True, False])
    centre, spread = torch.tensor([1.0, 5.0]), torch.tensor([2.0, 7.0])
    indices = torch.tensor([[1.0, -1.0], [0.0, 0.0]])
    tails = Tails(heavy, centre, spread, indices)
    columns = Columns(
        torch.tensor([-torch.inf, 0.0]),
        torch.tensor([torch.inf, 1.0]),
        torch.tensor([0.3, -0.2]),
        torch.tensor([1.5, 0.7]),
        tails,
    )
    for layer in (tails, columns):
        x = torch.randn(50, 2, dtype=torch.float64)
        layer = layer.double()
        y, ladj = layer.forward_and_ladj(x)
        jacobian = torch.func.vmap(torch.func.jacrev(lambda v, f=layer: f.forward_and_ladj(v)[0]))
        torch.testing.assert_close(ladj, jacobian(x).slogdet()[1])
        back, minus = layer.inverse_and_ladj(y)
        torch.testing.assert_close(back, x)
        torch.testing.assert_close(minus, -ladj)


def _behind(density, dist, dim):
    rows = dist.rvs(size=(5000, dim), random_state=np.random.default_rng(1))
    return (dist.logpdf(rows).sum(-1) - density.score_samples(rows)).mean()


def test_cauchy_columns(tmp_path):
    x = cauchy(600, dim=2).numpy()
    density = FlowDensity("realnvp", num_steps=100, progress=False).fit(x)
    assert _behind(density, stats.cauchy, 2) < 0.3
    draws = density.sample(4000)
    assert 0.5 < np.quantile(np.abs(draws), 0.99) / stats.cauchy.ppf(0.995) < 2
    loaded = FlowDensity.load(density.save(tmp_path / "cauchy"))
    np.testing.assert_array_equal(loaded.score_samples(x), density.score_samples(x))
    value = torch.tensor([1e4, -1e4], dtype=torch.float32)
    torch.testing.assert_close(
        density.distribution().log_prob(value).item(),
        float(density.score_samples(value[None].numpy())[0]),
        rtol=1e-3,
        atol=0,
    )


@pytest.mark.parametrize("row", range(3))
def test_one_value_far_out_costs_little(row):
    """Wherever the split puts it."""
    x = np.random.default_rng(0).standard_normal((400, 2))
    x[100 * row, 1] = 1e6
    density = FlowDensity("realnvp", num_steps=100, progress=False, seed=row).fit(x)
    assert _behind(density, stats.norm, 2) < 0.3


def test_a_context_beyond_the_dtype():
    context = np.random.default_rng(0).standard_normal((100, 1))
    density = FlowDensity("realnvp", num_steps=2, progress=False).fit(context, context)
    for use in (lambda c: density.score_samples([[0.0]], c), lambda c: density.sample(2, c)):
        with pytest.raises(DataError, match="1 rows so far from those of fit that float32"):
            use([[1e300]])


def test_a_context_far_out():
    context = np.random.default_rng(0).standard_normal((600, 1))
    x = context + 0.1 * np.random.default_rng(1).standard_normal((600, 1))
    context[5] = 1e7
    density = FlowDensity("realnvp", num_steps=300, progress=False).fit(x, context)
    at = np.array([[-1.0], [1.0]])
    assert (density.score_samples(at, at) > 0.5).all()
