# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Groups of points by k-means."""

import pytest
import torch

from pyro_flows.errors import DataError
from pyro_flows.ops import kmeans


@pytest.mark.parametrize("seed", range(5))
def test_finds_groups_that_lie_apart(seed):
    truth = torch.arange(4).repeat_interleave(25)
    x = 20.0 * torch.stack([truth % 2, truth // 2], -1) + torch.randn(100, 2)
    centres, labels = kmeans(x, 4, seed=seed)
    assert centres.shape == (4, 2)
    for k in range(4):
        assert labels[truth == k].unique().numel() == 1
        group = int(labels[truth == k][0])
        assert torch.allclose(centres[group], x[truth == k].mean(0))
    assert labels.unique().numel() == 4


def test_centres_are_means_and_labels_nearest():
    x = torch.randn(200, 3)
    centres, labels = kmeans(x, 5, most_passes=200)
    assert torch.equal(torch.cdist(x, centres).argmin(-1), labels)
    for k in range(5):
        assert torch.allclose(centres[k], x[labels == k].mean(0))


def test_the_seed_decides():
    x, state = torch.randn(100, 2), torch.random.get_rng_state()
    assert torch.equal(kmeans(x, 6)[0], kmeans(x, 6)[0])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.equal(kmeans(x, 6, most_passes=0)[0], kmeans(x, 6, seed=1, most_passes=0)[0])


def test_equal_points_are_no_trouble():
    centres, labels = kmeans(torch.ones(10, 2), 3)
    assert torch.equal(centres, torch.ones(3, 2))
    assert ((labels >= 0) & (labels < 3)).all()


def test_one_group_and_as_many_as_points():
    x = torch.randn(7, 2)
    assert torch.allclose(kmeans(x, 1)[0], x.mean(0, keepdim=True))
    centres, labels = kmeans(x, 7)
    assert torch.equal(labels.sort()[0], torch.arange(7))
    assert torch.allclose(centres[labels], x)


@pytest.mark.parametrize("x", [torch.zeros(2, 3), torch.zeros(5), torch.full((5, 1), torch.inf)])
def test_errors(x):
    with pytest.raises(DataError, match=r"kmeans expected finite points of shape \(n, dim\) with"):
        kmeans(x, 3)
