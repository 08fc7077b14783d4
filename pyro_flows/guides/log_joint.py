# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A Pyro model and its arguments as ``log_joint(z: (P, D)) -> (P,)``, z unconstrained."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, Literal, cast

import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor

from pyro_flows.errors import ModelError
from pyro_flows.guides import structure
from pyro_flows.guides.blanks import Blanks, writes_in_place
from pyro_flows.guides.capture import Captured, capture
from pyro_flows.guides.enumeration import Substitute, enumerated_log_prob, max_plate_nesting
from pyro_flows.guides.factors import NaNFactors, without_linalg_errors
from pyro_flows.guides.log_einsum import products_in_pyro
from pyro_flows.guides.unpack import constrain
from pyro_flows.ops import contractions
from pyro_flows.ops.tracing import is_recording
from pyro_flows.transforms import Layer

Mode = Literal["captured", "vectorised", "enumerated", "sequential"]

# Points on which a faster path must agree with the ordinary handlers before it is used.
CHECK_POINTS = 3
# Bytes of a tensor whose memory is kept for the next one, with room to spare.
LARGE = 2**22
# Rows of z of which a regression makes no table, as it does of fewer; see contractions.
SEVERAL = 2 * contractions.TIMES
# By so many units in its last place a sum of many terms may move.
USUAL = 64.0


