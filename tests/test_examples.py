# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""Every example runs, with tiny settings, as a user would run it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
OPTIONS = {"radon": ["--synthetic"]}


def run(example, folder, *options):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "Agg"}
    command = [sys.executable, str(example), "--num-steps", "5", *options]
    return subprocess.run(
        command, env=env, cwd=folder, capture_output=True, text=True, timeout=300
    )


def test_there_are_some():
    assert len(EXAMPLES) >= 4
    assert set(OPTIONS) <= {example.stem for example in EXAMPLES}


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_it_runs(example, tmp_path):
    options = OPTIONS.get(example.stem, [])
    if "--plot" in example.read_text():
        options = [*options, "--plot", "figure.png"]
    if "--netcdf" in example.read_text():
        options = [*options, "--netcdf", "fit.nc"]
    done = run(example, tmp_path, *options)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stdout.splitlines()) >= 3
    for name in ("figure.png", "fit.nc"):
        assert (tmp_path / name).exists() == (name in options)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_it_says_what_it_answers(example):
    text = example.read_text()
    head = text.split('"""')[1]
    assert head.strip().split("\n")[0].endswith("?"), "one question each"
    assert f"examples/{example.name}" in head, "and how to run it"
    assert "num-steps" in text
