# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What comes out of a fit: on the screen, as JSON, and in its folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_flows.cli import folder as folders
from pyro_flows.cli.console import DONE, INTERRUPTED, NOT_RELIABLE, WRONG, Console

if TYPE_CHECKING:
    from pyro_flows.inference import Posterior

SHOWN = 40


def shown(table: Any) -> str:
    """The table for a screen: remarks below it, each once, and the middle of a long one cut."""
    remarks = table.pop("note") if "note" in table else {}
    text: str = table.to_string(max_rows=SHOWN)
    rows: dict[str, list[str]] = {}
    for row, remark in remarks.items():
        if remark:
            rows.setdefault(remark, []).append(str(row))
    for remark, where in rows.items():
        more = f" and {len(where) - 5} more" if len(where) > 5 else ""
        text += f"\n{', '.join(where[:5])}{more}: {remark}"
    return text


def write_all(
    posterior: Posterior, target: Path, console: Console, *, draws: int, facts: dict[str, Any]
) -> dict[str, bool]:
    """Write all there is; what fails is said, and doesn't keep the rest from being written.

    Args:
        posterior: the fit.
        target: the folder.
        console: where failures are said.
        draws: how many ArviZ gets.
        facts: what was fitted to what.

    Returns:
        What was to be written, and whether it was.
    """
    from pyro_flows.diagnostics import save_netcdf

    target.mkdir(parents=True, exist_ok=True)
    folders.write_marker(target, "posterior", **facts, verdict=posterior.verdict.status)

    def netcdf() -> None:
        with folders.replacing(target / "posterior.nc") as draft:
            save_netcdf(posterior.to_arviz(draws), draft)

    def summary() -> None:
        text = posterior.summary(decimals=None).to_csv()
        folders.write_text(target / "summary.csv", text)

    steps: dict[str, Callable[[], object]] = {
        "posterior": lambda: posterior.save(target / "posterior"),
        "summary.csv": summary,
        "posterior.nc": netcdf,
        "report.html": lambda: posterior.write_report(target / "report.html"),
    }
    return {name: _tried(target / name, step, console) for name, step in steps.items()}


def _tried(path: Path, step: Callable[[], object], console: Console) -> bool:
    try:
        step()
    except Exception as error:  # the rest is still worth having
        if path.is_dir():  # an earlier fit's would pass for this one's
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        text = str(error) or type(error).__name__
        console.error(f"{path} could not be written: {text}")
        return False
    return True


def say_where(target: Path, made: dict[str, bool], console: Console, *, show: bool) -> None:
    """Say what was written, and where; ``show`` the page if there is one."""
    written = [name for name, good in made.items() if good]
    console.say(f"Wrote {target}/ with {', '.join(written)}.")
    page = target / "report.html"
    if made["report.html"] and show:
        open_page(page, console)
    elif made["report.html"]:
        console.note(f"Open {page} in a browser.")


def open_page(path: Path, console: Console) -> None:
    """Open a page in the user's browser, or say that there is none."""
    import webbrowser

    if not webbrowser.open(path.resolve().as_uri()):
        console.note(f"No browser was found; open {path} yourself.")


def exit_code(posterior: Posterior, made: dict[str, bool]) -> int:
    """How the fit went, as the program ends."""
    if posterior.report.interrupted:
        return INTERRUPTED
    if not all(made.values()):
        return WRONG
    return NOT_RELIABLE if posterior.verdict.status == "not reliable" else DONE


def as_json(
    posterior: Posterior, target: Path, made: dict[str, bool], code: int
) -> dict[str, Any]:
    """The same for programs."""
    verdict = posterior.verdict
    table = posterior.summary(decimals=None)
    return {
        "verdict": verdict.status,
        "reasons": verdict.reasons,
        "advice": verdict.advice,
        "elbo": posterior.elbo,
        "elbo_se": posterior.elbo_se,
        "log_evidence": posterior.log_evidence,
        "log_evidence_se": posterior.log_evidence_se,
        "khat": posterior.khat,
        "gradients": posterior.cost["gradients"],
        "seconds": posterior.cost["seconds"],
        "stopped": posterior.report.stop_reason,
        "summary": table.to_dict(orient="index"),
        "written": {name: str(target / name) for name, good in made.items() if good},
        "exit_code": code,
    }
