# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""FlowVI's step as one compiled function: draws, flow, log joint, gradient, clip and Adam."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import pyro
import torch
from torch import Tensor, fx, nn

from pyro_flows.distributions import Flow, FlowDistribution, StandardNormal
from pyro_flows.guides import structure
from pyro_flows.guides.capture import record
from pyro_flows.guides.contractions import contracted
from pyro_flows.inference.batch_last import batch_last
from pyro_flows.inference.objectives import Objective, mirrored_noise
from pyro_flows.training.flat import Flat
from pyro_flows.training.steps import State, Step, fresh_state, updated

Compile = Literal["auto"] | bool

# Compiling takes about as long as so many steps by calls, whatever the flow's size: both grow with
# the number of operations. Measured on two cores, small models: 15 to 25 s, and 3 ms a step.
PAYS = 8000


class WholeSteps:
    """Makes the whole step of each of a run's cycles, where it can and where it pays.

    Args:
        objective: FlowVI's.
        compile: True wherever possible, False never, "auto" in cycles of at least 8,000 steps.
            It depends on counts alone, so that equal seeds give equal fits.
        particles: draws per step, by the number of the cycle.
    """

    def __init__(
        self, objective: Objective, compile: Compile, particles: Callable[[int], int]
    ) -> None:
        self.objective, self.compile, self.particles = objective, compile, particles
        self.cycles = self.compiled = 0
        self._reason = "it was not asked for"
        self._made: dict[int, Callable[..., Any]] = {}

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
        reason = self._obstacle(flat)
        if reason is None and self.compile == "auto" and steps < PAYS:
            reason = f"cycles of fewer than {PAYS:,} steps are over before compiling is"
        if reason is not None:
            self._reason = reason
            return None
        count = self.particles(cycle)
        if count not in self._made:
            try:
                self._made[count] = self._compiled(flat, count)
            except Exception as error:  # noqa: BLE001 (whatever stops the compiler)
                first = (str(error).splitlines() or [""])[0][:200]
                self._reason = f"{type(error).__name__}: {first}"
                self.compile = False
                return None
        self.compiled += 1
        return self._step(self._made[count], flat, count)

    def _obstacle(self, flat: Flat) -> str | None:
        objective = self.objective
        if objective._inner is None:
            return "the guide is no AutoFlow"
        if not isinstance(objective._inner.base, StandardNormal):
            return "its base is no standard normal, as of a mixture of flows"
        if objective.log_joint.mode != "captured":
            return f"the log joint could not be recorded ({objective.log_joint.why})"
        if objective.log_joint.stochastic:
            return "the model draws random numbers of its own"
        if objective.edges:
            return "draws fall outside the support"
        if len(flat.vectors) != 1 or any(flat.kinds):
            return "the parameters are of several dtypes or devices, or decay"
        own = {id(parameter) for parameter in objective._inner.parameters()}
        if not all(id(parameter) in own for parameter in objective.parameters):
            return "the guide has parameters outside its flow"
        return None

    def _step(self, function: Callable[..., Any], flat: Flat, count: int) -> Step:
        objective, vector = self.objective, flat.vectors[0]
        state = fresh_state(vector)
        pace = vector.new_zeros(())
        base = cast("Flow", objective._inner).base(None)

        def step(rate: float) -> tuple[Tensor, Tensor]:
            nonlocal state
            objective.gradients += count
            with torch.no_grad():
                drawn = mirrored_noise(base, count)
                *after, elbo, masked = function(*state, pace.fill_(rate), drawn)
                vector.copy_(after[0])
            state = cast("State", tuple(after))
            return elbo, masked

        return step

    def _drawn(self, count: int) -> Tensor:
        flow = cast("Flow", self.objective._inner)
        with torch.no_grad():
            return mirrored_noise(flow.base(None), count)

    def _compiled(self, flat: Flat, count: int) -> Callable[..., Any]:
        vector = flat.vectors[0]
        names, shapes = _names(cast("Flow", self.objective._inner), self.objective.parameters)
        sizes = [shape.numel() for shape in shapes]
        path = _Path(self.objective)

        def whole(*inputs: Tensor) -> tuple[Tensor, ...]:
            *before, rate, drawn = inputs
            with torch.enable_grad():
                leaf = before[0].detach().requires_grad_()
                parts = zip(names, leaf.split(sizes), shapes, strict=True)
                own = {name: part.view(shape) for name, part, shape in parts}
                outputs, along, elbo, masked = torch.func.functional_call(path, own, (drawn,))
                (gradient,) = torch.autograd.grad(outputs, leaf, along)
            after = updated(cast("State", tuple(before)), gradient, rate)
            return *(tensor.detach() for tensor in after), elbo, masked

        # The draws of the run go on as if nothing had been tried.
        with pyro.validation_enabled(False), structure.random_state_kept():
            example = *fresh_state(vector), vector.new_full((), 0.01), self._drawn(count)
            recorded = contracted(record(whole, *example))
            laid_out = batch_last(recorded, count) if vector.device.type == "cpu" else None
            unseen = *example[:-1], self._drawn(count)
            if laid_out is not None:
                with contextlib.suppress(Exception):
                    # Recorded anew: the compiler keeps what is made of torch's operations only.
                    return _compiled_like(whole, record(laid_out, *unseen), unseen)
            return _compiled_like(whole, recorded, unseen)


class _Path(nn.Module):
    """The objective's path gradient as a module, so that parameters can be given to it."""

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        self.flow = objective._inner
        self.objective = (objective,)  # not a part

    def forward(self, drawn: Tensor) -> Any:
        flow = cast("Flow", self.flow)
        distribution: FlowDistribution = flow()
        weight = drawn.new_full((len(drawn),), 1.0 / len(drawn))
        return self.objective[0].path(distribution, drawn, weight)


def _names(flow: Flow, parameters: Sequence[Tensor]) -> tuple[list[str], list[torch.Size]]:
    """The parameters' names inside :class:`_Path`, and their shapes, in their order."""
    known = {id(parameter): f"flow.{name}" for name, parameter in flow.named_parameters()}
    return [known[id(p)] for p in parameters], [p.shape for p in parameters]


def _compiled_like(
    plain: Callable[..., Any], graph: fx.GraphModule, inputs: tuple[Tensor, ...]
) -> Callable[..., Any]:
    with torch.no_grad():
        compiled = _compile(graph, inputs)
    _check_equal(compiled, plain, inputs)
    return compiled


def _compile(graph: fx.GraphModule, inputs: tuple[Tensor, ...]) -> Callable[..., Any]:
    """Machine code for inputs of these shapes; made before, it is read from torch's cache."""
    try:
        from torch._inductor import standalone_compile  # noqa: PLC0415 (takes a second)
    except ImportError:  # torch < 2.8
        made: Callable[..., Any] = torch.compile(graph, fullgraph=True, dynamic=False)
        return made
    # Unlike torch.compile it has nothing to find out about Python, before or in each call.
    checks = {"size_asserts": False, "alignment_asserts": False}
    return standalone_compile(
        graph,
        list(inputs),
        dynamic_shapes="from_example_inputs",
        options={"config_patches": checks},
    )


def _check_equal(
    compiled: Callable[..., Any], plain: Callable[..., Any], inputs: tuple[Tensor, ...]
) -> None:
    """Raise unless both agree on draws that weren't seen in recording."""
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
