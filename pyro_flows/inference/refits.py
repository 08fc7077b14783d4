# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Several fits of one model from starts far apart, which can show that something is wrong."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pyro.infer.autoguide.initialization import init_to_value
from torch import Tensor

from pyro_flows.diagnostics.anchors import more
from pyro_flows.diagnostics.chains import LARGEST_RHAT, Convergence, convergence
from pyro_flows.errors import GuideError
from pyro_flows.guides import constrain
from pyro_flows.inference.export import Wanted, export, with_chains
from pyro_flows.inference.flow_vi import FlowVI
from pyro_flows.inference.posterior import Posterior
from pyro_flows.inference.randomness import seeded

# Standard deviations of the first fit that the others start away from it, in each coordinate.
SPREAD = 5.0
# Disagreement that matters: nats of the ELBO, beyond two standard errors; standard deviations.
LARGEST_DIFFERENCE, LARGEST_SHIFT = 0.05, 0.2
NO_PROOF = "Agreement proves nothing: fits of one family make the same errors."


class Refits:
    """Several fits of one model, side by side.

    Attributes:
        posteriors: the fits.

    Example:
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> y = torch.tensor([1.0, 2.0, 3.0])
        >>> fits = Refits([FlowVI(model, seed=s, progress=False).run(y) for s in (0, 1)])
        >>> list(fits.summary().columns)
        ['seed', 'verdict', 'elbo', 'elbo_se', 'elbo_diff', 'shift', 'where', 'gradients']
    """

    def __init__(self, posteriors: Sequence[Posterior]) -> None:
        if len(posteriors) < 2:
            raise GuideError(
                f"Refits expected two fits or more, but got {len(posteriors)}. One fit has "
                "nothing to be compared with."
            )
        self.posteriors = list(posteriors)
        shapes = [
            {name: tuple(value.shape[1:]) for name, value in p.draws(1).items()}
            for p in self.posteriors
        ]
        if any(found != shapes[0] for found in shapes):
            raise GuideError(
                f"Refits expected fits of one model and data, but got the sites {shapes}. Compare "
                "models by pyro_flows.compare."
            )

    def __len__(self) -> int:
        return len(self.posteriors)

    def summary(self, draws: int = 1000) -> Any:
        """What each fit came to, and how far it is from the others.

        Args:
            draws: of each fit, as it hands them over.

        Returns:
            A pandas DataFrame, one row a fit: "seed", "verdict", "elbo" and its standard error,
            "elbo_diff" to the best (nats), "shift", the largest of a mean from that of all fits
            together (in their standard deviation), "where" that is, "gradients".
        """
        import pandas as pd

        best = max(p.elbo for p in self.posteriors)
        values = self._draws(draws)
        rows = []
        for i, p in enumerate(self.posteriors):
            shift, where = _largest_shift(values, i)
            diff, gradients = p.elbo - best, int(p.cost["gradients"])
            verdict = p.verdict.status
            rows.append([p.seed, verdict, p.elbo, p.elbo_se, diff, shift, where, gradients])
        columns = [
            "seed",
            "verdict",
            "elbo",
            "elbo_se",
            "elbo_diff",
            "shift",
            "where",
            "gradients",
        ]
        return pd.DataFrame(rows, columns=columns)

    def convergence(self, draws: int = 1000) -> Convergence:
        """R-hat over the fits as chains, and effective numbers of draws: the worst elements'.

        Args:
            draws: of each fit.
        """
        return convergence(self._draws(draws))

    @property
    def agree(self) -> bool:
        """Whether nothing shows that the fits differ; no reason to trust them."""
        table = self.summary()
        best = table["elbo_se"][table["elbo_diff"].idxmax()]
        se = np.hypot(table["elbo_se"], best)  # of a difference
        apart = table["elbo_diff"].abs() - 2 * se > LARGEST_DIFFERENCE
        near = self.convergence().rhat_max <= LARGEST_RHAT
        return bool(near and not apart.any() and (table["shift"] <= LARGEST_SHIFT).all())

    def to_arviz(
        self,
        draws: int = 1000,
        *,
        predictive: bool = True,
        prior: int = 500,
        predictions: tuple[Any, ...] | Mapping[str, Any] | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
        dims: Mapping[str, Sequence[str | None]] | None = None,
    ) -> Any:
        """All fits for ArviZ, a chain for each, so that its R-hat can show disagreement.

        Never agreement: see :class:`Refits`. Groups, names and arguments as of
        :meth:`Posterior.to_arviz`; the curves are in groups ``training_0``, ``training_1``, ...

        Args:
            draws: of each fit, as it hands them over.
            predictive: also draw new data for every observed site.
            prior: number of draws from the prior; 0 for none.
            predictions: arguments of the model to predict for: a tuple, or a dict by name.
            coords: labels by dimension; else 0, 1, ...
            dims: names of a site's axes, in place of those found.

        Returns:
            ``arviz.InferenceData`` or ``xarray.DataTree``.
        """
        first, chains = self.posteriors[0], len(self)
        stats: dict[str, list[Any]] = {"log_p": [], "log_q": [], "log_weight": []}
        for p in self.posteriors:
            pool, weights, index = p._delivered(draws, asked="Refits.to_arviz expected draws")
            stats["log_p"].append(pool.log_p[index])
            stats["log_q"].append(pool.log_q[index])
            stats["log_weight"].append(weights.log_weights[index])
        extra = {
            f"training_{i}": {f"history_{k}": v for k, v in p.report.history.items()}
            for i, p in enumerate(self.posteriors)
        }
        found = {name: np.stack(rows) for name, rows in stats.items()}
        every = [p.draws(draws) for p in self.posteriors]
        # The likelihood at parameters of the model (pyro.param) is that of the first fit.
        with seeded(first.seed), first.under_model_state():
            return export(
                first.log_joint.model,
                first.args,
                first.kwargs,
                {name: torch.cat([d[name] for d in every]) for name in every[0]},
                Wanted(predictive, prior, predictions, coords, dims),
                chains=chains,
                stats={**found, "lp": found["log_p"]},
                extra=extra,
                attrs={
                    "verdicts": json.dumps([p.verdict.status for p in self.posteriors]),
                    "elbo": np.array([p.elbo for p in self.posteriors]),
                    "elbo_se": np.array([p.elbo_se for p in self.posteriors]),
                    "seeds": np.array([p.seed for p in self.posteriors]),
                    "remark": NO_PROOF,
                },
                stochastic=first.log_joint.stochastic,
            )

    def _draws(self, n: int) -> dict[str, np.ndarray[Any, Any]]:
        """Draws ``(fits, n, *shape)`` by site."""
        every = [p.draws(n) for p in self.posteriors]
        stacked = {name: torch.cat([d[name] for d in every]) for name in every[0]}
        return with_chains(stacked, len(self))

    def __repr__(self) -> str:
        table, found = self.summary(), self.convergence()
        said = ["The fits agree."]
        if not self.agree:
            said = ["The fits disagree: at least one is wrong.", more("fits-disagree")]
        return "\n".join(
            [
                *said,
                table.to_string(float_format=lambda x: f"{x:.4f}"),
                f"R-hat over fits as chains: at most {found.rhat_max:.3f} ({found.rhat_where}).",
                NO_PROOF,
            ]
        )


