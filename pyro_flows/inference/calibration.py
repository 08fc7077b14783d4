# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Simulation-based calibration: is the truth where the fits of this model say it is?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from pyro_flows.diagnostics import Calibration, rank_among
from pyro_flows.diagnostics.calibration import FAILED
from pyro_flows.errors import DataError, GuideError
from pyro_flows.guides import unconstrain
from pyro_flows.inference.posterior import Posterior
from pyro_flows.inference.randomness import seeded
from pyro_flows.inference.simulation import Simulator, Values
from pyro_flows.inference.warm_refit import CLOSE, RELIABLE, MainFit, Refit

# What is ranked beside the model's sites: the density of each with the data.
LOG_JOINT = "log joint"
TRAINED = "The model's own parameters were held at their trained values."


def calibrate(
    posterior: Posterior,
    simulations: int = 100,
    *,
    draws: int = 999,
    correct: bool = True,
    seed: int | None = None,
    num_steps: int | None = None,
    max_gradients: int | None = None,
    progress: bool = True,
) -> Calibration:
    """Simulation-based calibration of the fits of a model.

    Again and again: true values from the prior, data from the likelihood at them, a fit to these
    data, and the rank of each true value among its draws. Over many simulations the ranks are
    uniform if the draws are the posterior's. A refit begins with the flow of ``posterior``, moved
    to the best Gaussian for the new data, and is trained until importance resampling does the
    rest; so it takes a fraction of the first fit's time.

    It judges the model's fits all over the prior, not the one to the data at hand, and the
    program, not the model: simulated data are right by construction.

    Args:
        posterior: of ``FlowVI.run`` or ``assess``. All arguments but the data stay as they are.
        simulations: number of data sets.
        draws: number of draws of each fit; ranks are from 0 to ``draws``.
        correct: rank among draws as :meth:`Posterior.draws` hands them over, importance resampled
            where the verdict is *corrected*. False: among the guide's own, trained until they
            could do without.
        seed: of all random numbers; by default that of ``posterior``. The first k simulations are
            the same for any number of them.
        num_steps: train each refit exactly so many steps; by default in cycles of 100, 200, 400
            and 800, until the guide is close or gains no more.
        max_gradients: the most gradients of the log joint that each refit may take.
        progress: show a progress bar.

    Returns:
        The ranks by site, and of the log joint density: the latter tells a posterior from its
        prior, which no site's rank does. After Ctrl-C those so far. Fits that are not reliable are
        counted like all others, and simulations without a fit are reported: to leave them out
        would hide what goes wrong, mostly far from the middle of the prior.

    Raises:
        ModelError: the model can't be run forwards; the text says why.
        GuideError: an argument makes no sense.

    Cost: a refit for each simulation: on one thread a fifth of a second for a conjugate model, one
        or two seconds for ten latents.

    Example:
        >>> def model(y):
        ...     mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        >>> posterior = FlowVI(model, progress=False).run(torch.tensor([1.0, 2.0, 3.0]))
        >>> calibration = calibrate(posterior, simulations=10, progress=False)
        >>> calibration.table()["simulations"].tolist()
        [10, 10]
    """
    for name, value, least in (("simulations", simulations, 1), ("draws", draws, 2)):
        if not isinstance(value, int) or value < least:
            raise GuideError(
                f"calibrate expected {name} >= {least}, but got {value!r}. Leave it out for the "
                "default."
            )
    seed = posterior.seed if seed is None else seed
    with _held(posterior):
        simulator = Simulator(posterior)
        main = MainFit(posterior, CLOSE if correct else RELIABLE, num_steps, max_gradients)
        run = _Run(simulator, main, draws, correct=correct)
        with tqdm(total=simulations, disable=not progress, desc="Calibrate") as bar:
            try:
                for i in range(simulations):
                    run.simulate(int(np.random.SeedSequence([seed, i]).generate_state(1)[0]))
                    counts = Counter(run.verdicts).items()
                    bar.set_postfix_str(", ".join(f"{n} {status}" for status, n in counts))
                    bar.update()
            except KeyboardInterrupt:
                if not run.verdicts:
                    raise
    notes = list(simulator.notes)
    if posterior.log_joint.parameters:
        notes.append(TRAINED)
    if len(run.verdicts) < simulations:
        notes.append(f"Stopped by the user after {len(run.verdicts)} of {simulations}.")
    return run.result(notes)


