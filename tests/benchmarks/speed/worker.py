# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""One contender in a process of its own: builds it, then takes as many steps as each line asks.

Started by measure.py with a JSON spec. Answers are JSON lines on standard output, on which nobody
else writes: what libraries print goes to standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import resource
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from contender import Contender, LeftOut, Spec

PACKAGES = (
    *("pyro_flows", "torch", "pyro-ppl", "zuko", "nflows", "normflows"),
    *("jax", "numpyro", "flowjax", "numpy"),
)


def main() -> None:
    """Builds the contender and serves it until standard input ends."""
    spec: Spec = json.loads(sys.argv[1])
    if hasattr(os, "sched_setaffinity"):
        # Not every library can be told a number of threads; all of them are held to the cores.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-spec["threads"] :])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(**answer: Any) -> None:
        print(json.dumps(answer), file=answers, flush=True)

    # What sampling_speed.py measures, is measured by its own code.
    sys.path.append(str(Path(__file__).parent.parent))
    try:
        module = importlib.import_module(spec["module"])
        _prepare_torch(spec["threads"])
        start, began = time.time() - spec["started"], time.perf_counter()
        contender: Contender = module.CONTENDERS[spec["group"], spec["contender"]](spec)
        build = time.perf_counter() - began
    except ModuleNotFoundError as error:
        say(left_out=f"{error.name} isn't installed")
        return
    except LeftOut as error:
        say(left_out=str(error))
        return
    say(start=start, build=build, facts=contender.facts, versions=_versions(), memory=_memory())
    for line in sys.stdin:
        began = time.perf_counter()
        contender.steps(int(line))
        seconds = time.perf_counter() - began
        memory = _memory()  # before judging, which may take more
        say(seconds=seconds, memory=memory, facts=contender.judge())


def _prepare_torch(threads: int) -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(threads)
        torch.manual_seed(0)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _memory() -> float:
    """The most memory so far, in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


if __name__ == "__main__":
    main()
