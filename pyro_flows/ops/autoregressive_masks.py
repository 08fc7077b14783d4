# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Who may depend on whom: orders, dependency graphs, and the masks that hold a network to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pyro_flows.errors import ShapeError


def order_adjacency(dim: int, order: str | Sequence[int] = "natural", *, seed: int = 0) -> Tensor:
    """The dependency graph of a full order: each coordinate depends on all before it.

    Args:
        dim: number of coordinates.
        order: ``"natural"``, ``"reversed"``, ``"random"``, or the coordinates in the order in
            which they come, a permutation of ``range(dim)``.
        seed: of the random order, which depends on ``dim`` and ``seed`` alone.

    Returns:
        Bool tensor ``(dim, dim)``; ``adjacency[i, j]`` is True where ``i`` depends on ``j``.

    Raises:
        ShapeError: the order is no permutation, or no known word.

    Example:
        >>> order_adjacency(3, [2, 0, 1]).int().tolist()
        [[0, 0, 1], [1, 0, 1], [0, 0, 0]]
    """
    if isinstance(order, str):
        generator = torch.Generator(device="cpu").manual_seed(7919 * seed + dim)
        named = {
            "natural": torch.arange(dim, device="cpu"),
            "reversed": torch.arange(dim - 1, -1, -1, device="cpu"),
            "random": torch.randperm(dim, generator=generator, device="cpu"),
        }
        places = named.get(order)
    else:
        places = torch.as_tensor(order, device="cpu")
        if places.shape != (dim,) or places.sort()[0].tolist() != list(range(dim)):
            places = None
    if places is None:
        raise ShapeError(
            f"Expected an order of {dim} coordinates: 'natural', 'reversed', 'random' or a "
            f"permutation of 0, ..., {dim - 1}, but got {order!r}."
        )
    rank = places.argsort()
    return rank.unsqueeze(1) > rank.unsqueeze(0)


def generations(adjacency: Tensor) -> Tensor:
    """The generation of each coordinate: 0 without parents, else one more than its last parent's.

    One more than the largest is the depth of the graph, the number of coordinates on its longest
    path: an autoregressive inverse is exact after as many passes.

    Args:
        adjacency: bool ``(D, D)``, ``adjacency[i, j]`` where ``i`` depends on ``j``.

    Raises:
        ShapeError: not square, or a coordinate depends on itself, by however many steps.

    Example:
        >>> generations(torch.tensor([[0, 0, 0], [1, 0, 0], [1, 0, 0]]).bool())
        tensor([0, 1, 1])
    """
    if adjacency.dim() != 2 or adjacency.shape[0] != adjacency.shape[1]:
        raise ShapeError(
            f"Expected an adjacency of shape (dim, dim), but got {tuple(adjacency.shape)}. Row i "
            "marks the coordinates that coordinate i depends on."
        )
    adjacency = adjacency.to("cpu", torch.bool)
    result = torch.full_like(adjacency[:, 0], -1, dtype=torch.long)
    for generation in range(len(adjacency)):
        left = result < 0
        ready = left & ~(adjacency & left).any(1)
        if not ready.any():
            break
        result[ready] = generation
    if (result < 0).any():
        # Those that only lead out of a cycle, and aren't on one, are left out of the sentence.
        power = adjacency.double()
        for _ in range(len(adjacency).bit_length()):
            power = ((power + power @ power) > 0).double()
        raise ShapeError(
            "Expected an adjacency without cycles, but coordinates "
            f"{power.diagonal().nonzero()[:, 0].tolist()} depend on themselves, directly or "
            "through others. Remove a dependency, or give an order instead."
        )
    return result


def autoregressive_masks(
    seen: Tensor, generation: Tensor, hidden_dims: Sequence[int]
) -> tuple[list[Tensor], list[Tensor]]:
    """Masks for the layers of a network whose outputs may see only some of its inputs.

    A hidden unit may see what some output may see: its set is one of the different rows of
    ``seen``. All layers use the same sets, as many as the narrowest layer has units, spread
    evenly. So a unit reads and is read by units of its own set, and none is dead at any width;
    where an output sees no unit, since there are fewer than sets, a shortcut has to serve it.

    Args:
        seen: bool ``(outputs, inputs)``: what each output may depend on; not all False.
        generation: ``(outputs,)``: outputs that see the same are of one generation.
        hidden_dims: widths of the hidden layers, any.

    Returns:
        ``(masks, units)``: one bool mask ``(out, in)`` for each of the ``len(hidden_dims) + 1``
        layers, and for each hidden layer the generation of each of its units, ascending: that of
        the first outputs that may read it.

    Reference: masks of Germain et al. 2015, arXiv:1502.03509, for any graph.

    Example:
        >>> seen = order_adjacency(3)
        >>> (first, last), units = autoregressive_masks(seen, generations(seen), [5])
        >>> bool(((last.int() @ first.int() > 0) == seen).all()), units[0].tolist()
        (True, [1, 1, 1, 2, 2])
    """
    seen, generation = seen.to("cpu", torch.bool), generation.to("cpu")
    if not hidden_dims:
        return [seen], []
    keys = torch.cat([generation.unsqueeze(1), seen.sum(1, keepdim=True), seen.long()], 1)
    rows = torch.unique(keys[seen.any(1)], dim=0)  # sorted by the first columns first
    count = min(len(rows), *hidden_dims)
    if count == 1:
        rows = rows[len(rows) // 2 :][:1]
    else:
        # The smallest set is kept: without it early outputs would see nothing.
        rows = rows[torch.arange(count, device="cpu") * len(rows) // count]
    sets = rows[:, 2:].bool()
    classes = [torch.arange(width, device="cpu") * count // width for width in hidden_dims]
    within = _subset(sets, sets)
    masks = [sets[classes[0]]]
    masks += [within[b][:, a] for a, b in zip(classes[:-1], classes[1:], strict=True)]
    masks.append(_subset(sets, seen)[:, classes[-1]])
    return masks, [rows[:, 0][of_units] for of_units in classes]


def _subset(small: Tensor, large: Tensor) -> Tensor:
    """``(len(large), len(small))``: where a set of ``small`` lies within one of ``large``."""
    return (~large).float() @ small.float().T == 0
