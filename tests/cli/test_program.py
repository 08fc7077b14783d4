# Copyright Contributors to the pyro_flows project.
# SPDX-License-Identifier: Apache-2.0

"""The program as a whole: help, exit codes, errors without a traceback, what goes where."""

import argparse
import json
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import pyro_flows
from pyro_flows.cli import main
from pyro_flows.cli.program import build_parser

ROOT = Path(__file__).parents[2]


def parsers(parser, name=""):
    """Every command with its parser."""
    yield name, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for own, command in action.choices.items():
                yield from parsers(command, f"{name} {own}".strip())


COMMANDS = dict(parsers(build_parser()))


def python(code, *, stdout=subprocess.PIPE, **env):
    return subprocess.run(
        [sys.executable, "-c", code] if isinstance(code, str) else [sys.executable, *code],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", **env},
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
    )


class TestHelp:
    def test_all_commands_are_there(self):
        names = ["demo", "fit", "report", "density", "flows", "check"]
        assert set(COMMANDS) == {
            "",
            *names,
            *(f"density {own}" for own in ("fit", "score", "sample")),
        }

    @pytest.mark.parametrize("name", [name for name in COMMANDS if name])
    def test_it_teaches(self, name, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        text = COMMANDS[name].format_help()
        assert f"examples:\n  pyro-flows {name}" in text
        assert max(map(len, text.splitlines())) <= 80
        if name != "density":  # which only gathers its commands
            assert "print" in text.lower()
            assert "--traceback" in text
            assert "--output" not in text or "write" in text.lower() or "goes there" in text

    @pytest.mark.parametrize("name", [name for name in COMMANDS if name])
    def test_its_examples_can_be_parsed(self, name):
        examples = COMMANDS[name].format_help().partition("examples:\n")[2].splitlines()
        assert examples
        for line in examples:
            words = line.split("   ")[0].partition(" | ")[0].partition(" > ")[0].split()
            assert words[0] == "pyro-flows"
            build_parser().parse_args(words[1:])

    def test_the_program_lists_commands_and_exit_codes(self, capsys):
        assert main([]) == 2
        text = capsys.readouterr().out
        for name in ("demo", "fit", "report", "density", "flows", "check"):
            assert f"\n    {name} " in text
        for code in (0, 1, 2, 3, 130):
            assert f"\n  {code} " in text

    def test_it_waits_for_no_torch(self):
        done = python(
            "import sys\n"
            "from pyro_flows.cli import main\n"
            "try:\n    main(['fit', '--help'])\n"
            "except SystemExit as end:\n    assert end.code == 0\n"
            "heavy = {'torch', 'pyro', 'arviz', 'numpy', 'pandas', 'matplotlib'}\n"
            "sys.exit(str(heavy & set(sys.modules)) if heavy & set(sys.modules) else 0)\n"
        )
        assert done.returncode == 0, done.stderr
        assert "pyro-flows fit schools.py:schools" in done.stdout

    @pytest.mark.parametrize("module", ["pyro_flows", "pyro_flows.cli"])
    def test_as_a_module(self, module):
        done = python(["-m", module, "--version"])
        assert done.returncode == 0
        assert done.stdout == f"pyro_flows {pyro_flows.__version__}\n"
        assert done.stderr == ""


class TestErrors:
    def test_usage(self, capsys):
        for words in (["fit"], ["nosuch"], ["density"], ["flows", "--seed", "1"]):
            with pytest.raises(SystemExit) as ended:
                main(words)
            assert ended.value.code == 2
            assert "usage: pyro-flows" in capsys.readouterr().err

    @pytest.mark.parametrize(
        "words",
        [
            ["--seed", "-1"],
            ["--num-steps", "0"],
            ["--num-steps", "many"],
            ["--set", "x"],
            ["--columns", "=a,b"],
            ["--dtype", "float16"],
            ["--draws", "1"],
        ],
    )
    def test_values_of_options(self, words, capsys):
        with pytest.raises(SystemExit) as ended:
            main(["fit", "a.py:b", *words])
        assert ended.value.code == 2
        assert words[0] in capsys.readouterr().err

    def test_a_sentence_and_no_traceback(self, capsys):
        assert main(["flows", "nfs"]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("pyro-flows: error: Expected the name of a registered flow")
        assert "Did you mean 'nsf'?" in err
        assert "Traceback" not in err

    def test_the_traceback_on_request(self, capsys, monkeypatch):
        assert main(["flows", "nfs", "--traceback"]) == 1
        err = capsys.readouterr().err
        assert "Traceback (most recent call last)" in err
        assert "\npyro-flows: error: Expected the name" in err
        monkeypatch.setenv("PYRO_FLOWS_TRACEBACK", "1")
        main(["flows", "nfs"])
        assert "Traceback" in capsys.readouterr().err
        monkeypatch.setenv("PYRO_FLOWS_TRACEBACK", "0")
        main(["flows", "nfs"])
        assert "Traceback" not in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (ValueError("odd"), "ValueError: odd\nSay --traceback to see where it happened."),
            (RuntimeError(), "error: RuntimeError\n"),
            (PermissionError(13, "Permission denied", "out.csv"), "Permission denied (out.csv)."),
        ],
    )
    def test_what_nobody_expected(self, error, words, capsys, monkeypatch):
        def fail(*_):
            raise error

        monkeypatch.setattr("pyro_flows.flows.available", fail)
        assert main(["flows"]) == 1
        err = capsys.readouterr().err
        assert words in err
        assert "Traceback" not in err

    def test_ctrl_c(self, capsys, monkeypatch):
        def interrupt():
            raise KeyboardInterrupt

        monkeypatch.setattr("pyro_flows.flows.available", interrupt)
        assert main(["flows"]) == 130
        assert capsys.readouterr().err.startswith("pyro-flows: error: interrupted")

    def test_warnings_are_sentences(self, capsys, monkeypatch):
        def warn():
            warnings.warn("mind the gap", UserWarning, stacklevel=1)
            return {"a": "b"}

        monkeypatch.setattr("pyro_flows.flows.available", warn)
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            assert main(["flows"]) == 0
        assert capsys.readouterr().err == "pyro-flows: warning: mind the gap\n"


