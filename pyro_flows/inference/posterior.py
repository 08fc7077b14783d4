# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Posterior: what a fit hands over, and how far it can be trusted."""

from __future__ import annotations

import contextlib
import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro.infer.autoguide.guides import AutoContinuous
from torch import Tensor

from pyro_flows import diagnostics
from pyro_flows.diagnostics import ImportanceWeights, Verdict
from pyro_flows.diagnostics.anchors import more
from pyro_flows.errors import GuideError
from pyro_flows.guides import LogJoint, constrain, named_sites
from pyro_flows.inference.flatness import flat_priors
from pyro_flows.inference.randomness import seeded
from pyro_flows.training import Report

Array = NDArray[np.float64]
# A corrected draw is chosen among at least this many of the guide's.
POOL_PER_DRAW = 10
# The share of draws inside the support below which no more are made for those that lie outside.
LEAST_INSIDE = 0.002


@dataclass(frozen=True)
class Pool:
    """Draws of a guide, unconstrained, with both log densities.

    Attributes:
        z: shape ``(S, D)``.
        log_p: log joint density, ``(S,)``.
        log_q: log density under the guide, ``(S,)``.

    Example:
        >>> len(Pool(np.zeros((5, 2)), np.zeros(5), np.zeros(5)))
        5
    """

    z: Array
    log_p: Array
    log_q: Array

    def __len__(self) -> int:
        return len(self.log_p)


