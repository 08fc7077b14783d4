# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""``pyro-flows check``: whether what is installed works here, a line for each thing tried."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import math
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyro_flows._version import __version__
from pyro_flows.cli import folder as folders
from pyro_flows.cli.console import DONE, WRONG, Console
from pyro_flows.cli.options import Commands, add_command, add_json, add_messages

if TYPE_CHECKING:
    from pyro_flows.inference import Posterior

PACKAGES = {
    "torch": "torch",
    "pyro": "pyro-ppl",
    "arviz": "arviz",
    "numpy": "numpy",
    "pandas": "pandas",
    "xarray": "xarray",
    "matplotlib": "matplotlib",
    "h5netcdf": "h5netcdf",
}

HELP = """
Try whether the installation works: a self-test of about ten seconds.

Prints a line for each thing: "ok", "FAILED" with the reason, or "none" for
what is optional and isn't here. Versions first, then the machine, then a tiny
fit that has an exact answer, which is saved, loaded, exported and drawn, and a
tiny density. Writes nothing but files in a temporary folder, which it removes.

The exit code is 1 if anything FAILED, else 0.

examples:
  pyro-flows check
  pyro-flows check --json > check.json    to go with a bug report
"""


class NotHere(Exception):
    """Something optional that isn't installed; no failure."""


class _Wrong(Exception):
    """A check had another result than it should."""


def add(commands: Commands) -> None:
    """Add ``check`` to the program."""
    parser = add_command(commands, "check", "test the installation", HELP)
    parser.set_defaults(run=run)
    add_json(parser)
    add_messages(parser)


def run(args: argparse.Namespace, console: Console) -> int:
    """Try one thing after another, and say how each went."""
    started, results = time.perf_counter(), []

    def tried(name: str, test: Callable[[], str]) -> None:
        try:
            state, text = "ok", test()
        except NotHere as error:
            state, text = "none", str(error)
        except Exception as error:  # whatever it is, the next check may still work
            if args.traceback:
                raise
            first = (str(error).strip().splitlines() or [""])[0]
            kind = "" if isinstance(error, _Wrong) else f"{type(error).__name__}: "
            state, text = "FAILED", f"{kind}{first}"
        results.append({"check": name, "state": state, "text": text})
        console.say(f"{state:<7} {name:<12} {text}")

    tried("python", lambda: f"{platform.python_version()} on {platform.platform(terse=True)}")
    tried("pyro_flows", lambda: __version__)
    for name, package in PACKAGES.items():
        tried(name, lambda name=name, package=package: _version(name, package))  # type: ignore[misc]
    tried("accelerator", _accelerators)
    tried("compiler", _compiler)
    tried("parquet", _parquet)
    with tempfile.TemporaryDirectory() as name, folders.precision("float64", None):
        work = _Work(Path(name))
        for title, test in (
            ("fit", work.fit),
            ("save, load", work.save),
            ("netCDF", work.netcdf),
            ("picture", work.picture),
            ("report", work.report),
            ("density", work.density),
        ):
            tried(title, test)
    failed = sum(result["state"] == "FAILED" for result in results)
    seconds = time.perf_counter() - started
    console.say(f"{failed} of {len(results)} FAILED" if failed else "All is well", end="")
    console.say(f" ({seconds:.0f} s).")
    console.give({"checks": results, "failed": failed, "seconds": seconds})
    return WRONG if failed else DONE


def _version(name: str, package: str) -> str:
    importlib.import_module(name)
    return importlib.metadata.version(package)


def _accelerators() -> str:
    import torch

    if torch.cuda.is_available():
        count = torch.cuda.device_count()
        return ", ".join(f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(count))
    if torch.backends.mps.is_available():
        return "mps"
    raise NotHere("the CPU does all the work")


def _compiler() -> str:
    wanted = os.environ.get("CXX")
    for name in [wanted] if wanted else ["g++", "clang++", "c++", "cl"]:
        found = shutil.which(name)
        if found:
            return f"{found}, for compile=True"
    raise NotHere("no C++ compiler: compile=True won't work, all else does")


def _parquet() -> str:
    if importlib.util.find_spec("pyarrow") is None:
        raise NotHere("pip install 'pyro-flows[parquet]' to read and write parquet")
    return f"pyarrow {importlib.metadata.version('pyarrow')}"


class _Work:
    """The things to try in order, each on what those before it made."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._posterior: Posterior | None = None

    def fit(self) -> str:
        import torch

        from pyro_flows.inference import FlowVI

        started = time.perf_counter()
        y = torch.tensor([1.0, 2.0, 4.5], device="cpu")
        posterior = FlowVI(_model, progress=False).run(y)
        mean, sd = 7.5 / (3 + 0.01), 1 / math.sqrt(3 + 0.01)
        draws = posterior.draws(4000)["mean"]
        off, ratio = float(draws.mean() - mean) / sd, float(draws.std()) / sd
        if abs(off) > 0.1 or abs(ratio - 1) > 0.1:
            raise _Wrong(f"mean {off:+.2f} sd off, sd {ratio:.2f} times the exact one")
        self._posterior = posterior
        seconds = time.perf_counter() - started
        return f"{posterior.verdict.status}, agrees with the exact answer, {seconds:.1f} s"

    @property
    def posterior(self) -> Posterior:
        if self._posterior is None:
            raise _Wrong("there is no fit to try it on")
        return self._posterior

    def save(self) -> str:
        from pyro_flows.inference import Posterior

        path = self.posterior.save(self.folder / "posterior")
        again = Posterior.load(path, model=_model)
        if not bool((again.draws(100)["mean"] == self.posterior.draws(100)["mean"]).all()):
            raise _Wrong("other draws came back")
        return "the same draws come back"

    def netcdf(self) -> str:
        from pyro_flows.diagnostics import arviz_major, group_dataset, load_netcdf, save_netcdf

        path = save_netcdf(self.posterior.to_arviz(100), self.folder / "posterior.nc")
        found = group_dataset(load_netcdf(path), "posterior")["mean"].shape
        if found != (1, 100):
            raise _Wrong(f"draws of shape (1, 100) came back as {found}")
        kind = "DataTree" if arviz_major() else "InferenceData"
        return f"a file for ArviZ, read back as {kind}"

    def picture(self) -> str:
        path = self.folder / "picture.png"
        self.posterior.plot().savefig(path)
        return f"{path.stat().st_size // 1000} kB"

    def report(self) -> str:
        path = self.posterior.write_report(self.folder / "report.html")
        return f"{path.stat().st_size // 1000} kB"

    def density(self) -> str:
        import numpy as np

        from pyro_flows.density import FlowDensity

        rows = np.random.default_rng(0).normal(size=(500, 2))
        density = FlowDensity("realnvp", num_steps=20, progress=False).fit(rows)
        score = density.score(rows)
        exact = float(-0.5 * (rows**2).sum(-1).mean() - math.log(2 * math.pi))
        if abs(score - exact) > 0.3:
            raise _Wrong(f"{score:.2f} nats a row, where the exact density has {exact:.2f}")
        return f"{score:.2f} nats a row, where the exact density has {exact:.2f}"


def _model(y: Any) -> None:
    """A mean with a normal prior, whose posterior is known."""
    import pyro
    import pyro.distributions as dist

    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
