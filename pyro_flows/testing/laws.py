# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The list of laws, the closed list of exemptions, and the check that holds a layer to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from pyro_flows.testing import contract, density, exactness, gradients, state
from pyro_flows.testing.case import Case, Make
from pyro_flows.transforms import Permute, Squeeze, TailTransform

#: Every law by name. A law raises AssertionError with a sentence, or returns None where it holds,
#: or a string that says why it does not apply in this setting.
LAWS: dict[str, Callable[[Case], str | None]] = {
    "round_trip": exactness.round_trip,
    "log_det": exactness.log_det,
    "float32": exactness.float32,
    "reaches_far": exactness.reaches_far,
    "finite": exactness.finite,
    "knows_its_space": exactness.knows_its_space,
    "integrates_to_one": density.integrates_to_one,
    "samples_follow_density": density.samples_follow_density,
    "scores_its_samples": density.scores_its_samples,
    "parameters_get_gradients": gradients.parameters_get_gradients,
    "gradients_are_right": gradients.gradients_are_right,
    "second_derivatives_are_right": gradients.second_derivatives_are_right,
    "pushes_scores": gradients.pushes_scores,
    "weighted_gradients": gradients.weighted_gradients,
    "ignores_batch_mates": gradients.ignores_batch_mates,
    "shapes_broadcast": gradients.shapes_broadcast,
    "never_stale": state.never_stale,
    "copies_are_faithful": state.copies_are_faithful,
    "works_under_vmap": state.works_under_vmap,
    "compiles": state.compiles,
    "no_implicit_device": state.no_implicit_device,
    "starts_at_identity": contract.starts_at_identity,
    "inverse_is_a_module": contract.inverse_is_a_module,
    "constraints_are_right": contract.constraints_are_right,
    "errors_are_sentences": contract.errors_are_sentences,
}

#: law -> class of layer or univariate -> reason. A layer is exempt if it is, or contains, one.
#: (A layer without parameters has none to give gradients to; those laws say so themselves.)
EXEMPTIONS: dict[str, dict[type, str]] = {
    "starts_at_identity": {
        Permute: "a permutation is what it is from the start",
        Squeeze: "a fixed order of pixels is what it is from the start",
        TailTransform: "its lightest tails are exponential: the identity is not in the family",
    },
}


def check_layer(
    make: Make,
    *,
    dim: int,
    context_dim: int = 0,
    batch_shape: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    perturb: float = 0.5,
    laws: Iterable[str] | None = None,
) -> dict[str, str]:
    """Hold a layer to the laws, in one setting.

    Args:
        make: ``(dim, context_dim) -> Layer``; called several times.
        dim: size of the event.
        context_dim: size of the context, 0 for a plain layer.
        batch_shape: batch shape of values ``(*, *batch_shape, dim)`` and contexts
            ``(*batch_shape, context_dim)``.
        dtype: float64 or float32.
        seed: of parameters and inputs. The global random state is not changed.
        perturb: parameters are moved by this times normal noise, so that not only the start,
            where most layers are the identity, is tested.
        laws: names from :data:`LAWS`; all by default.

    Returns:
        The laws that do not apply to this layer or setting, each with the reason; all others
        were tried, and hold.

    Raises:
        AssertionError: a law is broken; the message starts with its name and gives the figures.
        KeyError: no law has that name.

    Example:
        >>> def make(dim, context_dim):
        ...     return transforms.AffineCoupling(dim, context_dim=context_dim)
        >>> testing.check_layer(make, dim=3, context_dim=2, laws=["round_trip", "log_det"])
        {}
    """
    case = Case(make, dim, context_dim, tuple(batch_shape), dtype, seed, perturb)
    modules = list(case.fresh().modules())
    kinds = {type(part) for m in modules for part in (m, getattr(m, "univariate", None))}
    left_out = {}
    for name in LAWS if laws is None else laws:
        law = LAWS[name]
        exempt = (r for kind, r in EXEMPTIONS.get(name, {}).items() if kind in kinds)
        reason = next(exempt, None)
        if reason is None:
            with torch.random.fork_rng(devices=[]):
                try:
                    reason = law(case)
                except AssertionError as error:
                    raise AssertionError(f"{name}: {error}") from error
        if reason is not None:
            left_out[name] = reason
    return left_out
