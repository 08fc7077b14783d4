# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The layer made from a model's own hierarchy: its laws, its levels, its copies."""

import pytest
import torch

from pyro_flows import AutoFlow
from pyro_flows.errors import ShapeError
from pyro_flows.testing import LAWS, check_layer
from pyro_flows.transforms import NonCentring


class Chain(torch.nn.Module):
    """Each coordinate hangs on the one before: location and log-scale are bounded in it."""

    def forward(self, x):
        parent = torch.cat([torch.zeros_like(x[:1]), x[:-1]])
        return parent.tanh(), 0.5 * parent.tanh()


def make(dim, context_dim, degree=0.3):
    layer = NonCentring(dim, Chain(), levels=[min(i, 2) if i < 3 else 0 for i in range(dim)])
    layer.set_centring(torch.full((dim,), degree))
    return layer


# The degree is set, so this is not the start, and setting it reads its values, which a layer built
# on the meta device has not; called there, see below. A compiled vmap is another matter.
LEFT_OUT = {"starts_at_identity", "no_implicit_device", "compiles"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("dim", [2, 3, 5])
def test_laws(dim, dtype):
    check_layer(make, dim=dim, dtype=dtype, laws=[law for law in LAWS if law not in LEFT_OUT])


def test_no_implicit_device():
    layer, x = make(3, 0), torch.randn(4, 3)
    expected = layer.forward_and_ladj(x)
    torch.set_default_device("meta")
    try:
        got = layer.forward_and_ladj(x)
    finally:
        torch.set_default_device(None)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def test_centred_is_the_identity():
    layer = NonCentring(3, Chain(), levels=[0, 1, 2])
    x = torch.randn(4, 3)
    assert torch.equal(layer(x), x)
    assert torch.equal(layer.forward_and_ladj(x)[1], torch.zeros(4))


def test_the_state_dict_carries_the_degree():
    saved, fresh = make(3, 0), NonCentring(3, Chain(), levels=[0, 1, 2])
    x = torch.randn(4, 3)
    assert not torch.allclose(fresh(x), saved(x))
    fresh.load_state_dict(saved.state_dict())
    assert torch.equal(fresh(x), saved(x))


def test_levels_are_checked():
    with pytest.raises(ShapeError, match=r"expected 2 levels, one of them at least 1.*\[0, 0\]"):
        NonCentring(2, Chain(), levels=[0, 0])


def test_the_users_data_are_not_touched():
    """A recorded model holds its data as constants; loading a state must not write to them."""
    import pyro
    import pyro.distributions as dist

    def model(u, y):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("group", len(u)):
            t = pyro.sample("t", dist.Normal(a * u, 1.0))
            pyro.sample("y", dist.Normal(t, 1.0), obs=y)

    first, second, y = torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0]), torch.zeros(2)
    one, other = AutoFlow(model).setup(first, y), AutoFlow(model).setup(second, y)
    assert one.noncentring is not None
    other.load_state_dict(one.state_dict())
    assert second.tolist() == [10.0, 20.0]
    assert second._version == 0
