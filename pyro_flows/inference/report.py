# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""A posterior as one page of HTML: the verdict first, then what it rests on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pyro_flows._version import __version__
from pyro_flows.diagnostics import page
from pyro_flows.diagnostics.merit import figures_of_merit
from pyro_flows.diagnostics.page import Html, Section, element
from pyro_flows.errors import OptionError
from pyro_flows.inference.randomness import seeded
from pyro_flows.inference.report_sections import (
    DRAWS,
    SECTIONS,
    Arrays,
    Fit,
    as_arrays,
    name_of,
)
from pyro_flows.training.folders import free_name

if TYPE_CHECKING:
    from pyro_flows.inference.posterior import Posterior


def write_report(
    posterior: Posterior, path: str | Path, *, reference: Any = None, title: str | None = None
) -> Path:
    """See :meth:`Posterior.write_report`."""
    # What a link points to is replaced, not the link.
    target = Path(path).expanduser().resolve()
    if target.exists() and not target.is_file():
        raise OptionError(
            f"Expected the name of a file for the report, but {target} is something else. Choose "
            "another name, such as report.html."
        )
    text = _compose(Fit(posterior, _draws_of(reference)), title)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = free_name(target, ".partial")
    try:
        draft.write_text(text, encoding="utf-8", errors="xmlcharrefreplace", newline="\n")
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def _compose(fit: Fit, title: str | None) -> str:
    posterior = fit.posterior
    name = title or f"Posterior of {name_of(posterior)}"
    verdict = page.verdict(posterior.verdict.status, posterior.verdict.reasons, _todo(posterior))
    merit = figures_of_merit(posterior.weights, ess=posterior.ess, remark=posterior._relative())
    top = Html(verdict + page.facts(merit))
    # Draws may be NaN or infinite, which the page shows.
    quiet = np.errstate(all="ignore")
    with seeded(posterior.seed), posterior.under_model_state(), quiet:
        made = [_made(make, fit) for make in SECTIONS]
    written = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    foot = f"Written by pyro_flows {__version__}, {written}."
    return page.document(name, top, [one for one in made if one is not None], foot=foot)


def _made(make: Callable[[Fit], Section | None], fit: Fit) -> Section | None:
    """A section, or why there is none: a report of a broken fit is wanted most of all."""
    try:
        return make(fit)
    except Exception as error:  # noqa: BLE001 (models and references are any code and numbers)
        title = make.__name__.strip("_").replace("_", " ").capitalize()
        text = f"This section could not be made ({type(error).__name__}: {error})."
        return page.section(title, element("p", text))


# Above the sections.


def _todo(posterior: Posterior) -> list[str]:
    """Advice, as markup and sentences."""
    verdict = posterior.verdict
    if verdict.status == "not reliable":
        todo: list[str] = ["Don't report these draws. Try, in this order:"]
        todo.append(page.bullets(*verdict.advice, ordered=True))
    else:
        use = element(
            "p",
            "Use the draws: ",
            element("code", "posterior.draws(4000)"),
            " by site, ",
            element("code", "posterior.summary()"),
            " as a table, ",
            element("code", "posterior.to_arviz()"),
            " for ArviZ, ",
            element("code", "posterior.predict(...)"),
            " for new data.",
        )
        todo = [use]
        if posterior.corrected:
            todo.append("They are resampled by their weights already: don't weight them again.")
        todo += [page.bullets(*verdict.advice)] if verdict.advice else []
    anchors = getattr(verdict, "anchors", ())
    if anchors:
        pages = ", ".join(f"#{anchor}" for anchor in anchors)
        where = f"More about this: docs/explanation/warnings.md, sections {pages}."
        todo.append(element("p", where, class_="quiet"))
    return todo


def _draws_of(reference: Any) -> Arrays | None:
    """Draws by site, chains joined, of a dict, a posterior, Pyro's MCMC or an ArviZ object."""
    if reference is None:
        return None
    if isinstance(reference, Mapping) and not hasattr(reference, "posterior"):
        return as_arrays(reference)
    if hasattr(reference, "get_samples"):
        return as_arrays(reference.get_samples())
    if hasattr(reference, "posterior"):
        group = reference.posterior
        return {
            str(name): np.asarray(group[name]).reshape(-1, *group[name].shape[2:])
            for name in group.data_vars
        }
    if callable(getattr(reference, "draws", None)):
        return as_arrays(reference.draws(DRAWS))
    raise OptionError(
        "Expected the reference as draws by site, a posterior, an MCMC that was run, or an ArviZ "
        f"object with a group 'posterior', but got {type(reference).__name__}. Pass a dict such "
        "as mcmc.get_samples()."
    )
