# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What a page about a fit says, section by section."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
from numpy.typing import NDArray
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_flows import diagnostics
from pyro_flows._version import __version__
from pyro_flows.diagnostics import page
from pyro_flows.diagnostics.page import Html, Section, element
from pyro_flows.guides import AutoFlow, structure
from pyro_flows.inference.assessment import NOT_TRAINED
from pyro_flows.inference.predictive_check import predictive_check

if TYPE_CHECKING:
    from pyro_flows.inference.posterior import Posterior

Arrays = dict[str, NDArray[Any]]

DRAWS = 4000
ROWS = 20  # of the summary that are shown without a click
# Sets of new data, also of a model that is run once for each; and data that can be checked soon.
RUNS, FEW_RUNS, MOST_DATA = 1000, 200, 5000
GAUSSIAN = "Gaussian of the same mean and covariance"
PACKAGES = ("pyro-ppl", "torch", "numpy", "arviz")


@dataclass
class Fit:
    """What the sections are made of."""

    posterior: Posterior
    reference: Arrays | None

    @cached_property
    def delivered(self) -> tuple[NDArray[np.float64], Arrays]:
        """Draws as they are handed over, unconstrained and constrained, at no further cost."""
        posterior = self.posterior
        pool, _, index = posterior._delivered(_affordable(posterior))
        z = pool.z[index]
        return z, as_arrays(posterior._constrained(z))

    @property
    def draws(self) -> Arrays:
        """Site to draws."""
        return self.delivered[1]

    @cached_property
    def gaussian(self) -> Arrays:
        """Draws of a Gaussian of the same mean and covariance, unconstrained, as of a guide."""
        z = self.delivered[0]
        z = z[np.isfinite(z).all(axis=1)]
        if len(z) < 2:
            return {}
        # Random sums of centred draws have their covariance, whatever its rank.
        rng = np.random.default_rng(self.posterior.seed)
        sums = rng.normal(size=(min(len(z), 2000), len(z))) / math.sqrt(len(z) - 1)
        return as_arrays(self.posterior._constrained(z.mean(0) + sums @ (z - z.mean(0))))

    @cached_property
    def beside(self) -> tuple[Arrays, str]:
        """What the draws are compared with, and its name."""
        if self.reference is not None:
            return self.reference, "reference"
        return self.gaussian, GAUSSIAN


# Sections, in the order of the page. Each is a function of the fit that returns a section, or
# None where there is nothing to say; a new one is a line in SECTIONS.


def _summary(fit: Fit) -> Section:
    if not np.isfinite(fit.posterior.pool.log_p).any():
        nothing = "No draw of the guide has a finite density: there is nothing to sum up."
        return page.section("Summary", element("p", nothing))
    frame = fit.posterior.summary()
    notes: list[str] = []
    if "note" in frame:  # long, and the same in many rows
        notes = [text for text in dict.fromkeys(frame["note"]) if text]
        frame["note"] = [str(1 + notes.index(text)) if text else "" for text in frame["note"]]
    label = "Summary of the posterior"
    table: list[Html] = [page.table(frame.head(ROWS), label=label)]
    if len(frame) > ROWS:
        rest = page.table(frame.iloc[ROWS:], label=f"{label}, continued")
        table.append(page.details(f"The other {len(frame) - ROWS:,} rows", rest))
    about = (
        "Mean, standard deviation, quantiles, Monte Carlo error of the mean, and the k-hat of "
        "each element. "
    )
    about += "Weighted over the whole pool." if fit.posterior.corrected else "Over the whole pool."
    if notes:
        table.append(element("div", element("p", "Notes:"), page.bullets(*notes, ordered=True)))
    return page.section("Summary", element("p", about), *table)


def _training(fit: Fit) -> Section:
    posterior = fit.posterior
    report, history = posterior.report, posterior.report.history
    paragraphs = [element("p", f"Stopped: {report.stop_reason}.")]
    if report.rollbacks and "diverged" not in report.stop_reason:
        paragraphs.append(element("p", f"Times it diverged and went back: {report.rollbacks}."))
    if report.non_finite:
        count = f"{report.non_finite:,} draws outside the support, or not finite, "
        text = (
            "were left out of gradients. The training curve is the mean over the others; held-out "
            "and final values count their share, too, and are lower by its logarithm."
        )
        paragraphs.append(element("p", count + text))
    if report.compiled:
        compiled = report.compiled[0].upper() + report.compiled[1:]
        paragraphs.append(element("p", f"{compiled.rstrip('.')}.", class_="quiet"))
    if not len(history.get("step", ())):
        return page.section("Training", *paragraphs)
    figure = diagnostics.plot_training(
        history, elbo=posterior.elbo, stop_reason=report.stop_reason
    )
    alt = (
        f"The ELBO over {report.steps:,} steps of training, which ends at {posterior.elbo:.3f}. "
        f"Stopped: {report.stop_reason}."
    )
    return page.section("Training", *paragraphs, page.picture(figure, alt=alt))


