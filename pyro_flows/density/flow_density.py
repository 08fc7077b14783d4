# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""FlowDensity: rows of data in, a density out, with scikit-learn's verbs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

from pyro_flows.density import tables
from pyro_flows.density.arguments import (
    DTYPES,
    FlowSpec,
    build_flow,
    check_arguments,
    check_inside,
    check_number,
    check_reach,
    check_seed,
    check_space,
    is_count,
    make_columns,
    make_context_columns,
    read_rows,
    read_validation,
    split,
    warn_of_repeats,
)
from pyro_flows.density.checkpoint import FIRST, SECOND, FitCheckpoint
from pyro_flows.density.columns import Columns
from pyro_flows.density.ensemble import joined, with_second
from pyro_flows.density.estimator import Estimator
from pyro_flows.density.fitting import Budget, Part, Rows, maximise_likelihood, score_rows
from pyro_flows.density.start import find_start, takes_start
from pyro_flows.density.support import read_support
from pyro_flows.density.units import Units
from pyro_flows.distributions import Flow, FlowMixture
from pyro_flows.errors import DataError, DensityError, NotFittedError
from pyro_flows.nn import set_dropout
from pyro_flows.training import Report, Score
from pyro_flows.training.loop import now
from pyro_flows.training.randomness import torch_seeded
from pyro_flows.training.whole_step import Compile
from pyro_flows.transforms.base import is_real

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Held-out rows kept for pictures.
SHOWN = 1000
# Numbers drawn at once.
DRAWN = 1 << 20