class TestFlows:
    def test_the_list(self, capsys):
        assert main(["flows"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == list(pyro_flows.flows.available())

    def test_one(self, capsys):
        assert main(["flows", "nsf"]) == 0
        out = capsys.readouterr().out
        assert "options: layers=10" in out
        assert "https://arxiv.org/abs/1906.04032" in out

    def test_for_programs(self, capsys):
        assert main(["flows", "nsf", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["year"] == 2019
        assert found["options"]["layers"] == "10"
        assert main(["flows", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == pyro_flows.flows.available()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs pipes of Unix")
def test_a_reader_who_goes_away_is_no_error():
    read, write = os.pipe()
    os.close(read)
    try:
        done = python(["-m", "pyro_flows", "flows"], stdout=write)
    finally:
        os.close(write)
    assert done.returncode == 0
    assert done.stderr == ""


def test_signs_that_the_screen_lacks_are_no_error():
    code = "from pyro_flows.cli.console import Console\nConsole().say('1 \\xb1 2')\n"
    done = python(code, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert (done.returncode, done.stdout) == (0, "1 ? 2\n")


class TestCheck:
    def test_all_is_well(self, capsys):
        assert main(["check", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        states = {row["check"]: row["state"] for row in found["checks"]}
        assert found["failed"] == 0
        for name in ("python", "torch", "fit", "save, load", "netCDF", "picture", "report"):
            assert states[name] == "ok"

    def test_what_fails_is_said_and_the_rest_goes_on(self, capsys, monkeypatch):
        def fail(*_, **__):
            raise RuntimeError("no fit today\nmore")

        monkeypatch.setattr("pyro_flows.FlowVI.run", fail)
        assert main(["check"]) == 1
        out = capsys.readouterr().out
        assert "FAILED  fit          RuntimeError: no fit today\n" in out
        assert "FAILED  netCDF       there is no fit to try it on\n" in out
        assert "ok      density " in out
        assert "5 of 19 FAILED" in out


def test_the_pages_commands_can_be_parsed():
    page = (ROOT / "docs" / "how-to" / "command_line.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)
    lines = [line for line in "".join(blocks).splitlines() if line.startswith("pyro-flows")]
    assert len(lines) >= 6
    for line in lines:
        build_parser().parse_args(line.partition("#")[0].split()[1:])
    options = {name for parser in COMMANDS.values() for name in parser._option_string_actions}
    assert set(re.findall(r"`(--[a-z-]+)", page)) <= options
