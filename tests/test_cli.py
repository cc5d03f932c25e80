# SPDX-License-Identifier: Apache-2.0
"""The command line: cheap to start, overrides, exit codes and one-sentence errors."""

from __future__ import annotations

import subprocess
import sys

import pytest

from monai_labelfx import __version__
from monai_labelfx.cli import COMMANDS, OverrideParser, build_parser, main


def test_help_imports_neither_torch_nor_monai():
    code = (
        "import sys, monai_labelfx.cli as cli\n"
        "for arguments in (['--help'], *([name, '--help'] for name in cli.COMMANDS)):\n"
        "    try: cli.main(arguments)\n"
        "    except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'monai', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert all(name in done.stdout for name in COMMANDS)


def test_every_command_is_described(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    described = [line.split()[0] for line in text.splitlines() if line.startswith("    ") and line[4:5].strip()]
    assert len(COMMANDS) == 11 and described == list(COMMANDS)


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.strip() == f"labelfx {__version__}"


@pytest.mark.parametrize("arguments", [[], ["fly"], ["list", "--fly", "high"], ["run"], ["run", "a", "--alpha"]])
def test_wrong_usage_exits_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: labelfx" in capsys.readouterr().err


def test_overrides_are_kept_apart_from_options():
    args = build_parser().parse_args(
        ["run", "x", "evaluate", "--alpha", "-1", "--a#b=[1, 2]", "--preset", "p", "q", "--none", "", "--out", "o"]
    )
    assert (args.bundle, args.workflow, args.preset, str(args.out)) == ("x", "evaluate", ["p", "q"], "o")
    assert args.overrides == {"alpha": "-1", "a#b": "[1, 2]", "none": ""}


def test_an_override_before_a_positional_does_not_swallow_it():
    parser = OverrideParser()
    parser.add_argument("name")
    assert vars(parser.parse_args(["--x", "1", "n"])) == {"name": "n", "overrides": {"x": "1"}}


def test_a_failure_is_one_sentence_and_exit_code_1(capsys):
    assert main(["run", "no_such_bundle"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("labelfx run: no bundle 'no_such_bundle'") and error.count("\n") == 1


def test_debug_raises():
    with pytest.raises(ValueError, match="no bundle"):
        main(["run", "no_such_bundle", "--debug"])


def test_interrupt(monkeypatch, capsys):
    from monai_labelfx.commands import list_bundles

    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(list_bundles, "main", interrupt)
    assert main(["list"]) == 130
    assert "interrupted" in capsys.readouterr().err