def _weights(fit: Fit) -> Section:
    weights = fit.posterior.weights
    figure = diagnostics.plot_weights(
        weights.log_weights,
        weights.khat,
        threshold=weights.threshold,
        khat_applicable=weights.khat_applicable,
    )
    text = (
        "If the guide were the posterior, every draw would have the same weight. Where the share "
        "of the weight (line) leaves that of the draws (filled) to the right, few draws stand for "
        "much of the posterior."
    )
    alt = (
        f"Histograms of {weights.n:,} draws and of their weight by relative weight; k-hat "
        f"{weights.khat:.2f}, {weights.kish_ess:,.0f} effective draws."
    )
    return page.section("Importance weights", element("p", text), page.picture(figure, alt=alt))


def _intervals(fit: Fit) -> Section:
    reference = fit.reference
    figure = diagnostics.plot_forest(fit.draws, reference=reference)
    against = "" if reference is None else " beside those of the reference"
    sites = ", ".join(fit.draws)
    alt = f"Medians, 50% and 89% intervals{against}, of {sites}."
    return page.section("Intervals", page.picture(figure, alt=alt))


def _pairs(fit: Fit) -> Section:
    reference, name = fit.beside
    figure = diagnostics.plot_pairs(fit.draws, reference=reference or None, reference_name=name)
    text = f"Filled: the posterior. Lines: the {name}."
    if fit.reference is None:
        text += " Where the two differ, the flow is worth having."
    alt = f"Histograms and pairwise outlines of elements of the posterior against the {name}."
    return page.section("Pairs", element("p", text), page.picture(figure, alt=alt))


def _predictive_check(fit: Fit) -> Section | None:
    posterior = fit.posterior
    with pyro.validation_enabled(False):
        sites = structure.observed_sites(_trace(posterior))
    draws = FEW_RUNS if posterior.log_joint.mode == "sequential" else RUNS
    parts: list[Html] = []
    for name in sites:
        size = sites[name]["value"].numel()
        if size > MOST_DATA:
            text = f"{name}: left out, since checking {size:,} data one by one takes long. See "
            parts.append(element("p", text, element("code", "predictive_check(posterior)"), "."))
            continue
        check = predictive_check(posterior, name, draws=draws)
        alt = f"Data of {name} beside {draws:,} sets of new data from the fitted model."
        parts += [element("h3", name)] if len(sites) > 1 else []
        parts += [page.picture(check.plot(), alt=alt)]
        parts += [page.table(check.table, label=f"Statistics of {name} among those of new data")]
        parts += [element("p", note, class_="quiet") for note in check.notes]
    text = (
        "Would the fitted model make such data? A statistic of the data far from those of new "
        "data speaks against the model, whatever the verdict on the fit."
    )
    return page.section("Predictive check", element("p", text), *parts) if parts else None


def _model(fit: Fit) -> Section:
    import pandas as pd

    posterior = fit.posterior
    with pyro.validation_enabled(False):  # of a model that gives NaN, too
        trace = _trace(posterior)
        parameters = posterior.parameters
    rows = {
        name: {
            "role": _role(site),
            "distribution": _distribution(site["fn"]),
            "shape": _shape(site["value"]),
            "plates": ", ".join(frame.name for frame in site["cond_indep_stack"]),
        }
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }
    rows |= {
        name: {"role": "parameter", "distribution": "", "shape": _shape(value), "plates": ""}
        for name, value in parameters.items()
    }
    joint = posterior.log_joint
    why = f" ({joint.why})" if joint.why else ""
    text = f"{name_of(posterior)}, as a log joint that is {joint.mode}{why}."
    if joint.stochastic:
        text += " It is random: subsampled, or with random numbers of its own."
    table = page.table(pd.DataFrame.from_dict(rows, orient="index"), label="Sites of the model")
    return page.section("Model", element("p", text), element("div", table, class_="texts"))


