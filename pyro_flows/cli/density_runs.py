# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""What ``pyro-flows density`` does: fit, score, sample."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_flows.cli import folder as folders
from pyro_flows.cli.console import DONE, INTERRUPTED, Console
from pyro_flows.cli.options import joined, value_of
from pyro_flows.cli.rows import Rows, as_rows, check_output, write_columns
from pyro_flows.cli.tables import read_rows
from pyro_flows.errors import DataError, OptionError, SavedDensityError

if TYPE_CHECKING:
    from pyro_flows.density import FlowDensity


def fit(args: argparse.Namespace, console: Console) -> int:
    """Fit, print, write."""
    target = args.output or Path(f"{args.data.stem}_density")
    folders.check_free(target, "density")
    table = read_rows(args.data)
    context_names = joined(args.context_columns)
    all_names = _all_names(table)
    wanted = joined(args.columns) or [n for n in all_names if n not in context_names]
    both = sorted({*wanted} & {*context_names})
    if both or not wanted:
        raise OptionError(
            f"Expected other columns for the density than for its context, but got "
            f"{', '.join(both) or 'none'}. A column is one or the other."
        )
    rows = as_rows(table, wanted, args.data)
    context = as_rows(table, context_names, args.data) if context_names else None
    from pyro_flows.density import FlowDensity

    _check_device(args.device)
    given = f" given {', '.join(context_names)}" if context_names else ""
    console.note(f"Fitting the density of {', '.join(wanted)}{given} to {len(rows)} rows")
    density = FlowDensity(
        args.flow,
        support=_support(args.support, wanted, named=rows.named),
        seed=args.seed,
        flow_options={name: value_of(text) for name, text in args.flow_option} or None,
        num_steps=args.num_steps,
        max_epochs=args.max_epochs,
        max_seconds=args.max_seconds,
        dtype=args.dtype,
        device=args.device,
        checkpoint=args.checkpoint,
        progress=console.progress,
    )
    with folders.threads(args.threads, rows.values.size):
        density.fit(rows.values, None if context is None else context.values)
    console.say(
        f"Mean log density of the rows held out: {density.best_score_:.4f} ± "
        f"{density.best_score_se_:.4f} nats\n"
        f"Cost: {density.n_steps_} steps, {density.seconds_:.1f} s\n"
        f"Stopped: {density.stop_reason_}"
    )
    interrupted = "interrupted" in density.stop_reason_
    target = folders.for_interrupted(target) if interrupted else target
    _write(density, target, args, wanted, context_names)
    console.say(f"Wrote {target}/ with density, density.png.")
    code = INTERRUPTED if interrupted else DONE
    console.give(
        {
            "log_density": density.best_score_,
            "log_density_se": density.best_score_se_,
            "columns": wanted,
            "context_columns": context_names,
            "steps": density.n_steps_,
            "seconds": density.seconds_,
            "stopped": density.stop_reason_,
            "written": str(target),
            "exit_code": code,
        }
    )
    return code


def _write(
    density: FlowDensity,
    target: Path,
    args: argparse.Namespace,
    columns: list[str],
    context_columns: list[str],
) -> None:
    target.mkdir(parents=True, exist_ok=True)
    facts = {"data": str(args.data), "columns": columns, "context_columns": context_columns}
    folders.write_marker(target, "density", **facts)
    density.save(target / "density")
    with folders.replacing(target / "density.png") as draft:
        density.plot().savefig(draft)


def score(args: argparse.Namespace, console: Console) -> int:
    """Score rows; the scores to a file or to standard output."""
    check_output(args.output)
    density, columns, context_columns = _load(args.folder)
    table = read_rows(args.data)
    rows, context, unused = _as_fitted(density, table, columns, context_columns, args.data)
    if unused:
        console.note(f"Not used: {', '.join(unused)}")
    values = density.score_samples(rows.values, None if context is None else context.values)
    facts = _summary(values)
    summary = (
        f"Mean log density of {facts['rows']} rows: {facts['mean']:.4f} ± {facts['se']:.4f} nats; "
        f"lowest {facts['lowest']:.4f} (row {facts['lowest_row']})"
    )
    if facts["outside"]:
        summary += f"; {facts['outside']} outside the support, not counted in the mean"
    if args.output:
        write_columns(args.output, {"log_density": values}, console)
        console.say(f"{summary}\nWrote {args.output}.")
    elif not args.json:
        write_columns(None, {"log_density": values}, console)
        console.note(summary)
    console.give({**facts, **({} if args.output else {"log_density": values})})
    return DONE


def _summary(values: Any) -> dict[str, Any]:
    """Mean over the rows inside the support, its standard error, and the strangest row."""
    import numpy as np

    inside = values[np.isfinite(values)]
    count = len(inside)
    return {
        "rows": len(values),
        "mean": float(inside.mean()) if count else float("nan"),
        "se": float(inside.std(ddof=1) / count**0.5) if count > 1 else float("nan"),
        "lowest": float(values.min()),
        "lowest_row": int(values.argmin()) + 1,
        "outside": len(values) - count,
    }


