# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Run Pyro's own tests on our guide and layers: ``run.py PATH_TO_PYRO [pytest's arguments]``.

Its tests of guides run on ``AutoFlow`` (autoflow_plugin.py), its tests of transforms on every
layer of the catalogue (layers.py).

The tests come from a checkout of Pyro's repository and run against the Pyro that is installed,
with Pyro's own settings: float64, warnings as errors. A temporary folder with links to the
checkout's ``tests`` and ``setup.cfg`` keeps the checkout's ``pyro`` folder off the path.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TESTS = (
    "tests/infer/test_autoguide.py",
    "tests/infer/reparam/test_neutra.py",
    "tests/infer/autoguide/test_inference.py",
    "layers.py",
)


def main() -> int:
    """Run the tests; returns pytest's exit status."""
    if len(sys.argv) < 2 or not (Path(sys.argv[1]) / TESTS[0]).is_file():
        print("Expected the path of a checkout of Pyro's repository: run.py PATH_TO_PYRO")
        return 2
    checkout = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory(prefix="pyro_conformance_") as folder:
        for name in ("tests", "setup.cfg"):
            (Path(folder) / name).symlink_to(checkout / name)
        # Copied, not linked: pytest would follow the link, and find our own tests' settings there.
        shutil.copy(HERE / "layers.py", folder)
        paths = [str(ROOT), str(ROOT / "tests"), str(HERE), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"),
        }
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider"]
        command += ["-p", "autoflow_plugin", *TESTS, *sys.argv[2:]]
        return subprocess.call(command, cwd=folder, env=environment)


if __name__ == "__main__":
    sys.exit(main())
