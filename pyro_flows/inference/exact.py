# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What the exact refinements of a posterior share: their arguments, result and warnings."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray
from pyro import poutine

from pyro_flows.diagnostics import Convergence, Remark, convergence
from pyro_flows.diagnostics.anchors import more
from pyro_flows.errors import GuideError, OptionError
from pyro_flows.inference.export import Group, Wanted, export, with_chains
from pyro_flows.inference.posterior import Posterior
from pyro_flows.inference.randomness import seeded

# Added to the posterior's seed where none is given: numbers that no draw of its pool was made by.
OTHER_NUMBERS = 2_000_003
# Convergence can't be told of fewer draws.
FEWEST_DRAWS = 4


def check(name: str, posterior: Posterior, seed: int | None, **counts: int) -> int:
    """Raise for arguments that a refinement can't use.

    Args:
        name: of the public function.
        posterior: what it was given.
        seed: what it was given.
        counts: numbers that must be at least 1, ``num_samples`` at least 4.

    Returns:
        The seed, or one that follows from the posterior's.

    Raises:
        GuideError: no posterior, or one whose log joint is random.
        OptionError: a number that makes no sense.
    """
    if not isinstance(posterior, Posterior):
        raise GuideError(
            f"{name} expected a Posterior, but got {type(posterior).__name__}. Fit one by "
            "FlowVI(model).run(...), or judge a guide of your own by assess(model, guide, ...)."
        )
    for option, value in counts.items():
        least = FEWEST_DRAWS if option == "num_samples" else int(option != "warmup_steps")
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise OptionError(
                f"{name} expected {option} >= {least}, but got {value!r}. Leave it out for the "
                "default."
            )
    if seed is not None and (not isinstance(seed, int) or seed < 0):
        raise OptionError(
            f"{name} expected seed to be an integer >= 0, but got {seed!r}. Leave it out for the "
            "default."
        )
    if posterior.log_joint.stochastic:
        raise GuideError(
            f"{name} expected a model whose log joint is a function of its latents, but this one "
            "is random (a subsampled plate, or random numbers of the model's own). Make the "
            "subsample size an argument of the model, and fit with all data."
        )
    return posterior.seed + OTHER_NUMBERS if seed is None else seed


@contextmanager
def under(posterior: Posterior, seed: int) -> Iterator[None]:
    """The model's parameters as at the end of the fit, random numbers from a seed, no handlers."""
    with seeded(seed), posterior.under_model_state(), poutine.block():
        yield


def chains_to_arviz(
    posterior: Posterior,
    z: NDArray[Any],
    stats: Group,
    attrs: Mapping[str, Any],
    remarks: list[Remark],
    *,
    seed: int,
    begun: float,
) -> Any:
    """Chains as ArviZ knows them, with R-hat and ESS in the attributes and warnings given.

    Args:
        posterior: the fit that was refined.
        z: draws ``(chains, draws, D)``, unconstrained.
        stats: of each draw, ``(chains, draws)``.
        attrs: further attributes.
        remarks: what the method itself has to say.
        seed: of draws of new data.
        begun: when the call began, by ``time.perf_counter()``.
    """
    rows = z.reshape(-1, z.shape[-1])
    latent = with_chains(posterior._constrained(rows), len(z))
    found = convergence(latent)
    attrs = {
        **attrs,
        "rhat_max": found.rhat_max,
        "ess_bulk_min": found.ess_bulk_min,
        "ess_tail_min": found.ess_tail_min,
    }
    return to_arviz(
        posterior,
        rows,
        stats,
        attrs,
        remarks + _disagreement(found),
        chains=len(z),
        seed=seed,
        begun=begun,
        stacklevel=4,
    )


def to_arviz(
    posterior: Posterior,
    z: NDArray[Any],
    stats: Group,
    attrs: Mapping[str, Any],
    remarks: list[Remark],
    *,
    chains: int,
    seed: int,
    begun: float,
    stacklevel: int = 3,
) -> Any:
    """The same without R-hat and ESS; z is ``(chains * draws, D)``."""
    seconds = time.perf_counter() - begun
    sentences = [_sentence(remark) for remark in remarks]
    with under(posterior, seed):
        data = export(
            posterior.log_joint.model,
            posterior.args,
            posterior.kwargs,
            posterior._constrained(z),
            Wanted(prior=0),
            chains=chains,
            stats=stats,
            extra={"unconstrained_posterior": with_chains(posterior._unconstrained(z), chains)},
            attrs={
                **attrs,
                "gradients_training": int(posterior.cost["gradients"]),
                "seconds": seconds,
                "seconds_training": float(posterior.cost["seconds"]),
                "seed": seed,
                "guide": type(posterior.guide).__name__,
                "verdict_of_the_fit": posterior.verdict.status,
                "warnings": json.dumps(sentences),
            },
        )
    for sentence in sentences:
        warnings.warn(sentence, stacklevel=stacklevel)
    return data


def _sentence(remark: Remark) -> str:
    return f"{remark.reason} Try: {remark.advice} {more(remark.anchor)}"


def _disagreement(found: Convergence) -> list[Remark]:
    if not found.agree:
        reason = (
            f"The chains disagree: R-hat of '{found.rhat_where}' is {found.rhat_max:.3f} (it "
            "should be 1.01 or less), so they haven't all seen the whole posterior."
        )
        return [
            Remark(
                reason,
                "run longer (num_samples); train the fit longer; or look for "
                "modes that chains don't leave.",
                "chains-disagree",
            )
        ]
    if not found.enough:
        reason = (
            f"Few effective draws: of '{found.ess_bulk_where}' {found.ess_bulk_min:.0f}, in the "
            f"tails {found.ess_tail_min:.0f} at the least; R-hat and intervals aren't to be "
            f"trusted below 100 for each chain."
        )
        return [Remark(reason, "run longer (num_samples).", "few-effective-draws")]
    return []


def no_finite_start(name: str) -> GuideError:
    """The error where no draw of the guide has a finite density."""
    return GuideError(
        f"{name} expected a guide that draws inside the posterior's support, but none of its "
        "draws has a finite density. Look at the verdict: print(posterior)."
    )
