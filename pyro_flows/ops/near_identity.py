# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The inverse of a map of vectors close to the identity, with the gradient of a formula."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pyro_flows.errors import NotConvergedError
from pyro_flows.ops.derivatives import needs_plain_operations, once, to_second_order
from pyro_flows.ops.implicit import implicit_fixed_point
from pyro_flows.ops.roots import fixed_point
from pyro_flows.ops.trace import Push, terms_until
from pyro_flows.ops.tracing import is_recording

# Evaluations: the most that are made where values may be looked at.
MOST = 400

Mapping = Callable[[Tensor], tuple[Tensor, Tensor]]


def near_identity_inverse(
    function: Mapping, y: Tensor, start: Tensor | None = None, *, recorded: int = 20
) -> tuple[Tensor, Tensor]:
    """Solve ``f(x) = y`` for vectors, where ``f(x) = x + g(x)`` and ``g`` contracts.

    Newton's method, each step kept only if it brings ``f(x)`` closer to ``y``; where it doesn't,
    the next step is the fixed point's, ``x - (f(x) - y)``, which always does if ``g`` contracts.
    So it converges from any start, and quadratically at the end.

    Args:
        function: ``x -> (f(x), J)`` with ``J`` of shape ``(*, dim, dim)``, **row** ``i`` holding
            the derivatives by ``x_i`` (the transposed Jacobian, as tangents are pushed).
        y: values, shape ``(*, dim)``.
        start: where to begin, ``y`` by default.
        recorded: evaluations that are made where operations are recorded
            (see :func:`is_recording`).

    Returns:
        ``(x, ladj)`` of shapes ``(*, dim)`` and ``(*)``: the root and ``-log|det J|`` there.
        Gradients by ``y`` and by all that ``function`` closes over are those of the implicit
        function theorem, not of the iterations, and right to second order, where batch elements
        don't depend on each other. NaN stays NaN. ``ladj`` is NaN where the determinant is
        negative: there ``f`` is no bijection.

    Raises:
        NotConvergedError: some finite ``y`` wasn't reached; never raised where operations are
            recorded.

    Cost: typically 3 to 6 evaluations without gradient, each with a solve of O(dim^3), and two
    with gradient.

    Example:
        >>> def f(x):
        ...     return x + 0.5 * x.sin(), torch.diag_embed(1 + 0.5 * x.cos())
        >>> y = torch.tensor([[1.0, -7.0]])
        >>> torch.allclose(f(near_identity_inverse(f, y)[0])[0], y)
        True
    """
    with torch.no_grad():
        x = _newton(function, y.detach(), y.detach() if start is None else start, recorded)
    if not torch.is_grad_enabled():
        return x, -log_det(function(x)[1])
    value, jacobian = function(x)
    x = _moved(x, y, value, jacobian.detach())
    value, jacobian = function(x)
    if needs_plain_operations():
        x = _moved(x, y, value, jacobian)
        return x, -log_det(function(x)[1])
    results = x, -log_det(jacobian)
    # Of the transposed Jacobian, as steps are solved for the other way round.
    x, ladj = to_second_order(x, results, y - value, lambda v: _solve(jacobian.mT, v))
    return x, ladj


def _moved(x: Tensor, y: Tensor, value: Tensor, jacobian: Tensor) -> Tensor:
    """A root, with the gradient of a step of Newton's method from it.

    The value stays ``x`` to the last digit; what is added is 0, and carries the gradient alone.
    """
    return x + _solve(jacobian, (y - y.detach()) - (value - value.detach()))


