#!/usr/bin/env bash
# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0
#
# Runs the ArviZ seam's tests on ArviZ 1.x, which needs Python 3.12 and, here, no torch.
#
#   tests/run_arviz1.sh [VENV]        VENV: .venv-arviz1 in the repository by default
#
# The environment is made on the first run (some 460 MB) and used again as long as it is complete.
# Without a Python 3.12 to run, it says so in one line and succeeds.
set -euo pipefail

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv="${1:-$root/.venv-arviz1}"

# A pyenv shim may exist and yet fail, so a candidate counts only if it runs and is 3.12 with venv.
runs() { "$1" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info[:2] != (3, 12))' >/dev/null 2>&1; }

find_python() {
    local candidate prefix
    for candidate in python3.12 python3 python; do
        if command -v "$candidate" >/dev/null 2>&1 && runs "$candidate"; then
            command -v "$candidate"
            return 0
        fi
    done
    prefix="$(pyenv prefix 3.12 2>/dev/null || true)"
    for candidate in ${prefix:+"$prefix/bin/python"} "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python; do
        if runs "$candidate"; then
            echo "$candidate"
            return 0
        fi
    done
    return 1
}

complete() {
    "$venv/bin/python" -c 'import arviz, h5netcdf, h5py, matplotlib, pytest
assert arviz.__version__.split(".")[0] == "1"' >/dev/null 2>&1
}

if ! complete; then
    if ! python="$(find_python)"; then
        echo "ArviZ 1.x tests skipped: no Python 3.12 with venv found that runs (ArviZ 1.x needs it)."
        exit 0
    fi
    echo "making $venv with $("$python" --version)"
    # --clear wipes the folder, so it's for environments only: one cut off halfway, not others' files.
    if [ -e "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ]; then
        echo "Expected a virtual environment or nothing at $venv, got something else: name another path." >&2
        exit 2
    fi
    "$python" -m venv --clear "$venv"
    echo "*" >"$venv/.gitignore"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
        -c "$root/constraints.txt" "arviz>=1,<2" matplotlib h5netcdf h5py pytest
    complete || { echo "The environment at $venv is incomplete after installing: see pip's output." >&2; exit 1; }
fi

# No conftest, no configuration: both may import torch. Warnings are errors, as in the whole suite.
cd "$root"
exec "$venv/bin/python" -m pytest -q -p no:cacheprovider --noconftest -c /dev/null \
    --rootdir "$root" -W error tests/diagnostics/test_arviz_*.py