def sample(args: argparse.Namespace, console: Console) -> int:
    """Draw rows, to a file or to standard output."""
    import numpy as np

    check_output(args.output)
    density, columns, context_columns = _load(args.folder)
    context = None
    if density.n_context_in_:
        if args.context is None:
            raise OptionError(
                f"The density in {args.folder} is one given {', '.join(context_columns)}. Say "
                "--context FILE, with rows of those columns."
            )
        table = read_rows(args.context)
        context = _context_rows(table, context_columns, args.context)
    elif args.context is not None:
        raise OptionError(
            f"The density in {args.folder} has no context. Leave --context out, or fit one with "
            "--context-columns."
        )
    given = None if context is None else context.values
    drawn = np.asarray(density.sample(args.n, given, seed=args.seed))
    if args.output and args.output.suffix.lower() == ".npy":
        write_columns(args.output, {"": drawn}, console)
    else:
        made = {}
        if context is not None:  # each row of it with all its draws, in order
            repeated = np.repeat(np.asarray(context.values), args.n, axis=0)
            made = dict(zip(context_columns, repeated.T, strict=True))
            drawn = drawn.swapaxes(0, 1).reshape(-1, drawn.shape[-1])
        made.update(zip(columns, drawn.T, strict=True))
        write_columns(args.output, made, console)
    if args.output:
        console.say(f"Wrote {args.output}.")
    return DONE


def _load(folder: Path) -> tuple[FlowDensity, list[str], list[str]]:
    """A density with the names of its columns and of its context's."""
    from pyro_flows.density import FlowDensity

    if (folder / folders.MARKER).is_file():
        facts = folders.read_marker(folder)
        if facts.get("kind") == "density":
            density = FlowDensity.load(folder / "density")
            return density, list(facts["columns"]), list(facts["context_columns"])
    if not (folder / "density.json").is_file():
        raise SavedDensityError(
            f"Expected the folder of a density fit at {folder}, but it "
            f"{'is something else' if folder.exists() else 'does not exist'}. Check the path."
        )
    density = FlowDensity.load(folder)
    columns = getattr(density, "feature_names_in_", None)
    context = density.units_.context_names
    dim, context_dim = density.n_features_in_, density.n_context_in_
    return (
        density,
        list(columns or map(str, range(dim))),
        list(context or map(str, range(dim, dim + context_dim))),
    )


def _as_fitted(
    density: FlowDensity, table: Any, columns: list[str], context_columns: list[str], path: Path
) -> tuple[Rows, Rows | None, list[str]]:
    """The columns that a density was fitted to, its context, and what is left."""
    here = _all_names(table)
    named = hasattr(table, "columns")
    was_named = getattr(density, "feature_names_in_", None) is not None
    if named and not was_named:
        raise DataError(
            f"The density was fitted to columns without names, but {path} has names. Pass the "
            "rows as .npy."
        )
    if was_named and not named:
        raise DataError(
            f"The density was fitted to the columns {', '.join(columns)}, but {path} has no "
            "names. Pass a table with names, such as CSV."
        )
    rows = as_rows(table, columns, path)
    context = as_rows(table, context_columns, path) if context_columns else None
    return rows, context, [n for n in here if n not in {*columns, *context_columns}]


def _context_rows(table: Any, columns: list[str], path: Path) -> Rows:
    """Rows of context: by name, or all columns of an array."""
    if not hasattr(table, "columns") and table.shape[1] == len(columns):
        columns = [str(i) for i in range(len(columns))]
    return as_rows(table, columns, path)


def _all_names(table: Any) -> list[str]:
    if hasattr(table, "columns"):
        return list(table.columns)
    return [str(i) for i in range(table.shape[1])]


def _check_device(device: str | None) -> None:
    with folders.precision("float32", device):
        pass


def _support(words: list[str], columns: list[str], *, named: bool) -> Any:
    """``--support`` as FlowDensity takes it: one for all, or a dict by name or number."""
    if not words:
        return None
    parted = [word.rpartition("=") for word in words]
    if len(words) == 1 and not parted[0][1]:
        return _bounds(words[0])
    found: dict[str | int, Any] = {}
    for column, mark, bounds in parted:
        if not mark or column not in columns:
            raise OptionError(
                f"Expected --support COLUMN=BOUNDS with one of the columns {', '.join(columns)}, "
                f"but got {column + mark + bounds!r}. Several go by column."
            )
        found[column if named else columns.index(column)] = _bounds(bounds)
    return found


def _bounds(text: str) -> Any:
    if text in ("positive", "negative", "unit"):
        return text
    try:
        low, high = (float(part) if part.strip() else None for part in text.split(","))
    except ValueError:
        raise OptionError(
            "Expected --support to be positive, negative, unit, or LOW,HIGH, but got "
            f"{text!r}. Either end may be empty, as in '0,'."
        ) from None
    return low, high