def refit(vi: FlowVI, /, *args: Any, fits: int = 4, **kwargs: Any) -> Refits:
    """Fit a model several times, from starts far apart and by different random numbers.

    The first fit is ``vi.run(...)``; the others start some five standard deviations away from it
    in every coordinate. Where they end elsewhere, at least one is wrong: a mode was missed, or
    training stopped too early. Where they agree, nothing is proved.

    Args:
        vi: how to fit; its guides are made anew, so by ``flow=``, not ``guide=``.
        *args: the model's arguments.
        fits: number of fits.
        **kwargs: the model's arguments by name.

    Returns:
        The fits; printed, a table with ELBO differences and mean shifts.

    Raises:
        GuideError: fewer than two fits, or ``vi`` has a guide of its own.

    Cost: that of so many fits.

    Example:
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> found = refit(FlowVI(model, progress=False), torch.tensor([1.0, 2.0, 3.0]), fits=2)
        >>> len(found), found.agree
        (2, True)
    """
    if not isinstance(fits, int) or fits < 2:
        raise GuideError(
            f"refit expected fits >= 2, but got {fits!r}. One fit has nothing to be compared with."
        )
    if vi.guide is not None:
        raise GuideError(
            "refit expected a FlowVI that makes its guides anew, but got one with guide=, which "
            "would start where the fit before ended. Give it flow='name', or fit several guides "
            "yourself and pass the posteriors to Refits([...])."
        )
    first = vi.run(*args, **kwargs)
    found = [first]
    for i in range(1, fits):
        other = copy.copy(vi)
        other.seed = vi.seed + i
        other.init_loc_fn = init_to_value(values=_away(first, other.seed))
        if vi.checkpoint is not None:
            other.checkpoint = f"{os.fspath(vi.checkpoint)}_{other.seed}"
        found.append(other.run(*args, **kwargs))
    return Refits(found)


def _away(posterior: Posterior, seed: int) -> dict[str, Tensor]:
    """Values of the latents far from where a fit says they are."""
    z = posterior.pool.z[np.isfinite(posterior.pool.log_p)]
    z = z if len(z) > 1 else posterior.pool.z
    low, middle, high = np.quantile(z, [0.25, 0.5, 0.75], axis=0)
    noise = np.random.default_rng(seed).normal(size=z.shape[1])
    point = middle + SPREAD * (high - low) / 1.35 * noise
    latent = torch.as_tensor(point, device="cpu").to(next(posterior.guide.parameters()))
    with torch.no_grad():
        return {name: value for name, _, value, _ in constrain(posterior.guide, latent)}


def _largest_shift(values: dict[str, Any], fit: int) -> tuple[float, str]:
    """How far a mean is from that of all fits, in standard deviations, and of which element."""
    worst, where = 0.0, ""
    for name, draws in values.items():
        draws = draws.astype(float)
        mean, sd = draws.mean((0, 1)), draws.std((0, 1))
        with np.errstate(invalid="ignore", divide="ignore"):
            shift = np.atleast_1d(np.abs(draws[fit].mean(0) - mean) / np.where(sd > 0, sd, np.inf))
        at = int(np.argmax(np.nan_to_num(shift, nan=np.inf)))
        if not shift.flat[at] <= worst:
            worst = float(shift.flat[at])
            index = np.unravel_index(at, mean.shape) if mean.shape else ()
            where = f"{name}[{','.join(map(str, index))}]" if index else name
    return worst, where
