# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Nodes and weights of Gauss-Legendre quadrature."""

from __future__ import annotations

import numpy as np


def gauss_legendre(count: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Nodes and weights on ``[0, 1]``, exact for polynomials of degree ``2 count - 1``.

    Args:
        count: number of nodes.

    Returns:
        ``(nodes, weights)`` as Python floats: a tensor is made of them with the dtype and device
        of what is integrated.

    Example:
        >>> nodes, weights = gauss_legendre(2)
        >>> abs(sum(w * u**3 for u, w in zip(nodes, weights)) - 1 / 4) < 1e-15
        True
    """
    nodes, weights = np.polynomial.legendre.leggauss(count)
    return tuple((0.5 + 0.5 * nodes).tolist()), tuple((0.5 * weights).tolist())
