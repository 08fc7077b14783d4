# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The machine that figures come from, and the separate environment of the JAX peers."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any


def jax_python(folder: Path) -> str | None:
    """The interpreter of the JAX peers' environment, which is made if it isn't there yet.

    It is apart, so that their wishes for versions don't touch those of torch.

    Returns:
        None if it can't be made.
    """
    python = folder / "bin" / "python"
    if not _has_peers(python):
        print(f"Making an environment for NumPyro and flowjax in {folder}.", flush=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
            install = [str(python), "-m", "pip", "install", "--quiet", "numpyro", "flowjax"]
            subprocess.run(install, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"NumPyro and flowjax are left out, since that failed: {error}", flush=True)
            return None
    return str(python)


def _has_peers(python: Path) -> bool:
    if not python.exists():
        return False
    command = [str(python), "-c", "import numpyro, flowjax"]
    return subprocess.run(command, capture_output=True).returncode == 0


def default_folder() -> Path:
    """Where that environment is, unless told otherwise: in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "pyro_flows" / "speed_jax"


def machine() -> dict[str, Any]:
    """Says where the figures come from, and how busy it was."""
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