@contextmanager
def _held(posterior: Posterior) -> Iterator[None]:
    """The model's own parameters at their trained values inside, and not trained further."""
    leaves = posterior.log_joint.parameters.values()
    with posterior.under_model_state():
        for leaf in leaves:
            leaf.requires_grad_(False)
        try:
            yield
        finally:
            for leaf in leaves:
                leaf.requires_grad_(True)


class _Run:
    """Simulations one after the other, and what became of them."""

    def __init__(self, simulator: Simulator, main: MainFit, draws: int, *, correct: bool) -> None:
        self.simulator, self.main, self.draws, self.correct = simulator, main, draws, correct
        self.verdicts: list[str] = []
        self.failures: dict[int, str] = {}
        self.ranks: list[dict[str, NDArray[np.float64]]] = []
        # Elements that no data can move, such as the zeros of a Cholesky factor.
        self.constant = {n: np.ones(v.shape, bool) for n, v in simulator.active.items()}

    def simulate(self, seed: int) -> None:
        """One more; a failure is kept as a sentence."""
        try:
            with seeded(seed):
                truth, data = self.simulator.draw()
            for name, value in data.items():
                gaps = torch.isnan(torch.as_tensor(self.simulator.data[name], device="cpu"))
                if not bool((torch.isfinite(value.cpu()) | gaps).all()):
                    raise DataError(f"the simulated data of '{name}' aren't finite.")
            refit = self._refit(data, seed)
            ranks = self._ranks(refit, truth, np.random.default_rng(seed))
        except Exception as error:  # noqa: BLE001 (any model, and data that no one has seen)
            first = (str(error).splitlines() or [""])[0][:200]
            self.failures[len(self.verdicts)] = f"{type(error).__name__}: {first}"
            self.verdicts.append(FAILED)
            self.ranks.append({})
        else:
            self.verdicts.append(refit.verdict.status)
            self.ranks.append(ranks)

    def _refit(self, data: Values, seed: int) -> Posterior:
        """A fit to the data: a quick one, and if that isn't reliable a thorough one."""
        for thorough in (False, True) if self.main.one_flow else (True,):
            refit = Refit(self.main, data, seed, thorough=thorough)
            posterior = refit.run(*self.simulator.args, **self.simulator.kwargs)
            if posterior.report.interrupted or "interrupted" in posterior.verdict.anchors:
                raise KeyboardInterrupt
            if posterior.verdict.status != "not reliable":
                break
        return posterior

    def _ranks(
        self, refit: Posterior, truth: Values, rng: np.random.Generator
    ) -> dict[str, NDArray[np.float64]]:
        pool, index = refit.pool, np.arange(self.draws)
        if self.correct:
            pool, _, index = refit._delivered(self.draws)
        elif self.draws > len(pool):
            raise GuideError(f"there are {len(pool)} draws of a fit. Ask for no more.")
        found = {}
        for name, value in refit._constrained(pool.z[index]).items():
            true, drawn = truth[name].cpu().numpy(), value.cpu().numpy()
            self.constant[name] &= (drawn == true).all(0)
            ranks = rank_among(true, drawn, rng).astype(float)
            found[name] = np.where(self.simulator.active[name].numpy(), ranks, np.nan)
        log_p, true = pool.log_p[index], np.array(_log_joint(refit, truth))
        found[LOG_JOINT] = np.array(np.nan)
        if np.isfinite(true) and not np.isnan(log_p).any():
            found[LOG_JOINT] = rank_among(true, log_p, rng).astype(float)
        return found

    def result(self, notes: list[str]) -> Calibration:
        """All that came of it."""
        shapes = {name: value.shape for name, value in self.constant.items()} | {LOG_JOINT: ()}
        ranks = {
            name: np.stack([one.get(name, np.full(shape, np.nan)) for one in self.ranks])
            for name, shape in shapes.items()
        }
        for name, constant in self.constant.items():
            ranks[name][:, constant] = np.nan
        return Calibration(ranks, self.draws, tuple(self.verdicts), self.failures, tuple(notes))


@torch.no_grad()
def _log_joint(refit: Posterior, values: Values) -> float:
    """Log joint density at one point, on the unconstrained scale, as the draws' is."""
    latent, _ = unconstrain(refit.guide, {name: value[None] for name, value in values.items()})
    through = refit.log_joint.through
    if through is None:
        return float(refit.log_joint.in_chunks(latent))
    u = through.inv(latent)
    return float(refit.log_joint.in_chunks(u) - through.forward_and_ladj(u)[1])