class Posterior:
    """A fitted posterior: draws, summary, figures of merit, verdict, ArviZ.

    Made by :class:`FlowVI`; not meant to be constructed by hand.

    Attributes:
        guide: the trained guide, usable in Pyro (``Predictive``, ``NeuTraReparam``).
        verdict: status, reasons and advice.
        weights: importance weights of the pool and what follows from them.
        report: what happened in training; ``report.history`` holds the curves.
        cost: "gradients" of the log joint, "seconds", and seconds by stage.

    Example:
        >>> def model():
        ...     pyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        >>> posterior = FlowVI(model, progress=False).run()
        >>> posterior.draws(100)["x"].shape
        torch.Size([100, 2])
    """

    def __init__(
        self,
        *,
        guide: AutoContinuous,
        log_joint: LogJoint,
        pool: Pool,
        weights: ImportanceWeights,
        verdict: Verdict,
        report: Report,
        cost: dict[str, float],
        seed: int,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        model_state: dict[str, Tensor] | None = None,
    ) -> None:
        self.guide, self.log_joint = guide, log_joint
        # Values of the model's own parameters at the end of the fit; the store's may move on.
        self.model_state = {
            name: leaf.detach().clone() for name, leaf in log_joint.parameters.items()
        }
        self.model_state.update(model_state or {})
        known = pyro.get_param_store()._constraints
        self._constraints = {name: known[name] for name in self.model_state if name in known}
        self.pool, self.weights, self.verdict = pool, weights, verdict
        self.report, self.cost, self.seed = report, cost, seed
        self.args, self.kwargs = args, kwargs

    # Figures of merit.

    @property
    def elbo(self) -> float:
        """The evidence lower bound, nats; its standard error is ``elbo_se``."""
        return self.weights.elbo

    @property
    def elbo_se(self) -> float:
        """Monte Carlo standard error of the ELBO."""
        return self.weights.elbo_se

    @property
    def log_evidence(self) -> float:
        """Importance-sampling estimate of the log evidence, nats.

        Relative, and no use for comparing models, where a site has an improper prior.
        """
        return self.weights.log_evidence

    @property
    def log_evidence_se(self) -> float:
        """Monte Carlo standard error of the log evidence."""
        return self.weights.log_evidence_se

    @property
    def khat(self) -> float:
        """Pareto k-hat of the weights: whether correction works, not whether q is right.

        0 where the weights are constant.
        """
        return self.weights.khat

    @property
    def ess(self) -> float:
        """Effective number of draws in the pool: its size if *reliable*, else Kish's."""
        reliable = self.verdict.status == "reliable"
        return float(len(self.pool)) if reliable else self.weights.kish_ess

    @property
    def corrected(self) -> bool:
        """Whether the draws handed over are importance resampled."""
        return self.verdict.status == "corrected"

    @contextlib.contextmanager
    def under_model_state(self) -> Iterator[None]:
        """Set the model's own parameters to their values at the end of the fit, inside."""
        leaves = self.log_joint.parameters
        store = pyro.get_param_store()
        before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        # The store may have been cleared since, or the parameter set anew.
        ours = [name for name in leaves if name in self._constraints]
        others = {
            name: (store._params[name], store._constraints[name]) for name in ours if name in store
        }
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(self.model_state[name])
        for name in ours:
            _put(name, leaves[name], self._constraints[name])
        try:
            yield
        finally:
            with torch.no_grad():
                for name, leaf in leaves.items():
                    leaf.copy_(before[name])
            for name in ours:
                if name in others:
                    _put(name, *others[name])
                else:
                    del store[name]

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Trainable parameters of the model at the end of the fit, constrained, detached."""
        with seeded(self.seed), self.under_model_state():
            trace = self.log_joint.run_model()
        return {
            name: site["value"].detach().clone()
            for name, site in trace.nodes.items()
            if site["type"] == "param"
        }

    # Draws.

    def draws(self, n: int = 4000) -> dict[str, Tensor]:
        """Draws of every latent site.

        The guide's own if the verdict is *reliable* (or *not reliable*: then they are all there
        is); importance resampled from a pool at least ten times as large if *corrected*: without
        repeats as long as no draw weighs more than 1/n. Draws outside the support are left out.

        Args:
            n: number of draws.

        Returns:
            Site name to a tensor of shape ``(n, *site_shape)``, in the guide's dtype. The same
            for every call with the same ``n``.

        Raises:
            GuideError: n isn't a number of draws.

        Cost: none for draws that are in the pool of 40,000 already; else an evaluation of the log
        joint for each more. *Corrected* draws take ten of the pool each.
        """
        pool, _, index = self._delivered(n)
        return self._constrained(pool.z[index])

    def _delivered(
        self, n: int, *, asked: str = "Posterior.draws expected n"
    ) -> tuple[Pool, ImportanceWeights, NDArray[np.intp]]:
        """A pool, its weights, and which of its draws are handed over."""
        if not isinstance(n, int) or n < 1:
            raise GuideError(f"{asked} >= 1, but got {n!r}. Ask for a number of draws.")
        pool, weights = self._pool_of(n)
        if self.corrected:
            rng = np.random.default_rng(self.seed)
            index = diagnostics.resample(weights.log_weights, n, rng)
            rng.shuffle(index)
            return pool, weights, index
        index = np.flatnonzero(np.isfinite(pool.log_p))
        if not len(index):  # which the verdict says
            index = np.arange(len(pool))
        if len(index) < n:  # hardly any is inside: those that are, again
            index = np.random.default_rng(self.seed).choice(index, n)
        return pool, weights, index[:n]

    def _pool_of(self, n: int) -> tuple[Pool, ImportanceWeights]:
        """The pool, or a larger one made alike, from which n draws can be handed over."""
        size = n * POOL_PER_DRAW if self.corrected else n
        # Draws outside the support are left out, so more are needed; within reason.
        inside = 1 - (self.weights.n_zero + self.weights.n_invalid) / self.weights.n
        need = math.ceil(1.1 * size / max(inside, LEAST_INSIDE)) if inside < 1 else size
        if need <= len(self.pool):
            return self.pool, self.weights
        more = Pool(*self.sample_guide(need - len(self.pool), seed=self.seed + 1))
        pool = Pool(
            *(
                np.concatenate(parts)
                for parts in zip(
                    (self.pool.z, self.pool.log_p, self.pool.log_q),
                    (more.z, more.log_p, more.log_q),
                    strict=True,
                )
            )
        )
        return pool, diagnostics.importance_weights(pool.log_p, pool.log_q)

    def sample_guide(self, n: int, *, seed: int) -> tuple[Array, Array, Array]:
        """Fresh draws of the guide itself, never corrected, with both log densities.

        Args:
            n: number of draws.
            seed: of these draws; the global random state is left as it was.

        Returns:
            ``(z, log_p, log_q)`` of shapes ``(n, D)``, ``(n,)``, ``(n,)``, unconstrained, float64.

        Cost: an evaluation of the log joint, and one of the flow, for each draw.
        """
        from pyro_flows.inference.objectives import Objective

        parts = []
        with seeded(seed), self.under_model_state():
            objective = Objective(self.guide, self.log_joint, self.args, self.kwargs, heldout=1)
            for start in range(0, n, 10_000):
                parts.append(objective.draw(min(10_000, n - start)))
        return tuple(  # type: ignore[return-value]
            torch.cat(part).detach().cpu().double().numpy() for part in zip(*parts, strict=True)
        )

    def _constrained(self, z: Array) -> dict[str, Tensor]:
        parameter = next(self.guide.parameters())
        latent = torch.as_tensor(z, device="cpu").to(parameter)

        def one(row: Tensor) -> dict[str, Tensor]:
            return {name: value for name, _, value, _ in constrain(self.guide, row)}

        with torch.no_grad():
            return {name: value.detach() for name, value in torch.vmap(one)(latent).items()}

    def _unconstrained(self, z: Array) -> dict[str, Tensor]:
        parameter = next(self.guide.parameters())
        latent = torch.as_tensor(z, device="cpu").to(parameter)

        def one(row: Tensor) -> dict[str, Tensor]:
            return {site["name"]: value for site, value in self.guide._unpack_latent(row)}

        with torch.no_grad():
            return {name: value.detach() for name, value in torch.vmap(one)(latent).items()}

    # Looking at it.

    def summary(self, interval: float = 0.9, decimals: int | None = 3) -> Any:
        """Table of every latent element: mean, sd, quantiles, Monte Carlo error, k-hat.

        Weighted estimates over the whole pool if the draws are corrected, so without the noise of
        resampling.

        Args:
            interval: probability of the central interval.
            decimals: round to so many, small values to as many significant digits; None for full
                precision.

        Returns:
            A pandas DataFrame; rows "site" or "site[i,j]", columns "mean", "sd", the two ends of
            the interval, "median", "mcse" (of the mean), "khat". k-hat is the largest over the
            weights and the weights times the element and its square (unconstrained scale). Where
            only that of the square is 0.7 or more the sd is NaN, also where the value as it is
            shown has so heavy a tail; where the value itself has, the mean, too. A column "note"
            gives the reason. Beyond 500 elements only the weights' own k-hat is shown, and
            nothing withheld.
        """
        from pyro_flows.inference.table import summarise

        table = summarise(self, interval)
        if decimals is None:
            return table
        numbers = table.columns.drop("note", errors="ignore")
        table[numbers] = table[numbers].map(lambda x: _rounded(x, decimals))
        return table

    def predict(self, *args: Any, draws: int = 4000, **kwargs: Any) -> dict[str, Tensor]:
        """New data: what the model would say next, at each draw of its latents.

        Args:
            *args: the model's arguments, say with other predictors; those of the fit if neither
                args nor kwargs are given. An observed site is drawn anew, whether data are passed
                for it or not.
            draws: number of draws.
            **kwargs: the model's arguments by name.

        Returns:
            For every site that isn't a latent of the fit, observed or deterministic, a tensor
            ``(draws, *site_shape)``. A discrete site that was summed out is drawn from its prior
            if it shares a plate with data, else from its posterior. The same for every call.

        Raises:
            ChangedModelError: a latent has another shape with these arguments.

        Cost: one run of the model for each draw, vectorised over draws where it can be.

        Example:
            >>> def model(x, y=None):
            ...     slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
            ...     with pyro.plate("data", len(x)):
            ...         pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)
            >>> x = torch.arange(5.0)
            >>> posterior = FlowVI(model, progress=False).run(x, 2 * x)
            >>> posterior.predict(torch.tensor([10.0, 20.0]), draws=100)["y"].shape
            torch.Size([100, 2])
        """
        from pyro_flows.inference.per_draw import PerDraw

        model = self.log_joint.model
        with seeded(self.seed), self.under_model_state():
            pool, _, index = self._delivered(draws, asked="Posterior.predict expected draws")
            values = self._constrained(pool.z[index])
            shared = PerDraw(model, self.args, self.kwargs, values).shared_discrete()
            if not args and not kwargs:
                args, kwargs = self.args, self.kwargs
            return {**shared, **PerDraw(model, args, kwargs, {**values, **shared}).new_data()}

    def to_arviz(
        self,
        draws: int = 4000,
        *,
        predictive: bool = True,
        prior: int = 500,
        predictions: tuple[Any, ...] | Mapping[str, Any] | None = None,
        coords: Mapping[str, Sequence[Any]] | None = None,
        dims: Mapping[str, Sequence[str | None]] | None = None,
    ) -> Any:
        """The posterior for ArviZ: InferenceData on ArviZ 0.x, DataTree on 1.x.

        Groups: posterior (chain 1, deterministic sites included), unconstrained_posterior,
        sample_stats (``log_p``, ``log_q``, ``log_weight``, ``lp``), log_likelihood per observed
        site, log_prior per latent site, posterior_predictive, prior, prior_predictive,
        predictions, observed_data, constant_data (the model's other arguments, by name),
        predictions_constant_data, guide_draws (raw draws with their weights, where those handed
        over are resampled), training (the curves).

        ``lp``, which is ``log_p`` by ArviZ's name, is the log joint density of the unconstrained
        latents, as in Stan. Dimensions are named by plates; of event axes by
        ``infer={"event_dims": [...]}`` at the site, as in NumPyro; the first axis of an argument
        by the only plate that has its size. Masked-out elements have log likelihood 0 and are NaN
        in the observed data. Where a point's likelihood is not that of one run of the model
        (enumerated discrete sites, subsampled plates), the log likelihood is left out, and the
        attribute ``log_likelihood_left_out`` says why; ``prior_left_out`` does for flat priors,
        and ``deterministic_left_out`` names sites that follow from a discrete one that was summed
        out.

        Args:
            draws: number of draws.
            predictive: also draw new data for every observed site.
            prior: number of draws from the prior; 0 for none.
            predictions: arguments of the model to predict for: a tuple, or a dict by name.
            coords: labels by dimension, such as ``{"school": ["A", "B"]}``; else 0, 1, ...
            dims: names of a site's axes, in place of those found.

        Returns:
            ``arviz.InferenceData`` or ``xarray.DataTree``, whichever the installed ArviZ uses.

        Cost: one run of the model per draw for the log densities, one more for each set of new
        data.
        """
        from pyro_flows.inference.export import Wanted, to_arviz

        wanted = Wanted(predictive, prior, predictions, coords, dims)
        with seeded(self.seed), self.under_model_state():
            return to_arviz(self, draws, wanted)

    def plot(self) -> Any:
        """One picture: training curve, importance weights, intervals of 2,000 draws.

        Returns:
            A ``matplotlib.figure.Figure``.
        """
        values = {name: value.cpu().numpy() for name, value in self.draws(2000).items()}
        return diagnostics.plot_posterior_overview(
            self.report.history,
            self.weights.log_weights,
            self.khat,
            values,
            title=f"{self.verdict.status}: {self._figures()}",
            elbo=self.elbo,
            stop_reason=self.report.stop_reason,
            threshold=self.weights.threshold,
            khat_applicable=self.weights.khat_applicable,
        )

    def write_report(
        self,
        path: str | Path = "report.html",
        *,
        reference: Any = None,
        title: str | None = None,
    ) -> Path:
        """Write one page of HTML about the fit: verdict first, with all pictures in it.

        Verdict and advice, figures of merit in words, summary, training, weights, intervals,
        pairs, predictive check, model, cost, and how to reproduce it. The page needs no network
        and no scripts; it can be mailed and printed.

        Args:
            path: the file; folders above it are made. An older file is replaced once the page is
                complete.
            reference: draws to compare with: by site ``(S, *shape)``, a ``pyro.infer.MCMC`` that
                was run, another posterior, or an ArviZ object; by default a Gaussian guide of the
                same mean and covariance.
            title: of the page; by default the model's name.

        Returns:
            The file.

        Raises:
            OptionError: ``path`` is a folder, or the reference is no draws.

        Cost: a few seconds, and where there are data three runs of the model for each of 1,000
        draws.

        Example:
            >>> import tempfile
            >>> def model():
            ...     pyro.sample("x", dist.Normal(0.0, 1.0))
            >>> posterior = FlowVI(model, progress=False).run()
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     page = posterior.write_report(f"{folder}/report.html").read_text()
            >>> "Verdict: reliable" in page
            True
        """
        from pyro_flows.inference.report import write_report

        return write_report(self, path, reference=reference, title=title)

    def save(self, path: str | Path) -> Path:
        """Write guide, draws, history and configuration to a folder; see :meth:`load`.

        Args:
            path: the folder; made if it isn't there. An older posterior there is replaced.

        Returns:
            The folder.

        Raises:
            SavedPosteriorError: something else is there.
        """
        from pyro_flows.inference.saving import save

        return save(self, Path(path))

    @staticmethod
    def load(path: str | Path, model: Any, *args: Any, **kwargs: Any) -> Posterior:
        """Read a posterior back; no code in the file is ever run.

        Args:
            path: what :meth:`save` was given.
            model: the Pyro model it was fitted to.
            *args: the model's arguments; not needed where all were tensors and plain values,
                which are saved with the posterior.
            **kwargs: the same.

        Raises:
            SavedPosteriorError: damaged, of another version, or of another model.
        """
        from pyro_flows.inference.saving import load

        return load(Path(path), model, args, kwargs)

    def _relative(self) -> str:
        """A remark where a flat prior makes the evidence depend on units."""
        flat = [f"'{name}'" for name in flat_priors(self.log_joint)]
        return f" (relative: improper prior on {', '.join(flat)})" if flat else ""

    def _figures(self) -> str:
        khat = f"{self.khat:.2f}" if self.weights.khat_applicable else "n/a"
        return (
            f"ELBO {self.elbo:.3f} ± {self.elbo_se:.3f}, log evidence {self.log_evidence:.3f}, "
            f"k-hat {khat}"
        )

    def __repr__(self) -> str:
        sites = ", ".join(
            f"{name}{list(site['value'].shape) if site['value'].dim() else ''}"
            for name, site in named_sites(self.guide)
        )
        lines = [
            str(self.verdict),
            f"ELBO {self.elbo:.4f} ± {self.elbo_se:.4f}, log evidence {self.log_evidence:.4f} ± "
            f"{self.log_evidence_se:.4f}{self._relative()}",
            f"Sites: {sites}",
            f"Cost: {self.cost['gradients']:,} gradients, {self.report.steps} steps, "
            f"{self.cost['seconds']:.1f} s",
            f"Stopped: {self.report.stop_reason}",
        ]
        if "diverged" in self.report.stop_reason:
            lines.append(f"  {more('training-diverged')}")
        if self.log_joint.mode != "captured":
            why = f" ({self.log_joint.why})" if self.log_joint.why else ""
            lines.append(f"Log joint: {self.log_joint.mode}{why}")
        if self.log_joint.mode == "sequential":
            lines.append(f"  {more('log-joint-not-recorded')}")
        if self.report.non_finite:
            lines.append(f"Non-finite particles left out of gradients: {self.report.non_finite}")
            lines.append(f"  {more('non-finite-particles')}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        colour = {"reliable": "#2a7f3f", "corrected": "#8a6d00", "not reliable": "#b3261e"}
        first, *rest = repr(self).split("\n")
        return (
            f"<div><b style='color:{colour[self.verdict.status]}'>{html.escape(first)}</b>"
            f"<pre>{html.escape(chr(10).join(rest))}</pre>{self.summary().to_html()}</div>"
        )


def _put(name: str, leaf: Tensor, constraint: Any) -> None:
    """Make a leaf the store's parameter of that name."""
    store = pyro.get_param_store()
    if store._params.get(name) is leaf:
        return  # and keeps its place in the order
    if name in store:
        del store[name]
    store._params[name], store._param_to_name[leaf] = leaf, name
    store._constraints[name] = constraint


def _rounded(x: float, decimals: int) -> float:
    """Round to decimals, but a small number to as many significant digits."""
    if not math.isfinite(x) or x == 0:
        return x
    return round(x, max(decimals, decimals - 1 - math.floor(math.log10(abs(x)))))