class LogJoint:
    """The log joint density of a model's latents, on the guide's unconstrained vector.

    Equal to what ``Trace_ELBO`` scores (``TraceEnum_ELBO`` where discrete sites are enumerated):
    log p(data, values) plus log|d values / d z|. Computed for a batch of particles at once, also
    for models without particle plates, in the fastest of four ways that agrees with the ordinary
    handlers on a few points:

    * ``captured``: recorded once as a graph of tensor operations, gradient included;
    * ``vectorised``: the handlers under ``torch.vmap``;
    * ``enumerated``: the handlers under a particle plate, where a model has discrete sites to be
      summed out and vmap refuses it;
    * ``sequential``: the handlers, one particle after the other.

    Where ``torch.linalg`` finds no factor of a particle's matrix, its log joint is NaN.

    Args:
        model: a Pyro model.
        guide: an ``AutoContinuous`` of it that has been set up; it decides the packing.
        args, kwargs: the model's arguments.
        mode: force a way; ``None`` chooses.
        through: a layer in front: the log joint is then that of its input, its log-determinant
            included. Call :meth:`forget` after changing it.

    Attributes:
        mode: the way in use.
        why: why no faster way is, "" if none is faster.
        stochastic: the model draws random numbers of its own (a subsampled plate, dropout), so
            two calls differ.
        parameters: trainable parameters inside the model, by name (leaf tensors).

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0))
        >>> log_joint = LogJoint(model, AutoFlow(model).setup())
        >>> log_joint(torch.zeros(2, 1)), log_joint.mode
        (tensor([-0.9189, -0.9189]), 'captured')
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: AutoContinuous,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        mode: Mode | None = None,
        through: Layer | None = None,
    ) -> None:
        self.model, self.guide, self.through = model, guide, through
        self.args, self.kwargs = args, dict(kwargs or {})
        # The guide's copy of the model starts latents itself: a flat prior can't be sampled.
        with structure.random_state_kept():
            trace = self.run_model()
        self.parameters = _parameters(trace)
        self._nesting = max_plate_nesting(trace)
        self._discrete = any(
            site["type"] == "sample" and structure.is_enumerated(site)
            for site in trace.nodes.values()
        )
        self._graphs: dict[tuple[int, bool], Captured] = {}
        self._row_bytes = math.inf
        self.why, self._writes = "", False
        self.stochastic = self._is_stochastic()
        if mode in ("captured", "vectorised"):
            self._accept(mode)  # which finds out whether the model writes in place
        self.mode: Mode = mode or self._choose()

    def run_model(self) -> Any:
        """Trace the model once, latents at the guide's start."""
        return structure.trace_model(self.guide.model, *self.args, **self.kwargs)

    # Values.

    def __call__(self, z: Tensor) -> Tensor:
        """Log joint of each row of ``z``, shape ``(P, D) -> (P,)``, differentiable."""
        if self.mode == "captured" and not z.requires_grad:
            done = [self._graph(part, with_grad=False)(part) for part in self._parts(z)]
            return done[0] if len(done) == 1 else torch.cat(done)
        return self._eager(z, "vectorised" if self.mode == "captured" else self.mode)

    def value_and_grad(self, z: Tensor, *, accumulate: bool = False) -> tuple[Tensor, Tensor]:
        """Log joint and its gradient in ``z``, shapes ``(P,)`` and ``(P, D)``, both detached.

        With ``accumulate`` the gradients of the model's own parameters (of the mean over finite
        particles) are added to their ``.grad``, negated, as for a loss.
        """
        if self.mode == "captured":
            parts = self._parts(z.detach())
            done = [self._graph(part, with_grad=True)(part) for part in parts]
            if len(done) == 1:
                return cast("tuple[Tensor, Tensor]", done[0])
            values, grads = zip(*done, strict=True)
            return torch.cat(values), torch.cat(grads)
        z = z.detach().requires_grad_()
        with torch.enable_grad():
            value = self(z)
            leaves = [p for p in self.parameters.values() if accumulate and p.requires_grad]
            if not value.requires_grad:  # flat wherever it is positive
                return value, torch.zeros_like(z)
            finite = torch.isfinite(value)
            total = torch.where(finite, value, torch.zeros_like(value)).sum()
            grads = torch.autograd.grad(total, [z, *leaves], allow_unused=True)
            if leaves and 0 < int(finite.sum()) < len(z):
                # Backward, a NaN is one to all that particles share, whatever it is multiplied by.
                sound = self(z.detach()[finite]).sum()
                grads = grads[0], *torch.autograd.grad(sound, leaves, allow_unused=True)
        # Each particle's gradient is its own, so that of the sum holds all of them.
        count = finite.sum().clamp_min(1)
        for leaf, grad in zip(leaves, grads[1:], strict=True):
            if grad is not None:
                leaf.grad = -grad / count if leaf.grad is None else leaf.grad - grad / count
        grad_z = grads[0] if grads[0] is not None else torch.zeros_like(z)
        return value.detach(), grad_z

    def value_grad_hessian(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log joint, gradient and Hessian of each row, ``(P,)``, ``(P, D)``, ``(P, D, D)``.

        Raises:
            RuntimeError, NotImplementedError: the model can't be differentiated twice this way.
        """

        def one(row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            gradient, value = torch.func.grad_and_value(self._one_of_many)(row)
            return value, gradient, torch.func.jacrev(torch.func.grad(self._one_of_many))(row)

        if self._discrete:
            return self._differences(z)
        with _quiet(), torch.enable_grad():
            if self.mode in ("captured", "vectorised"):
                at_once = torch.vmap(one, randomness="same")
                value, gradient, hessian = without_linalg_errors(at_once, z)
            else:
                rows = [without_linalg_errors(one, row) for row in z]
                value, gradient, hessian = (torch.stack(part) for part in zip(*rows, strict=True))
        # Some operations (torch.logaddexp, far from the middle) have a gradient and no Hessian.
        lost = torch.isfinite(gradient).all(-1) & ~torch.isfinite(hessian).flatten(1).all(-1)
        if bool(lost.any()):
            hessian = hessian.clone()
            hessian[lost] = self._differences(z[lost])[2]
        return value, gradient, hessian

    def _differences(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same with the Hessian from central differences of the gradient."""
        dim = z.shape[-1]
        step = 1e-4 if z.dtype == torch.float64 else 1e-2
        value, gradient = self.value_and_grad(z)
        shifts = step * torch.eye(dim, device="cpu").to(z)
        points = torch.cat([z[:, None] + shifts, z[:, None] - shifts], 1)
        _, around = self.value_and_grad(points.reshape(-1, dim))
        up, down = around.reshape(len(z), 2, dim, dim).unbind(1)
        hessian = (up - down) / (2 * step)
        return value, gradient, 0.5 * (hessian + hessian.mT)

    def in_chunks(self, z: Tensor) -> Tensor:
        """Log joint of many rows, a chunk at a time, without gradients."""
        # The last chunk is filled up: a captured graph is made for one number of particles.
        chunk = 256 if self.mode == "captured" or len(z) <= 1024 else 1024
        with torch.no_grad():
            padded = torch.cat([z, z[:1].expand(-len(z) % chunk, -1)])
            return torch.cat([self(part) for part in padded.split(chunk)])[: len(z)]

    @torch.no_grad()
    def least(self, z: Tensor, value: Tensor) -> Tensor:
        """What the log joint of each row is at the least, for all that rounding tells, ``(P,)``.

        A search for high values would find peaks that only rounding makes. -inf where ``through``
        doesn't bring a row back: a scale is so small beside its location that location + scale * z
        is the location to the last digit. Less than ``value`` where the log joint moves by more
        than those of its size do when ``z`` is multiplied by 1 + eps: in float32 the ``lgamma`` of
        a concentration of 1e6 is known to one nat.

        Args:
            z: shape ``(P, D)``.
            value: the log joint there, ``(P,)``.

        Cost: evaluates the log joint once more.
        """
        told = torch.isfinite(value)
        if self.through is not None:
            error = (self.through.inv(self.through(z)) - z).abs()
            back = (error <= 0.25 * (1 + z.abs())).all(-1)
            value = torch.where(back, value, -math.inf)
            told = told & back
        if self.stochastic or not bool(told.any()):
            return value
        eps = torch.finfo(z.dtype).eps
        moved = (self.in_chunks(z[told] * (1 + eps)) - value[told]).abs()
        usual = torch.clamp(USUAL * eps * value[told].abs(), min=0.25)
        least = value.clone()
        least[told] -= torch.where(moved > usual, 4 * moved, 0.0)
        return least

    def resolved(self, z: Tensor, value: Tensor) -> Tensor:
        """Whether it is the log joint, and not rounding, that says ``value``, ``(P,)``.

        Arguments and cost as of :meth:`least`. NaN is not resolved.
        """
        return self.least(z, value) >= value

    def blame(self, z: Tensor) -> str:
        """A sentence naming the sites whose log density isn't finite at the point ``z``."""
        values = {name: value for name, _, value, _ in constrain(self.guide, self._pass(z)[0])}
        with _quiet(), torch.no_grad(), poutine.block(), Substitute(values):
            trace = poutine.trace(self.model).get_trace(*self.args, **self.kwargs)
            trace.compute_log_prob()
        bad = [
            f"'{name}' ({float(site['log_prob_sum']):g})"
            for name, site in trace.nodes.items()
            if site["type"] == "sample" and not torch.isfinite(site["log_prob_sum"])
        ]
        return f"Not finite there: {', '.join(bad)}." if bad else ""

    def forget(self) -> None:
        """Drop recorded graphs, which hold ``through`` as it was."""
        self._graphs.clear()

    def _eager(self, z: Tensor, mode: Mode) -> Tensor:
        with _quiet():
            if mode == "vectorised":
                at_once = torch.vmap(self._one_of_many, randomness="same")
                return without_linalg_errors(at_once, z)
            if mode == "enumerated":
                x, ladj = self._pass(z)
                return ladj + without_linalg_errors(self._enumerated, x)
            return torch.stack([without_linalg_errors(self._one, row) for row in z])

    def _all(self, z: Tensor) -> Tensor:
        """What is recorded: all rows at once, NaN where one has no factor."""
        with NaNFactors():
            return torch.vmap(self._one_of_many, randomness="same")(z)

    def _pass(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if self.through is None:
            return z, z.new_zeros(z.shape[:-1])
        return self.through.forward_and_ladj(z)

    def _one_of_many(self, z: Tensor) -> Tensor:
        """:meth:`_one`, for vmap."""
        with products_in_pyro(), Blanks(z) if self._writes else contextlib.nullcontext():
            return self._one(z)

    def _one(self, z: Tensor) -> Tensor:
        """Log joint of one vector ``(D,)``."""
        x, ladj = self._pass(z)
        if not self._discrete:
            return self._single(x) + ladj
        return self._enumerated(x) + ladj

    def _enumerated(self, x: Tensor) -> Tensor:
        return enumerated_log_prob(
            self.model, self.guide, x, self.args, self.kwargs, self._nesting
        )

    def _single(self, z: Tensor) -> Tensor:
        values, total = {}, z.new_zeros(())
        for name, _, value, ladj in constrain(self.guide, z):
            values[name] = value
            total = total + ladj.sum()
        with poutine.block(), Substitute(values):
            trace = poutine.trace(self.model).get_trace(*self.args, **self.kwargs)
        return total + trace.log_prob_sum()

    def _parts(self, z: Tensor) -> tuple[Tensor, ...]:
        """Rows that are computed together: as many as make no tensor too large for reuse.

        On a CPU the memory of larger ones goes back to the system with each operation, and comes
        again page by page, which takes longer than the arithmetic.
        """
        known = math.isfinite(self._row_bytes)
        if not (known and len(z)) or self.stochastic or z.device.type != "cpu" or is_recording():
            return (z,)
        if len(z) * self._row_bytes > LARGE and len(z) >= SEVERAL:
            self._graph(z[:SEVERAL], with_grad=False)
        least = len(z) * self._row_bytes / LARGE
        count = next((k for k in range(1, len(z)) if k >= least and len(z) % k == 0), len(z))
        return z.chunk(count)  # equal ones, since each size has a graph of its own

    def _graph(self, z: Tensor, *, with_grad: bool) -> Captured:
        key = (len(z), with_grad)
        if key not in self._graphs:
            with _quiet(), structure.random_state_kept():
                # Another state than that of the check, which would miss a choice frozen by chance.
                torch.manual_seed(20_114)
                self._graphs[key] = capture(self._all, z.detach(), with_grad=with_grad)
            if len(z):
                self._row_bytes = min(self._row_bytes, self._graphs[key].largest / len(z))
        return self._graphs[key]

    # Choosing, by agreement with the ordinary handlers under the same random state.

    def _probe(self) -> Tensor:
        """A few fresh points near the guide's start."""
        affine = getattr(self.guide, "affine", None)
        start = (self.guide._init_loc() if affine is None else affine.loc).detach()
        generator = torch.Generator(device="cpu").manual_seed(0)
        noise = torch.randn(
            CHECK_POINTS, len(start), generator=generator, dtype=torch.float64, device="cpu"
        )
        return start + 0.1 * noise.to(start)

    def _is_stochastic(self) -> bool:
        z = self._probe()[:1]
        with torch.no_grad(), structure.random_state_kept():
            mode: Mode = "sequential"
            torch.manual_seed(1)
            try:
                first = self._eager(z, mode)
            except (RuntimeError, IndexError, ValueError) as error:
                if not self._discrete:
                    raise
                raise ModelError(
                    "The model's enumerated discrete sites expected indexing that broadcasts, but "
                    f"got {type(error).__name__}: {_first_line(error)} Index by a "
                    "discrete site with pyro.ops.indexing: Vindex(locs)[..., assignment]."
                ) from error
            torch.manual_seed(2)
            second = self._eager(z, mode)
        return bool((first != second).any()) and not bool(torch.isnan(first + second).any())

    def _choose(self) -> Mode:
        if self.parameters:
            self.why = "the model has trainable parameters of its own"
        elif self._accept("captured"):
            return "captured"
        if self._accept("vectorised"):
            return "vectorised"
        return (self._accept("enumerated") if self._discrete else None) or "sequential"

    def _accept(self, mode: Mode) -> Mode | None:
        """``mode`` if it agrees with the handlers, else None with the reason in ``why``."""
        z = self._probe()
        try:
            with torch.no_grad(), structure.random_state_kept():
                torch.manual_seed(3)
                # One particle, then the next: the random state is set back for each, since a
                # vectorised run draws the model's random numbers once for all.
                expected = torch.cat([self._seeded(row[None], "sequential") for row in z])
                if mode == "captured":
                    torch.manual_seed(3)
                    got, _ = self._graph(z, with_grad=True)(z)
                else:
                    got = self._seeded(z, mode)
        except Exception as error:  # noqa: BLE001 (any failure to vectorise means: go slower)
            if mode != "enumerated" and not self._writes and writes_in_place(error):
                self._writes = True
                accepted = self._accept(mode)
                self._writes = accepted is not None
                return accepted
            self.why = f"{mode}: {type(error).__name__}: {_first_line(error)}"
            return None
        tolerance = 1e-4 if z.dtype == torch.float32 else 1e-8
        scale = expected.abs().clamp_min(1.0)
        agree = torch.isclose(got, expected, rtol=0, atol=0, equal_nan=True) | (
            (got - expected).abs() <= tolerance * scale
        )
        if not bool(agree.all()):
            self.why = f"{mode}: disagrees with the ordinary handlers"
            return None
        return mode

    def _seeded(self, z: Tensor, mode: Mode) -> Tensor:
        torch.manual_seed(3)
        return self._eager(z, mode)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["(it says no more)"])[0][:200]


def _parameters(trace: poutine.Trace) -> dict[str, Tensor]:
    """Trainable leaf tensors behind a trace's param sites."""
    found = {}
    for name, site in trace.nodes.items():
        if site["type"] != "param":
            continue
        value: Any = site["value"]
        leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
        if leaf is not None and leaf.is_leaf and leaf.requires_grad:
            found[name] = leaf
    return found


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No argument validation inside: it reads values, which vmap and tracing forbid."""
    with pyro.validation_enabled(False):
        yield
