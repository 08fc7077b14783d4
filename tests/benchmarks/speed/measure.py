# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Workers, and the turns they take: one works at a time, all in each round."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from plan import Entry, Group

Row = dict[str, Any]
HERE = Path(__file__).parent


class Left(Exception):
    """A worker that isn't there any more; the text says why."""


class Worker:
    """A process that builds a contender and takes its steps."""

    def __init__(self, python: str, spec: dict[str, Any]) -> None:
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.cache = tempfile.TemporaryDirectory()
        self.process = subprocess.Popen(
            [python, str(HERE / "worker.py"), json.dumps(spec | {"started": time.time()})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=_environment(spec["threads"], self.cache.name),
        )
        self.facts: dict[str, Any] = {}
        self.memory = math.nan

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        try:  # it ends when its input does, and what it started ends with it
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
        self.log.close()
        self.cache.cleanup()

    def answer(self) -> dict[str, Any]:
        """The next one; waits for it."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            said = self.log.read().strip()
            print(said, file=sys.stderr)
            raise Left(said.splitlines()[-1] if said else "it ended without a word")
        found = json.loads(line)
        if "left_out" in found:
            raise Left(found["left_out"])
        self.facts |= found["facts"]
        self.memory = found["memory"]
        return found

    def seconds(self, steps: int) -> float:
        """How long so many steps take."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # answer() says why
        return float(self.answer()["seconds"])


def _environment(threads: int, cache: str) -> dict[str, str]:
    """As many threads everywhere, and nothing compiled by an earlier process."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    ours = {name: str(threads) for name in names}
    ours |= {"JAX_PLATFORMS": "cpu", "TORCHINDUCTOR_CACHE_DIR": cache}
    if threads == 1:
        ours["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return {**os.environ, **ours}


def batch_size(worker: Worker, seconds: float) -> int:
    """How many steps take about so long."""
    steps = 1
    while (taken := worker.seconds(steps)) < seconds / 4:
        steps = min(10 * steps, math.ceil(steps * seconds / taken))
    return max(1, round(steps * seconds / taken))


def steps(
    specs: dict[Entry, dict[str, Any]], pythons: dict[Entry, str], rounds: int, seconds: float
) -> Iterator[Row]:
    """A row for each contender of a case: they take turns, a batch of steps each."""
    with ExitStack() as stack:
        rows: dict[Entry, Row] = {}
        workers: dict[Entry, Worker] = {}
        for entry, spec in specs.items():
            worker = stack.enter_context(Worker(pythons[entry], spec))
            try:
                rows[entry] = begun(worker) | {"batch": batch_size(worker, seconds), "seconds": []}
                workers[entry] = worker
            except Left as reason:
                yield {"contender": entry.name, "left_out": str(reason)}
        for _ in range(rounds):
            for entry in list(workers):
                row, worker = rows[entry], workers[entry]
                try:
                    row["seconds"].append(worker.seconds(row["batch"]) / row["batch"])
                except Left as reason:
                    del workers[entry]
                    yield {"contender": entry.name, "left_out": str(reason)}
        for entry, worker in workers.items():
            found = {"facts": worker.facts, "memory_mb": worker.memory}
            yield {"contender": entry.name, **rows[entry], **found}


def begun(worker: Worker) -> Row:
    """What it takes to get to the first result."""
    built = worker.answer()
    return {
        "start_seconds": built["start"],
        "build_seconds": built["build"],
        "start_memory_mb": built["memory"],
        "first_seconds": worker.seconds(1),
        "versions": built["versions"],
    }


def whole(
    specs: dict[Entry, dict[str, Any]], pythons: dict[Entry, str], rounds: int
) -> Iterator[Row]:
    """A row for each contender and round: a run in a fresh process, and one more after it."""
    entries = list(specs)
    for number in range(rounds):
        for entry in list(entries):
            try:
                with Worker(pythons[entry], specs[entry] | {"round": number}) as worker:
                    row = {"contender": entry.name, "round": number, **begun(worker)}
                    row["first_facts"] = dict(worker.facts)
                    row["seconds"] = [worker.seconds(1)]
                    yield {**row, "facts": worker.facts, "memory_mb": worker.memory}
            except Left as reason:
                entries.remove(entry)
                yield {"contender": entry.name, "round": number, "left_out": str(reason)}


def measured(
    group: Group, specs: dict[Entry, dict[str, Any]], pythons: dict[Entry, str], args: Any
) -> Iterator[Row]:
    """The rows of a case."""
    if group.whole:
        yield from whole(specs, pythons, args.fits)
    else:
        yield from steps(specs, pythons, args.rounds, args.seconds)
