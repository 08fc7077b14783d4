# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Chains that wait for each other, so that a density is evaluated for all of them at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from threading import Lock, Thread
from typing import Generic, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")
# From a point ``(D,)`` to a value and its gradient, ``()`` and ``(D,)``.
Ask = Callable[[Tensor], tuple[Tensor, Tensor]]


def in_lockstep(
    evaluate: Callable[[Tensor], tuple[Tensor, Tensor]],
    chains: Sequence[Callable[[Ask], Result]],
) -> list[Result]:
    """Run several chains side by side; each evaluation serves all that wait for one.

    A step of a small model costs what Python and torch take for an operation, whether for one
    point or for several. A sampler that knows one chain only, such as Pyro's NUTS, runs in a
    thread of its own until it asks for a value; when all have asked, they are answered together.
    Only one thread runs at any time, always in the same order, so that random numbers are
    reproducible.

    Args:
        evaluate: values ``(P,)`` and gradients ``(P, D)`` at points ``(P, D)``.
        chains: each a function of ``ask``, which gives the value and the gradient at one point.

    Returns:
        What the chains return.

    Raises:
        Exception: what a chain, or ``evaluate``, raised; the others are stopped.
    """
    threads = [_Chain(work) for work in chains]
    try:
        for thread in threads:
            thread.start()
            thread.advance()
        while waiting := [thread for thread in threads if thread.point is not None]:
            points = torch.stack([t.point for t in waiting if t.point is not None])
            for thread, *thread.answer in zip(waiting, *evaluate(points), strict=True):
                thread.advance()
        return [thread.result for thread in threads]
    finally:
        for thread in threads:
            thread.stop()


class _Chain(Thread, Generic[Result]):
    """One chain; it and the thread that made it take turns."""

    result: Result

    def __init__(self, work: Callable[[Ask], Result]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.point: Tensor | None = None
        self.answer: list[Tensor] = []
        # Held until the other side gives them free.
        self._go, self._halted = Lock(), Lock()
        self._go.acquire()
        self._halted.acquire()
        self._error: BaseException | None = None
        self._stopped = False

    def run(self) -> None:
        self._go.acquire()
        try:
            if not self._stopped:
                self.result = self.work(self._ask)
        except BaseException as error:  # raised again by the thread that waits
            self._error = error
        finally:
            self.point = None
            self._halt()

    def _ask(self, point: Tensor) -> tuple[Tensor, Tensor]:
        self.point = point.detach()
        self._halt()
        self._go.acquire()
        if self._stopped:
            raise _Stopped
        value, gradient = self.answer
        return value, gradient

    def _halt(self) -> None:
        if not self._stopped:  # else nobody waits
            self._halted.release()

    def advance(self) -> None:
        """Let it run until it asks or ends; raises what it raised."""
        self._go.release()
        self._halted.acquire()
        if self._error is not None:
            raise self._error

    def stop(self) -> None:
        """End it where it asks next."""
        self._stopped = True
        if self.is_alive():
            self._go.release()
            self.join()


class _Stopped(BaseException):
    """Ends a chain whose answers are no longer wanted."""
