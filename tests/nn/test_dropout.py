# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Dropout: off by default, off when scoring, of the right size."""

import pytest
import torch

from pyro_flows import flows
from pyro_flows.errors import ShapeError
from pyro_flows.nn import MLP, MaskedMLP, ResidualMLP, WithDropout, set_dropout
from pyro_flows.ops import order_adjacency


def nets():
    yield MLP(3, 2), (torch.randn(3),)
    yield ResidualMLP(3, 2), (torch.randn(3),)
    yield MaskedMLP(order_adjacency(3), 2), (torch.randn(3, 1),)


def perturbed(net):
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter))
    return net


@pytest.mark.parametrize("index", range(3))
def test_it_acts_in_training_only_and_if_asked(index):
    net, inputs = list(nets())[index]
    perturbed(net)
    assert torch.equal(net(*inputs), net(*inputs)), "off by default"
    set_dropout(net, 0.5)
    assert not torch.equal(net(*inputs), net(*inputs))
    net.eval()
    assert torch.equal(net(*inputs), net(*inputs))


def test_the_mean_stays():
    net = WithDropout()
    net.dropout = 0.25
    h = net.drop(torch.ones(100_000))
    assert (h == 0).double().mean() == pytest.approx(0.25, abs=0.01)
    assert h.mean() == pytest.approx(1.0, abs=0.01)


def test_all_conditioners_of_a_flow_are_set():
    flow = flows.make("nsf", 4)
    set_dropout(flow, 0.2)
    found = [m.dropout for m in flow.modules() if isinstance(m, WithDropout)]
    assert found == [0.2] * len(found)
    assert len(found) >= 6


def test_a_share_of_all_is_refused():
    with pytest.raises(ShapeError, match="at least 0 and less than 1, but got 1.0"):
        set_dropout(MLP(2, 2), 1.0)
