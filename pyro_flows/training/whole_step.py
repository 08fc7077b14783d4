# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A training step as one compiled function: flow, objective, gradient, clip and Adam."""

from __future__ import annotations

import contextlib
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, cast

import pyro
import torch
from torch import Tensor, fx, nn

from pyro_flows.errors import CheckpointError
from pyro_flows.ops.batch_last import batch_last
from pyro_flows.ops.contractions import contracted
from pyro_flows.ops.record import RecordingError, record
from pyro_flows.training.flat import Flat
from pyro_flows.training.randomness import torch_seeded
from pyro_flows.training.steps import State, Step, fresh_state, updated

Compile = Literal["auto"] | bool
Function = Callable[..., Any]
# What an objective gives: outputs whose gradient is taken, along what, the objective, which is to
# be high, and how many terms were masked.
Parts = tuple[Sequence[Tensor], Sequence[Tensor], Tensor, Tensor]

# Beyond so many operations compiling takes longer than anybody waits for: it is 15 to 30 ms each.
MOST = 20_000


class WholeSteps(ABC):
    """Makes the whole step of each of a run's cycles, where it can and where it pays.

    Args:
        compile: True wherever possible, False never, "auto" in cycles of at least ``pays`` steps.
            It depends on counts alone, so that equal seeds give equal fits.
    """

    #: Compiling takes about as long as so many steps by calls, whatever the flow's size: both grow
    #: with the number of operations. Measured on two cores.
    pays: int = 8000
    #: See :func:`~pyro_flows.ops.batch_last.batch_last`. Where it pays is found by measuring.
    small: int = 0

    def __init__(self, compile: Compile) -> None:
        self.compile: Compile = "auto" if compile == "auto" else bool(compile)
        self.cycles = self.compiled = 0
        self._reason = (
            "training ended before it could be" if self.compile else "it was not asked for"
        )
        # None for one that was made before an interrupt, and will be again where it is used.
        self._made: dict[int, Function | None] = {}

    @abstractmethod
    def obstacle(self) -> str | None:
        """Why there can't be such a step; None if nothing is known."""

    @abstractmethod
    def module(self) -> nn.Module:
        """The objective, as it is in training: of :meth:`inputs` it makes :class:`Parts`.

        The parameters that are trained are all its own.
        """

    @abstractmethod
    def size(self, cycle: int) -> int:
        """Draws or rows per step. Each size is compiled for itself."""

    @abstractmethod
    def inputs(self, size: int) -> tuple[Tensor, ...]:
        """What the next step is taken on."""

    @abstractmethod
    def example(self, size: int) -> tuple[Tensor, ...]:
        """The like, of which nothing is used up."""

    @property
    def choice(self) -> str:
        """What was done and why, in words."""
        if self.compiled == 0:
            return f"not compiled: {self._reason}"
        if self.compiled == self.cycles:
            return "compiled: each step is one function"
        return f"compiled in {self.compiled} of {self.cycles} cycles; not always: {self._reason}"

    def __call__(self, cycle: int, steps: int, flat: Flat) -> Step | None:
        """The step of a cycle; None if it is to be taken by calls."""
        self.cycles += 1
        if self.compile is False:
            return None
        size = self.size(cycle)
        reason = self.obstacle() or self._obstacle_in(flat)
        few = self.compile == "auto" and steps < self.pays and size not in self._made
        if reason is None and few:
            reason = f"cycles of fewer than {self.pays:,} steps are over before compiling is"
        if reason is not None:
            self._reason = reason
            return None
        try:
            step = self._step(flat, size)
        except Exception as error:  # noqa: BLE001 (whatever stops the compiler)
            self._reason = _told(error)
            self.compile = False
            return None
        self.compiled += 1
        return step

    def again(self, cycle: int, flat: Flat) -> Step:
        """The step of a cycle that was begun with it, and interrupted.

        Raises:
            CheckpointError: it can't be compiled any more.
        """
        try:
            return self._step(flat, self.size(cycle))
        except Exception as error:
            raise CheckpointError(
                f"its steps were compiled, and can't be here ({_told(error)})"
            ) from error

    def state(self) -> dict[str, Any]:
        """What was done so far; the functions themselves are made again."""
        return {
            "compile": self.compile,
            "cycles": self.cycles,
            "compiled": self.compiled,
            "reason": self._reason,
            "sizes": list(self._made),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on as if those functions had been made here."""
        self.compile, self._reason = state["compile"], state["reason"]
        self.cycles, self.compiled = state["cycles"], state["compiled"]
        self._made = dict.fromkeys(state["sizes"])

    def _obstacle_in(self, flat: Flat) -> str | None:
        if len(flat.vectors) != 1 or any(flat.kinds):
            return "the parameters are of several dtypes or devices, or decay"
        own = {id(parameter) for parameter in self.module().parameters()}
        if not all(id(parameter) in own for parameter in flat.groups[0]):
            return "there are parameters outside the flow"
        return None

    def _step(self, flat: Flat, size: int) -> Step:
        function = self._made.get(size)
        if function is None:
            function = self._made[size] = self._compiled(flat, size)
        return _WholeStep(function, flat.vectors[0], lambda: self.inputs(size))

    def _compiled(self, flat: Flat, size: int) -> Function:
        vector, module = flat.vectors[0], self.module()
        fresh = fresh_state(vector)
        buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
        names, shapes = _names(module, flat.groups[0])
        sizes = [shape.numel() for shape in shapes]

        def whole(*given: Tensor) -> tuple[Tensor, ...]:
            before, (rate, *inputs) = given[: len(fresh)], given[len(fresh) :]
            with torch.enable_grad():
                leaf = before[0].detach().requires_grad_()
                parts = zip(names, leaf.split(sizes), shapes, strict=True)
                own = {name: part.view(shape) for name, part, shape in parts}
                parted: Parts = torch.func.functional_call(module, own, tuple(inputs))
                outputs, along, objective, masked = parted
                (gradient,) = torch.autograd.grad(list(outputs), leaf, list(along))
            after = updated(cast("State", tuple(before)), gradient, rate)
            return *(tensor.detach() for tensor in after), objective.detach(), masked

        # Random numbers and buffers of the run go on as if nothing had been tried.
        with pyro.validation_enabled(False), torch_seeded(0), _put_back(buffers):
            before = *fresh, vector.new_full((), 0.01)
            # Compiled, random numbers would be others: such a step couldn't be compared.
            recorded = contracted(record(whole, *before, *self.example(size), chance=False))
            if not all(_same(buffer, kept) for buffer, kept in buffers):
                raise RecordingError("buffers of the flow change in training")
            if len(recorded.graph.nodes) > MOST:
                raise RecordingError(f"it would be a function of more than {MOST:,} operations")
            unseen = *before, *self.example(size)
            on_cpu = vector.device.type == "cpu"
            laid_out = batch_last(recorded, size, self.small) if on_cpu else None
            if laid_out is not None:
                with contextlib.suppress(Exception):
                    # Recorded anew: the compiler keeps what is made of torch's operations only.
                    return _compiled_like(whole, record(laid_out, *unseen), unseen)
            return _compiled_like(whole, recorded, unseen)


class _WholeStep:
    """Steps of a fresh optimiser, by one function."""

    def __init__(
        self, function: Function, vector: Tensor, inputs: Callable[[], tuple[Tensor, ...]]
    ) -> None:
        self.function, self.vector, self.inputs = function, vector, inputs
        self.after, self.pace = fresh_state(vector), vector.new_zeros(())

    def __call__(self, rate: float) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            *after, objective, masked = self.function(
                *self.after, self.pace.fill_(rate), *self.inputs()
            )
            self.vector.copy_(after[0])
        self.after = cast("State", tuple(after))
        return objective, masked

    def state(self) -> list[Tensor]:
        return list(self.after)

    def set_state(self, state: list[Tensor]) -> None:
        vector, mean, square, size, count = state
        self.after = vector, mean, square, size, count


@contextlib.contextmanager
def _put_back(buffers: Sequence[tuple[Tensor, Tensor]]) -> Iterator[None]:
    try:
        yield
    finally:
        for buffer, kept in buffers:
            if not _same(buffer, kept):
                buffer.copy_(kept)


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _told(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {first}"


def _names(module: nn.Module, parameters: Sequence[Tensor]) -> tuple[list[str], list[torch.Size]]:
    """The parameters' names inside the module, and their shapes, in their order."""
    known = {id(parameter): name for name, parameter in module.named_parameters()}
    return [known[id(p)] for p in parameters], [p.shape for p in parameters]


def _compiled_like(plain: Function, graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Function:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's, about calls of its own
        compiled = _compile(graph, inputs)
    _check_equal(compiled, plain, inputs)
    return compiled


def _compile(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Function:
    """Machine code for inputs of these shapes; made before, it is read from torch's cache."""
    try:
        from torch._inductor import standalone_compile  # noqa: PLC0415 (takes a second)
    except ImportError:  # torch < 2.8
        made: Function = torch.compile(graph, fullgraph=True, dynamic=False)
        return made
    # Unlike torch.compile it has nothing to find out about Python, before or in each call.
    checks = {"size_asserts": False, "alignment_asserts": False}
    return standalone_compile(
        graph,
        list(inputs),
        dynamic_shapes="from_example_inputs",
        options={"config_patches": checks},
    )


def _check_equal(compiled: Function, plain: Function, inputs: tuple[Tensor, ...]) -> None:
    """Raise unless both agree on inputs that weren't seen in recording."""
    with torch.no_grad():
        expected = plain(*inputs)
        got = compiled(*inputs)
    tolerance = 1e-3 if inputs[0].dtype == torch.float32 else 1e-7
    # Parameters after one step of Adam hold the gradient's sign alone: the moments tell more.
    # Where all cancels, as in the gradient of a perfect guide, rounding is what is left.
    floors = (1e-2, 1e-2, 1e-2, 1.0, 1.0, 1.0)
    for one, other, floor in zip(got[1:], expected[1:], floors, strict=True):
        size = other.abs().max().clamp_min(floor)
        if not bool(((one - other).abs() <= tolerance * size).all()):
            raise ArithmeticError("the compiled step disagrees with the one it was made from")