def contraction_inverse(
    residual: Push, push: Callable[[Tensor, Tensor], Tensor], y: Tensor, start: Tensor, rate: float
) -> Tensor:
    """Solve ``x + g(x) = y`` for vectors by ``x <- y - g(x)``, without any Jacobian.

    For a ``g`` that contracts, where there are too many dimensions for
    :func:`near_identity_inverse`.

    Args:
        residual: ``g``, shapes ``(*, dim)``.
        push: ``(x, v) -> J(x) v``, the derivative of ``g`` along ``v``.
        y: values, shape ``(*, dim)``.
        start: where to begin, of the shape of ``y``.
        rate: Lipschitz constant of ``g``, below 1; it bounds the number of passes.

    Returns:
        The root, with the gradient of the implicit function theorem, which can't be
        differentiated again.

    Raises:
        NotConvergedError: some finite ``y`` wasn't reached; never raised where operations are
            recorded.

    Cost: passes until nothing moves, ``log(eps) / log(rate)`` where operations are recorded (see
    :func:`is_recording`); as many in the gradient, with the memory of one, or of all where they
    are recorded.

    Example:
        >>> y = torch.tensor([[1.0, -7.0]])
        >>> half_sine, slope = lambda x: 0.5 * x.sin(), lambda x, v: 0.5 * x.cos() * v
        >>> x = contraction_inverse(half_sine, slope, y, y, 0.5)
        >>> torch.allclose(x + half_sine(x), y)
        True
    """
    eps, recording = torch.finfo(y.dtype).eps, is_recording()
    most = terms_until(eps, rate) if recording else 3 * terms_until(eps, rate)
    with torch.no_grad():
        x = fixed_point(lambda x: y - residual(x), start, most)
        if not recording:
            unit = torch.maximum(y.abs(), x.abs()).amax(-1, keepdim=True).clamp_min(1)
            _require_converged(_size((x + residual(x) - y) / unit), y)
    if not torch.is_grad_enabled():
        return x
    if not recording:
        return implicit_fixed_point(lambda x: y - residual(x), x, most)
    # The value stays x to the last digit; the correction carries the gradient alone.
    value = x + residual(x)
    change = (y - y.detach()) - (value - value.detach())
    step = change
    for _ in range(most):
        step = change - push(x, step)
    return once(x + step, "The inverse of a contraction")


def log_det(jacobian: Tensor) -> Tensor:
    """``log det`` of matrices ``(*, dim, dim)``; NaN where the determinant is not positive.

    Example:
        >>> log_det(torch.tensor([[1.0, 2.0], [0.0, 1.0]]))
        tensor(0.)
    """
    if jacobian.shape[-1] == 1:
        det = jacobian[..., 0, 0]
        sign, size = det, torch.where(det > 0, det, torch.ones_like(det)).log()
    else:
        sign, size = torch.linalg.slogdet(jacobian)
    return torch.where(sign > 0, size, torch.full_like(size, torch.nan))


def _solve(jacobian: Tensor, right: Tensor) -> Tensor:
    if jacobian.shape[-1] == 1:
        return right / jacobian[..., 0]
    # Unchecked, so that no device is waited for: what a singular matrix gives is not taken.
    return torch.linalg.solve_ex(jacobian.mT, right.unsqueeze(-1))[0].squeeze(-1)


def _newton(function: Mapping, y: Tensor, start: Tensor, recorded: int) -> Tensor:
    eps, recording = torch.finfo(y.dtype).eps, is_recording()
    unit = torch.maximum(y.abs(), start.abs()).amax(-1, keepdim=True).clamp_min(1)
    kept, excess = start, torch.full_like(y, torch.inf)  # the best point so far, and f - y there
    before, settled = _size(excess), y.isnan().any(-1, keepdim=True)
    far = torch.ones_like(unit)  # how much larger than the unit the best point is
    trial, plain = start, torch.ones_like(settled)
    for _ in range(recorded if recording else MOST):
        value, jacobian = function(trial)
        new = value - y
        after = _size(new / unit)
        better = (after < before) | (plain & ~settled)
        # Close enough; or at the floor of rounding, no closer by what should have squared it.
        reach = (trial.abs() / unit).amax(-1, keepdim=True).clamp_min(1)
        floor = (before <= 1e3 * eps * far) & (2 * after >= before)
        settled = settled | (after <= 4 * eps * reach) | floor
        far = torch.where(better, reach, far)
        kept, excess = torch.where(better, trial, kept), torch.where(better, new, excess)
        before = torch.where(better, after, before)
        if not recording and bool(settled.all()):
            break
        step = kept - _solve(jacobian, new)
        plain = ~better | ~step.isfinite().all(-1, keepdim=True)
        trial = torch.where(plain, kept - excess, step)
    if not recording and not bool(settled.all()):
        _require_converged(before / far, y)
    return torch.where(y.isnan().any(-1, keepdim=True), y, kept)


def _size(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _require_converged(excess: Tensor, y: Tensor) -> None:
    far = ~(excess <= 1e4 * torch.finfo(y.dtype).eps)
    far = far & y.isfinite().all(-1, keepdim=True)
    if bool(far.any()):
        raise NotConvergedError(
            f"The inverse expected to reach every value, but {int(far.sum())} of {far.numel()} "
            "were not found: the map folds space there. In a continuous flow take more steps."
        )