class FlowDensity(Estimator):
    """The density of rows of data, or of rows given a context, by a normalizing flow.

    ``fit`` brings each column to mean 0 and standard deviation 1 (bounded columns to the whole
    line first, and power-law tails to normal ones; where the flow itself is bounded, as "ncsf" is
    to angles, columns are left as they are), trains the flow by maximum likelihood, and keeps
    the state that is best on rows held out. Densities are those of the data as given: the
    Jacobians of all that are included.

    Args:
        flow: a registered name (:func:`pyro_flows.flows.available`), a function
            ``(dim)`` or, with a context, ``(dim, context_dim)`` that makes a flow or a list of
            layers, or a ``Flow``, which is copied.
        support: what is known of the columns' bounds: None; one specification for all columns; a
            sequence with one for each; or a dict from a column's index or name to one. A
            specification is "positive", "unit", "negative", a pair ``(low, high)`` with None for
            no bound, a constraint of torch, or None.
        seed: all random numbers; the global random state is left as it was.
        flow_options: options of the registered flow, for example ``{"layers": 4}``.
        components: a flow asked for by name starts on a mixture of Gaussians, of so many; of
            several numbers the smallest that the held-out rows can't tell from the best is taken.
            With a context it starts as a Gaussian. None: at the standard normal, as flows given
            otherwise do.
        ensemble: a flow that starts on a mixture, and is still learning after two cycles of
            training, is joined by a second one of the same kind from a plain start, trained
            longer; the density is then a mixture of the two. False: the first goes on alone.
        holdout: share of the rows held out, if ``fit`` isn't given a validation set.
        batch_size: rows a step.
        learning_rate: peak learning rate.
        dropout: share of the conditioners' hidden units that are dropped in training. By default
            0, and 0.2 for the second flow of an ensemble.
        weight_decay: decay of the flow's matrices.
        max_epochs: the most passes over the data.
        num_steps: train exactly this many steps; by default until there is no more gain.
        max_seconds: stop after so long. Results then depend on the machine's speed.
        patience: looks at the held-out rows (one an epoch, or every 50 steps) without a new best
            that end a cycle of training. By default a cycle goes to its end, where the learning
            rate is small.
        dtype: "float32" or "float64", of the flow. Columns are standardised in float64 anyway.
        device: where to train; by default where the data are.
        compile: take each step as one compiled function: False; True, wherever it can be;
            "auto", in cycles of 5,000 steps and more, if there is no time limit. Compiling takes
            half a minute to two, and counts towards ``max_seconds``; steps are then up to three
            times as fast, where a density takes one pass. The last digits differ from those of an
            uncompiled fit. Steps with dropout (by default those of an ensemble's second flow) or
            weight decay aren't compiled.
        checkpoint: a folder for what an interrupted fit needs to go on, written every minute of
            training. After a kill, a power failure or Ctrl-C the same call, in any process, goes
            on from there, and ends as an uninterrupted fit does, bit for bit on a CPU; a fit that
            ends removes it. Of other rows or arguments it is refused: one folder for each fit.
        progress: show a bar.

    Attributes:
        flow_: the flow over standardised columns.
        components_: Gaussians it started on; 0 for a plain start, None if it was given none.
        weights_: weights of the two flows of an ensemble; None for a single flow.
        columns_: the layer from there to the units of the data, in float64.
        fit_params_: the constructor's arguments, as they were in ``fit``.
        n_features_in_: number of columns.
        n_context_in_: number of columns of the context, 0 for none.
        feature_names_in_: names of the columns, if they came in a data frame.
        best_score_: mean log density of the held-out rows under the state that was kept; of those
            inside the flow's space, plus the log of their share, where others score -inf.
        best_score_se_: its standard error.
        history_: arrays "step", "log_density" (of each minibatch), "heldout_step",
            "heldout_log_density", "heldout_se".
        stop_reason_: why training ended.
        compiled_: whether steps were compiled, and why not, in words.
        n_steps_, n_epochs_, seconds_: what it took.

    Numpy arrays and data frames in, numpy arrays out; tensors in, tensors out, of the same dtype.
    Two fits with one seed agree bit for bit on one machine, unless ``max_seconds`` ended one.

    Example:
        >>> x = np.random.default_rng(0).gamma(2.0, size=(200, 2))
        >>> density = FlowDensity("realnvp", support="positive", num_steps=20, progress=False)
        >>> density.fit(x).score_samples(x).shape, density.sample(5).shape
        ((200,), (5, 2))
        >>> density.score_samples([[-1.0, 1.0]])
        array([-inf])
    """

    flow_: nn.Module
    units_: Units
    columns_: Columns
    heldout_: Rows
    fit_params_: dict[str, Any]

    def __init__(
        self,
        flow: FlowSpec = "nsf",
        *,
        support: Any = None,
        seed: int = 0,
        flow_options: Mapping[str, Any] | None = None,
        components: int | Sequence[int] | None = (1, 5, 10, 20, 40),
        ensemble: bool = True,
        holdout: float = 0.1,
        batch_size: int = 512,
        learning_rate: float = 0.015,
        dropout: float | None = None,
        weight_decay: float = 0.0,
        max_epochs: int = 1000,
        num_steps: int | None = None,
        max_seconds: float | None = None,
        patience: int | None = None,
        dtype: str = "float32",
        device: str | None = None,
        compile: Compile = False,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> None:
        self.flow, self.flow_options, self.components = flow, flow_options, components
        self.support, self.seed = support, seed
        self.holdout, self.batch_size, self.patience = holdout, batch_size, patience
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.dropout, self.ensemble = dropout, ensemble
        self.max_epochs, self.num_steps, self.max_seconds = max_epochs, num_steps, max_seconds
        self.dtype, self.device, self.progress = dtype, device, progress
        self.compile, self.checkpoint = compile, checkpoint

    def fit(self, x: Any, context: Any = None, *, validation: Any = None) -> FlowDensity:
        """Fit to rows ``x``, given their ``context`` if there is one.

        Args:
            x: shape ``(n, dim)``.
            context: shape ``(n, context_dim)``.
            validation: rows to judge by in place of a share held out: ``x_val``, or
                ``(x_val, context_val)``.

        Returns:
            The estimator. After Ctrl-C the best so far; a checkpoint is left.

        Raises:
            CheckpointError: the checkpoint can't be gone on with, or not be written.
            DataError: NaN, constant columns, or values outside the support.
            ShapeError, ContextError: wrong shapes.
            DensityError: an argument of the constructor can't be used.
        """
        clock = _Clock()
        check_arguments(self)
        checkpoint = None if self.checkpoint is None else FitCheckpoint(self.checkpoint, clock)
        rows = read_rows(x, context)
        check_number(rows)
        names, context_names = tables.column_names(x), tables.column_names(context)
        if rows.context is not None:
            tables.check_varies(rows.context, "context", context_names)
        bounds = read_support(self.support, rows.x.shape[1], names)
        with torch_seeded(int(self.seed)), torch.inference_mode(False), torch.enable_grad():
            # All rows, also those held out: one far out among them alone would decide everything.
            columns = make_columns(rows.x, bounds, names)
            if validation is None:
                rows, held = split(rows, self.holdout)
            else:
                held = read_validation(validation, rows, x, context)
            check_inside(columns, held.x, "validation x", names)
            context_columns = None
            if rows.context is not None:
                context_columns = make_context_columns(rows.context)
            warn_of_repeats(rows.x, names)
            device = rows.x.device if self.device is None else torch.device(self.device)
            kind, dtype = tables.Kind(x), DTYPES[self.dtype]
            units = Units(columns, context_columns, kind, names, dtype, device, context_names)
            self._train(units, rows, held, clock, checkpoint)
        self.seconds_ = clock.state()
        return self

    def _train(
        self,
        units: Units,
        rows: Rows,
        held: Rows,
        clock: _Clock,
        checkpoint: FitCheckpoint | None,
    ) -> None:
        """Build the flow, train it, and note what happened."""
        flow = build_flow(self.flow, units.dim, units.context_dim, self.flow_options or {})
        flow.to(units.device, units.dtype)
        space = getattr(getattr(flow, "transform", None), "codomain", constraints.real_vector)
        if not is_real(space):
            units.columns = units.columns.without_scale()
            check_space(space, units.columns, rows.x, held.x)
        inner, ladj = units.standardise(rows)
        inner_held, held_ladj = units.standardise(held)
        check_reach(inner_held.x, held_ladj)
        first = second_keeper = None
        if checkpoint is not None:
            checkpoint.open(self.get_params(), flow, units.columns, rows, held)
            first, second_keeper = checkpoint.keeper(FIRST), checkpoint.keeper(SECOND)
        components = None
        if takes_start(flow, self.flow) and self.components is not None:
            counts = _candidates(self.components)
            flow = find_start(flow, inner, inner_held, counts, int(self.seed))
            components = getattr(flow.base, "components", 0)
        elif hasattr(flow, "initialize"):
            flow.initialize(inner.x, inner.context)
        set_dropout(flow, self.dropout or 0.0)
        # A flow on a mixture is soon as good as it gets; what time is left goes to a second one.
        several = self.ensemble and bool(components) and self.num_steps is None
        budget = self._budget(clock.state(), "first" if several else "all")
        report = maximise_likelihood(
            flow, inner, inner_held, budget, keeper=first, progress=self.progress
        )
        model: Flow | FlowMixture = flow
        budget = self._budget(clock.state(), "rest")
        if several and report.gaining and not report.interrupted and budget.cycles(len(rows)):
            second = build_flow(self.flow, units.dim, 0, self.flow_options or {})
            second.to(units.device, units.dtype)
            model, more = with_second(
                flow,
                second,
                inner,
                inner_held,
                budget,
                dropout=self.dropout,
                keeper=second_keeper,
                progress=self.progress,
            )
            report = joined(report, more)
        model.to(units.device, units.dtype).eval()
        score = Score(score_rows(model, inner_held).to(held_ladj) + held_ladj)
        self._set_units(units)
        self.fit_params_ = self.get_params()
        self.flow_, self.components_ = model, components
        self.weights_ = model.weights.tolist() if isinstance(model, FlowMixture) else None
        self.best_score_, self.best_score_se_ = score.mean, score.se
        self.history_ = _history(report, float(ladj.mean()), float(held_ladj.mean()))
        self.stop_reason_, self.n_steps_ = report.stop_reason, report.steps
        self.compiled_ = report.compiled
        self.n_epochs_ = report.steps * min(self.batch_size, len(rows)) / len(rows)
        self.heldout_ = held[:SHOWN]
        if checkpoint is not None and not report.interrupted:
            checkpoint.folder.remove()

    def _set_units(self, units: Units) -> None:
        self.units_, self.columns_ = units, units.columns
        self.n_features_in_, self.n_context_in_ = units.dim, units.context_dim
        vars(self).pop("feature_names_in_", None)
        if units.names is not None:
            self.feature_names_in_ = units.names

    def _budget(self, spent: float, part: Part) -> Budget:
        """What is left of the time, after so many seconds, for that part of the training."""
        seconds = None if self.max_seconds is None else max(self.max_seconds - spent, 1e-3)
        return Budget(
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            max_epochs=self.max_epochs,
            num_steps=self.num_steps,
            max_seconds=seconds,
            patience=self.patience,
            part=part,
            compile=self.compile,
        )

    def score_samples(self, x: Any, context: Any = None) -> Any:
        """Log density of each row, in the units of x; -inf outside the support.

        Args:
            x: shape ``(n, dim)``.
            context: shape ``(n, context_dim)``, or one row for all.
        """
        values = self._score_rows(x, context)
        return tables.Kind(x).answer(values)

    def score(self, x: Any, context: Any = None) -> float:
        """Mean log density of the rows; higher is better."""
        values = self._score_rows(x, context)
        if not len(values):
            raise DataError("score expected rows, but got none. A mean of nothing is nothing.")
        return float(values.mean())

    def _score_rows(self, x: Any, context: Any) -> Tensor:
        self._check_fitted("scored")
        inner, ladj = self.units_.standardise(self.units_.read(x, context))
        return score_rows(self.flow_, inner).to(ladj) + ladj

    @torch.no_grad()
    def sample(self, n: int = 1, context: Any = None, *, seed: int | None = None) -> Any:
        """Draw rows.

        Args:
            n: how many; for each row of the context.
            context: shape ``(m, context_dim)``, or ``(context_dim,)`` for one.
            seed: of these draws; by default the estimator's, so that the same call gives the same
                draws.

        Returns:
            Shape ``(n, dim)``, or ``(n, m, dim)`` for a table of contexts, of the kind that
            ``fit`` was given.
        """
        self._check_fitted("sampled from")
        if not is_count(n) and not (n == 0 and isinstance(n, int)):
            raise DensityError(
                f"sample expected the number of rows as an integer >= 0, but got {n!r}. Say how "
                "many, as in sample(1000)."
            )
        seed = self.seed if seed is None else seed
        check_seed(seed, "sample", "leave it out for the estimator's")
        given = self.units_.read_context(context)
        count = 1 if given is None or given.dim() == 1 else len(given)
        size = max(1, DRAWN // max(1, count * self.n_features_in_))
        with torch_seeded(int(seed)):
            made = self.flow_(given)
            parts = [made.sample((min(size, n - done),)) for done in range(0, max(1, n), size)]
        return self.units_.restore(torch.cat(parts))

    def distribution(self, context: Any = None) -> dist.TorchDistribution:
        """The fitted density as a Pyro distribution, for models and guides, in the units of x.

        Args:
            context: as in :meth:`sample`.

        Example:
            >>> x = torch.randn(200, 2)
            >>> density = FlowDensity("realnvp", num_steps=20, progress=False).fit(x)
            >>> density.distribution().log_prob(torch.zeros(2)).shape
            torch.Size([])
        """
        self._check_fitted("used")
        made = self.flow_(self.units_.read_context(context))
        return dist.TransformedDistribution(made, [self.units_.layer()])

    def plot(
        self,
        x: Any = None,
        context: Any = None,
        *,
        columns: Any = None,
        seed: int | None = None,
    ) -> Figure:
        """Rows of data against draws: each column, and each pair of columns.

        Args:
            x: rows to show; by default those held out in ``fit``. With a context, one draw is
                made for each row of it.
            context: their context.
            columns: which to show, by index or name; by default the first five.
            seed: of the draws.

        Returns:
            A figure of matplotlib.
        """
        from pyro_flows.density.plots import plot_density

        self._check_fitted("plotted")
        return plot_density(self, x, context, columns=columns, seed=seed)

    def save(self, path: str | Path) -> Path:
        """Write the fitted estimator to a directory; read it back with :meth:`load`.

        Plain tensors and JSON, no pickled code. An older one of that name is replaced.
        """
        from pyro_flows.density.saving import save

        self._check_fitted("saved")
        return save(self, Path(path))

    @classmethod
    def load(cls, path: str | Path, flow: FlowSpec | None = None) -> FlowDensity:
        """Read what :meth:`save` wrote; no code in the file is run.

        Args:
            path: the directory.
            flow: the flow's function or object, if it wasn't a registered name.

        Raises:
            SavedDensityError: it is damaged, of another version, or of another flow.
        """
        from pyro_flows.density.saving import load

        return load(cls, Path(path), flow)

    def _check_fitted(self, what: str) -> None:
        if not hasattr(self, "flow_"):
            raise NotFittedError(
                f"This FlowDensity isn't fitted, so it can't be {what}. Call fit(x) first."
            )


class _Clock:
    """Seconds of a fit, also those before an interrupt."""

    def __init__(self) -> None:
        self.started = now()

    def state(self) -> float:
        return now() - self.started

    def set_state(self, seconds: float) -> None:
        self.started = now() - seconds


def _candidates(components: int | Sequence[int]) -> Sequence[int]:
    several = components if isinstance(components, Iterable) else [components]
    return [int(count) for count in several]


def _history(report: Report, ladj: float, held_ladj: float) -> dict[str, Any]:
    """The loop's history in the units of x."""
    history = report.history
    return {
        "step": history["step"],
        "log_density": history["elbo"] + ladj,
        "heldout_step": history["heldout_step"],
        "heldout_log_density": history["heldout_elbo"] + held_ladj,
        "heldout_se": history["heldout_se"],
    }
