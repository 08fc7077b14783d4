# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Second derivatives of solutions that are found by iteration: made right, or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pyro_flows.errors import DerivativeError
from pyro_flows.ops.tracing import is_recording

Solve = Callable[[Tensor], Tensor]


def needs_plain_operations() -> bool:
    """Whether operations are recorded or carry tangents, so that none may hide in a Function."""
    return is_recording() or forward_ad._current_level >= 0


def can_hide_gradient() -> bool:
    """Whether a Function of fixed operations may stand for plain ones.

    Unlike what :func:`needs_plain_operations` guards, it doesn't depend on values: compilers may
    see it, and take its gradient. Transforms, tangents, tracers and exports need to see inside.
    """
    exporting = getattr(torch.compiler, "is_exporting", None)
    transform = torch._C._functorch.peek_interpreter_stack()
    return (
        # Not `is None`, which compilers take to be false of what they stand for None with.
        isinstance(transform, type(None))
        and torch._C._get_tracing_state() is None
        and forward_ad._current_level < 0
        and not (exporting is not None and exporting())
    )


def are_batched(tensors: tuple[Tensor, ...]) -> bool:
    """Whether gradients come in batches: ``is_grads_batched`` shows in no state, in backward."""
    if torch.compiler.is_compiling():
        return False
    # Python has no name for the key of these tensors, but prints it.
    return any("Batched" in str(torch._C._dispatch_keys(tensor)) for tensor in tensors)


def to_second_order(
    x: Tensor, results: tuple[Tensor, ...], residual: Tensor, solve: Solve
) -> tuple[Tensor, ...]:
    """Give results at a solution, right to first order in all it depends on, the second order.

    Where ``residual(x) = 0`` defines ``x``, one step of Newton's method makes of an ``x`` right to
    first order one that is right beyond the second. The step is 0 and has no gradient, so that it
    is left out of a first derivative, which costs what it did. It enters a gradient only if that
    is to be differentiated again (``create_graph=True``).

    Args:
        x: the solution, with a gradient.
        results: tensors computed from ``x`` and others; may have ``x`` among them.
        residual: of the shape of ``x``, computed from ``x`` and others; zero.
        solve: ``v -> -A^-T v`` for the Jacobian ``A`` of the residual by ``x``; without gradient.

    Returns:
        The results, differentiable twice; a third time is refused.

    Example:
        >>> y = torch.tensor(4.0, requires_grad=True)
        >>> root = 2.0 + 0.25 * (y - 4.0)  # of first order
        >>> (x,) = to_second_order(root, (root,), y - root**2, lambda v: v / 4)
        >>> (slope,) = torch.autograd.grad(x, y, create_graph=True)
        >>> slope.item(), torch.autograd.grad(slope, y)[0].item()
        (0.25, -0.03125)
    """
    if not residual.requires_grad:
        return results
    solved: tuple[Tensor, ...] = _Corrected.apply(solve, x, residual, *results)
    return solved


def once(x: Tensor, what: str) -> Tensor:
    """The same tensor, whose gradient can't be differentiated: it would be wrong.

    Args:
        x: any shape.
        what: what the gradient is of, for the error.

    Raises:
        DerivativeError: by the second derivative.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> y = once(x**3, "this cube")
        >>> torch.autograd.grad(y.sum(), x)[0].tolist()
        [3.0, 3.0]
    """
    # What compilers and tracers record is not differentiated twice, or not with these classes.
    if is_recording() and torch._C._functorch.peek_interpreter_stack() is None:
        return x
    same: Tensor = _Once.apply(x, what)
    return same


class _Corrected(torch.autograd.Function):
    """The identity on the results; its backward adds the step if it is differentiated itself."""

    @staticmethod
    def forward(
        ctx: Any, solve: Solve, x: Tensor, residual: Tensor, *results: Tensor
    ) -> tuple[Tensor, ...]:
        # A result that isn't used must not cost its backward, with a gradient of zeros.
        ctx.set_materialize_grads(False)
        ctx.solve = solve
        ctx.save_for_backward(x, *results)
        return tuple(result.clone() for result in results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return None, None, None, *grads
        x, *results = ctx.saved_tensors
        pairs = zip(results, grads, strict=True)
        known = [(r, g.detach()) for r, g in pairs if r.requires_grad and g is not None]
        outputs, weights = zip(*known, strict=True) if known else ((), ())
        by_x = None
        if outputs:
            by_x = torch.autograd.grad(outputs, x, weights, retain_graph=True, allow_unused=True)[
                0
            ]
        if by_x is None:
            return None, None, None, *grads
        # Neither the step's value nor its slope appears in a second derivative but multiplied by
        # the residual or its total gradient, which are zero: constants will do.
        with torch.no_grad():
            step = ctx.solve(by_x)
        return None, None, _Guarded.apply(step, x), *grads


class _Guarded(torch.autograd.Function):
    """A constant that depends on ``x`` in a third derivative, which is refused."""

    @staticmethod
    def forward(ctx: Any, step: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return step.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor | None]:
        if not torch.is_grad_enabled():
            return None, None
        (x,) = ctx.saved_tensors
        return None, _Refused.apply(torch.zeros_like(x), x, "An implicit inverse", "twice")


class _Once(torch.autograd.Function):
    """The identity; its backward can't be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, what: str) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
        x, ctx.what = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        if not torch.is_grad_enabled():
            return grad, None
        (x,) = ctx.saved_tensors
        return _Refused.apply(grad, x, ctx.what, "once"), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, what: None) -> Tensor:
        return tangent.clone()


class _Refused(torch.autograd.Function):
    """A gradient; tied to ``x``, so that no derivative of it by what ``x`` is of can miss this."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, x: Tensor, what: str, times: str) -> Tensor:
        return grad.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str, str], output: Tensor) -> None:
        ctx.what, ctx.times = inputs[2:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        raise DerivativeError(_sentence(ctx.what, ctx.times))

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise DerivativeError(_sentence(ctx.what, ctx.times))


def _sentence(what: str, times: str) -> str:
    return (
        f"{what} expected to be differentiated at most {times}, but got one derivative more, "
        "which would be wrong. Take finite differences of the gradient, or another layer."
    )


def gradient_at(function: Callable[[Tensor], Tensor], point: Tensor) -> Tensor:
    """The gradient of a scalar function at a point, as a constant; also under functorch.

    Args:
        function: of a tensor of the point's shape.
        point: any shape; carries no gradient.

    Example:
        >>> gradient_at(lambda x: x.square().sum(), torch.tensor([1.0, 2.0])).tolist()
        [2.0, 4.0]
    """
    if torch._C._functorch.peek_interpreter_stack() is not None:
        gradient: Tensor = torch.func.grad(function)(point)
        return gradient.detach()
    with torch.enable_grad():
        point = point.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(function(point), point)
    return gradient
