# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Distribution functions of mixtures, put back on the real line, on the scale of logarithms.

Both functions here take standardised values ``z_k`` of one number under each component, and go
through the mixture's distribution function and back by the quantile function of one component.
Probabilities themselves never appear, so nothing saturates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_flows.ops.normal import log_normal_cdf, normal_quantile_of_log


def logit_of_mixture(z: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """``y = logit(sum_k w_k sigmoid(z_k))``, and the logarithms of its partial derivatives.

    Onto the real line: with ``z_k = a_k x + b_k`` it grows like ``min_k a_k x``.

    Args:
        z: shape ``(*, K)``.
        log_weights: shape ``(*, K)``, normalised: their exponentials sum to 1.

    Returns:
        ``(y, log_partials)`` of shapes ``(*)`` and ``(*, K)``, the second ``log dy/dz_k``.

    Reference: Huang et al., Neural Autoregressive Flows, 2018, arXiv:1804.00779.

    Example:
        >>> log_weights = torch.zeros(2).log_softmax(0)
        >>> y, log_partials = logit_of_mixture(torch.tensor([1e6, 1e6]), log_weights)
        >>> torch.allclose(y, torch.tensor(1e6)), torch.allclose(log_partials.exp().sum(), y / y)
        (True, True)
    """
    log_p, log_below = _log_sum(log_weights + F.logsigmoid(z))
    log_q, log_above = _log_sum(log_weights + F.logsigmoid(-z))
    # w s (1 - s) / (p q) is the product of the two posteriors over w: each is a softmax, in which
    # the large terms of either tail have already cancelled.
    return log_p - log_q, log_below + log_above - log_weights


def probit_of_mixture(z: Tensor, log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """``y = Phi^-1(sum_k w_k Phi(z_k))``, and the logarithms of its partial derivatives.

    Args:
        z: shape ``(*, K)``.
        log_weights: shape ``(*, K)``, normalised: their exponentials sum to 1.

    Returns:
        ``(y, log_partials)`` of shapes ``(*)`` and ``(*, K)``, the second ``log dy/dz_k``.

    Reference: Meng et al., Gaussianization Flows, 2020, arXiv:2003.01941.

    Example:
        >>> y, _ = probit_of_mixture(torch.tensor([-70.0, -80.0]), torch.zeros(2).log_softmax(0))
        >>> bool((y > -80) & (y < -69))
        True
    """
    # By symmetry the lower half is enough: there, logarithms of probabilities keep their digits.
    with torch.no_grad():
        upper = (log_weights.exp() * torch.special.ndtr(z)).sum(-1, keepdim=True) > 0.5
        sign = 1 - 2 * upper.to(z.dtype)
    values, log_slopes = log_normal_cdf(sign * z)
    log_p, log_below = _log_sum(log_weights + values)
    y = normal_quantile_of_log(log_p)
    log_partials = log_below + log_slopes - log_normal_cdf(y)[1].unsqueeze(-1)
    return sign.squeeze(-1) * y, log_partials


def _log_sum(terms: Tensor) -> tuple[Tensor, Tensor]:
    """Log of the sum of exponentials over the last axis, and the logarithms of the shares."""
    largest = terms.detach().amax(-1, keepdim=True)
    excess = terms - largest
    rest = excess.exp().sum(-1, keepdim=True).log()
    return (largest + rest).squeeze(-1), excess - rest