def _cost(fit: Fit) -> Section:
    import pandas as pd

    cost = fit.posterior.cost
    stages = {
        name.removeprefix("seconds_").replace("_", " "): seconds
        for name, seconds in cost.items()
        if name.startswith("seconds_")
    }
    text = (
        f"{int(cost['gradients']):,} gradients of the log joint, {fit.posterior.report.steps:,} "
        f"steps, {cost['seconds']:.1f} s."
    )
    frame = pd.DataFrame({"seconds": {k: f"{seconds:.2f}" for k, seconds in stages.items()}})
    table = page.table(frame, label="Seconds by stage") if stages else None
    return page.section("Cost", element("p", text), table)


def _how_to_reproduce(fit: Fit) -> Section:
    posterior = fit.posterior
    guide = posterior.guide
    given = [_described(value) for value in posterior.args]
    given += [f"{key}={_described(value)}" for key, value in posterior.kwargs.items()]
    options = [f"{name}={value!r}" for name, value in posterior.report.settings.items()]
    options.append(f"seed={posterior.seed}")
    if isinstance(guide, AutoFlow) and guide.flow_name not in (None, "default"):
        options.insert(0, f"flow={guide.flow_name!r}")
    if not isinstance(guide, AutoFlow):
        options.insert(0, f"guide={type(guide).__name__}({name_of(posterior)})")
    if posterior.report.stop_reason == NOT_TRAINED:
        given = [name_of(posterior), type(guide).__name__, *given, f"seed={posterior.seed}"]
        call = f"assess({', '.join(given)})"
    else:
        call = f"FlowVI({name_of(posterior)}, {', '.join(options)}).run({', '.join(given)})"
    parameter = next(guide.parameters())
    versions = {"pyro_flows": __version__, "Python": platform.python_version()}
    versions |= {package: _version(package) for package in PACKAGES}
    text = (
        "With the same versions, machine, number of threads and default dtype, and the same start "
        "(init_loc_fn), guide or flow where one was given, the same call gives the same numbers, "
        "bit for bit."
    )
    on = f"{posterior.pool.z.shape[1]:,} unconstrained dimensions, {parameter.dtype}, on "
    on += f"{parameter.device}. "
    on += ", ".join(f"{name} {version}" for name, version in versions.items()) + "."
    return page.section(
        "How to reproduce",
        page.code(f"posterior = {call}"),
        element("p", text),
        element("p", on.replace("torch.", "", 1), class_="quiet"),
    )


SECTIONS: tuple[Callable[[Fit], Section | None], ...] = (
    _summary,
    _training,
    _weights,
    _intervals,
    _pairs,
    _predictive_check,
    _model,
    _cost,
    _how_to_reproduce,
)


# What they are made of.


def _trace(posterior: Posterior) -> Any:
    """One run of the model, as it was fitted."""
    return structure.trace_model(posterior.guide.model, *posterior.args, **posterior.kwargs)


def _affordable(posterior: Posterior) -> int:
    """As many draws as can be handed over without making more."""
    from pyro_flows.inference.posterior import LEAST_INSIDE, POOL_PER_DRAW

    weights = posterior.weights
    inside = 1 - (weights.n_zero + weights.n_invalid) / weights.n
    most = len(posterior.pool) * (max(inside, LEAST_INSIDE) / 1.1 if inside < 1 else 1)
    return max(1, min(DRAWS, int(most / (POOL_PER_DRAW if posterior.corrected else 1))))


def as_arrays(values: Mapping[str, Any]) -> Arrays:
    """Tensors or other arrays by name, as numpy arrays."""
    return {
        name: value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        for name, value in values.items()
    }


def name_of(posterior: Posterior) -> str:
    """What the model is called."""
    model = posterior.log_joint.model
    return str(getattr(model, "__name__", None) or type(model).__name__)


def _role(site: Any) -> str:
    if type(site["fn"]).__name__ == "Unit":
        return "factor"
    if (site["infer"] or {}).get("_deterministic"):
        return "deterministic"
    if structure.is_enumerated(site):
        return "latent, summed out"
    return "observed" if site["is_observed"] else "latent"


def _distribution(fn: Any) -> str:
    while hasattr(fn, "base_dist") and type(fn).__name__ in ("Independent", "MaskedDistribution"):
        fn = fn.base_dist
    return type(fn).__name__


def _shape(value: Any) -> str:
    if not isinstance(value, Tensor):
        return type(value).__name__
    return " × ".join(map(str, value.shape)) or "scalar"


def _described(value: Any) -> str:
    """An argument as a reader of the page can recognise it."""
    if isinstance(value, (Tensor, np.ndarray)):
        kind = str(value.dtype).removeprefix("torch.")
        return f"<{kind}[{', '.join(map(str, value.shape))}]>"
    text = repr(value)
    return text if len(text) <= 40 else f"<{type(value).__name__}>"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
