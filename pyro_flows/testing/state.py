# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Laws of state: nothing stale is answered, copies are faithful, compilers are welcome."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import pyro.optim.clipped_adam
import torch
from torch import Tensor, nn

from pyro_flows.testing.case import Case, Pair, directions, double, in_double
from pyro_flows.testing.gradients import NO_PARAMETERS
from pyro_flows.transforms import Layer


def never_stale(case: Case) -> str | None:
    """Change parameters or data, and the answer for the very same tensor changes with them."""
    layer, context, x = case.layer(), case.context(), case.values(4)
    parameters = [p for p in layer.parameters() if p.numel()]
    before = _everything(case, layer, x, context)
    if parameters:
        other = case.layer(seed=1).state_dict()
        for what, change in _changes(layer, x, context, other).items():
            change()
            before = _current(case, layer, x, context, before, f"after {what}")
    x.mul_(0.5).add_(0.25)
    _current(case, layer, x, context, before, "after an in-place change of the data")
    wide = in_double(layer)
    wide_answer = _everything(case, wide, x.double(), double(context))
    layer.double()
    now = _everything(case, layer, x.double(), double(context))
    for got, expected in zip(now, wide_answer, strict=True):
        case.require_close(got, expected, 0.0, "after .double(), the answer", "that of a copy")
    return None if parameters else f"{NO_PARAMETERS}; changes of the data are tested"


def copies_are_faithful(case: Case) -> None:
    """After use, deepcopy, pickle and a state dict loaded into a new layer give the same map.

    So does a new layer whose parameters ``torch.func.functional_call`` replaces by plain tensors.
    """
    layer, context, x = case.layer(), case.context(), case.values(4)
    before = _everything(case, layer, x, context)
    y = case.values(4, into="inverse").requires_grad_()
    case.distribution(layer, context).log_prob(y).sum().backward()
    fresh = case.fresh()
    fresh.load_state_dict(_through_file(layer.state_dict()))
    for what, new in (
        ("deepcopy", copy.deepcopy(layer)),
        ("pickle", pickle.loads(pickle.dumps(layer))),
        ("state_dict onto a new layer", fresh),
    ):
        for got, expected in zip(_everything(case, new, x, context), before, strict=True):
            case.require_close(got, expected, 0.0, f"the answer of the {what}", "the original's")
        shared = {p.data_ptr() for p in layer.parameters() if p.numel()}
        case.require(
            not any(p.data_ptr() in shared for p in new.parameters() if p.numel()),
            f"The {what} should have its own parameters, but shares the original's.",
        )
    _require_replaceable(case, layer)


class _BothWays(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, y: Tensor, context: Tensor | None) -> tuple[Tensor, ...]:
        return (
            *self.layer.forward_and_ladj(x, context),
            *self.layer.inverse_and_ladj(y, context),
        )


def _require_replaceable(case: Case, layer: Layer) -> None:
    args = case.values(4), case.values(4, into="inverse"), case.context()
    named = [*layer.named_parameters(), *layer.named_buffers()]
    tensors = {f"layer.{name}": t.detach().clone() for name, t in named}
    replaced = torch.func.functional_call(_BothWays(case.fresh()), tensors, args)
    for got, expected in zip(replaced, _BothWays(layer)(*args), strict=True):
        case.require_close(
            got, expected, 1e5 * case.eps, "by functional_call the answer", "the original's"
        )


def works_under_vmap(case: Case) -> None:
    """``torch.func.vmap`` over values, also of gradients, gives what a batch gives."""
    layer, context = case.layer(), case.one_context()
    for name, pair in directions(layer, context).items():
        x = case.values(3, into=name).reshape(-1, case.dim)
        for got, expected in zip(torch.func.vmap(pair)(x), pair(x), strict=True):
            case.require_close(got, expected, 1e5 * case.eps, f"the {name} by vmap", "the batch's")
        score = partial(_total, pair)
        by_vmap = torch.func.vmap(torch.func.grad(score))(x)
        leaf = x.clone().requires_grad_()
        by_batch = torch.autograd.grad(score(leaf), leaf)[0]
        case.require_close(
            by_vmap, by_batch, 1e6 * case.eps, f"the {name}'s gradient by vmap", "the batch's"
        )


