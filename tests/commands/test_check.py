# SPDX-License-Identifier: Apache-2.0
"""labelfx check."""

from __future__ import annotations

import json

import pytest

from monai_labelfx.cli import main
from monai_labelfx.commands.check import parse_labels


def test_a_good_datalist_passes(data, capsys):
    assert main(["check", str(data / "datalist.json"), "--spatial-dims", "3", "--labels", "0,1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 5 and len({len(line) for line in table}) == 1
    assert "8x8x8" in table[2] and "1x1x2" in table[2]
    assert lines[-1].startswith("3 items, 0 faults, 0 warnings")


def test_each_fault_is_one_line_and_the_exit_code_is_1(data, capsys):
    (data / "1_image.nii.gz").write_bytes(b"not an image")
    (data / "2_label.nii.gz").unlink()
    assert main(["check", str(data / "datalist.json")]) == 1
    text = capsys.readouterr().out
    assert text.count("\nfault: ") == 2 and "Traceback" not in text
    assert main(["check", str(data / "datalist.json"), "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["faults"]) == 2


def test_wrong_dimension_and_labels(data, capsys):
    assert main(["check", str(data / "datalist.json"), "--spatial-dims", "2", "--labels", "0"]) == 1
    assert capsys.readouterr().out.count("\nfault: ") == 6


def test_an_absent_datalist(tmp_path, capsys):
    assert main(["check", str(tmp_path / "absent.json")]) == 1
    assert "absent.json" in capsys.readouterr().out


def test_labels():
    assert parse_labels(None) is None
    with pytest.raises(ValueError, match="--labels is 'a,b'"):
        parse_labels("a,b")