def compiles(case: Case) -> None:
    """``torch.compile(fullgraph=True)`` gives what eager gives, also after a parameter change."""
    layer, context = case.layer(), case.context()
    x, image = case.values(2), case.values(2, into="inverse")

    def both(v: Tensor, w: Tensor, c: Tensor | None) -> tuple[Tensor, ...]:
        return (*layer.forward_and_ladj(v, c), *layer.inverse_and_ladj(w, c))

    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for when in ("", " after a change of parameters"):
        for got, expected in zip(
            compiled(x, image, context), both(x, image, context), strict=True
        ):
            case.require_close(
                got, expected, 1e5 * case.eps, f"the compiled answer{when}", "eager's"
            )
        layer.load_state_dict(case.layer(seed=1).state_dict())


def no_implicit_device(case: Case) -> None:
    """Built on the CPU and called on CPU values, the default device doesn't matter.

    The calls run under ``torch.set_default_device("meta")``: any constant made without the
    input's device gives itself away. A layer built under it has all its tensors there.
    """
    layer, context, x = case.layer(), case.context(), case.values(2)
    before = _everything(case, layer, x, context, pyro_too=False)
    with _default_device("meta"):
        now = _everything(case, layer, x, context, pyro_too=False)
    for got, expected in zip(now, before, strict=True):
        case.require(
            got.device == expected.device,
            f"Under another default device the answer should stay on {expected.device}, "
            f"but is on {got.device}.",
        )
        case.require_close(got, expected, 0.0, "under another default device, the answer", "it")
    with _default_device("meta"):
        made = case.make(case.dim, case.context_dim)
    elsewhere = [n for n, t in made.state_dict().items() if t.device.type != "meta"]
    case.require(
        not elsewhere,
        f"Built under another default device, all tensors should be there, but not {elsewhere}.",
    )


def _total(pair: Pair, x: Tensor) -> Tensor:
    y, ladj = pair(x)
    return y.sum() + ladj.sum()


def _everything(
    case: Case, layer: Layer, x: Tensor, context: Tensor | None, *, pyro_too: bool = True
) -> list[Tensor]:
    """All that a layer answers about ``x``, under no_grad as scoring does."""
    # The very same tensor goes both ways, where both ways take it: what Pyro's caches mix up.
    y = x if case.same_space() else layer.forward_and_ladj(x, context)[0].detach()
    with torch.no_grad():
        answers = [
            *layer.forward_and_ladj(x, context),
            *layer.inverse_and_ladj(y, context),
        ]
        conditioned = layer.condition(context)
        answers += [conditioned(x), conditioned.inv(y)]
        answers.append(conditioned.log_abs_det_jacobian(x, answers[0]))
        if pyro_too and x.dtype == case.dtype:
            answers.append(case.distribution(layer, context).log_prob(y))
    return [a.clone() for a in answers]


def _changes(
    layer: Layer, x: Tensor, context: Tensor | None, other: dict[str, Tensor]
) -> dict[str, Callable[[], object]]:
    parameters = [p for p in layer.parameters() if p.numel()]

    def step(make: Callable[..., torch.optim.Optimizer]) -> Callable[[], None]:
        def run() -> None:
            optimiser = make(parameters, lr=0.05)
            optimiser.zero_grad()
            y, ladj = layer.forward_and_ladj(x, context)
            (ladj.mean() + y.tanh().mean()).backward()
            optimiser.step()

        return run

    def in_place() -> None:
        for p in parameters:
            p.data.mul_(0.9).add_(0.05)

    def fused(params: list[torch.nn.Parameter], lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=lr, fused=True)

    return {
        "a step of SGD": step(torch.optim.SGD),
        "a step of Pyro's ClippedAdam": step(pyro.optim.clipped_adam.ClippedAdam),
        "a step of fused Adam": step(fused),
        "load_state_dict": lambda: layer.load_state_dict(other),
        "a change of .data": in_place,
    }


def _current(
    case: Case, layer: Layer, x: Tensor, context: Tensor | None, before: list[Tensor], when: str
) -> list[Tensor]:
    """What a layer answers now, which must be what a new layer of its state does."""
    now = _everything(case, layer, x, context)
    fresh = case.fresh()
    fresh.load_state_dict(layer.state_dict())
    expected = _everything(case, fresh, x.clone(), context)
    for got, want in zip(now, expected, strict=True):
        case.require_close(got, want, 0.0, f"{when}, the answer", "that of a new layer")
    changed = any(not torch.equal(a, b) for a, b in zip(now, before, strict=True))
    case.require(changed, f"The answer should change {when}, but is the same in every digit.")
    return now


def _through_file(state: dict[str, Tensor]) -> dict[str, Tensor]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Tensor] = torch.load(file, weights_only=True)
    return loaded


@contextmanager
def _default_device(name: str) -> Iterator[None]:
    before = torch.get_default_device()
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None if before.type == "cpu" else before)
