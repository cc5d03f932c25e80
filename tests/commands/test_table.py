# SPDX-License-Identifier: Apache-2.0
"""Tables of metrics."""

from __future__ import annotations

import json
import math

import pytest

from monai_labelfx.commands.table import compare_runs, format_cell, format_table, read_metrics, save_table


def test_columns_are_aligned_and_pipes_escaped():
    lines = format_table(["name", "n"], [["a|b\nc", 3], ["d", None]]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[2] == r"| a\|b c |  3 |" and lines[1] == "| :----- | -: |"


def test_empty_table():
    assert format_table(["a", "b"], []).count("\n") == 1


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (math.nan, "-"), (0.12345, "0.1235"), (1200.0, "1200"), (3, "3"), (1.0, "1.0000")]
)
def test_cells(value, text):
    assert format_cell(value) == text


def test_runs_are_compared_by_their_metrics(tmp_path):
    for name, metrics in {"a": {"ap": 0.5, "psnr": 20.5, "note": "x"}, "b": {"ap": None, "dice": True}}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text(json.dumps(metrics))
    runs = {"A": tmp_path / "a", "B": tmp_path / "b", "C": tmp_path / "absent"}
    assert read_metrics(tmp_path / "a") == {"ap": 0.5, "psnr": 20.5}
    assert compare_runs(runs) == (["run", "ap", "psnr"], [["A", 0.5, 20.5], ["B", None, None], ["C", None, None]])
    head, rows = compare_runs(runs, {"psnr": "PSNR (dB)"})
    assert head == ["run", "PSNR (dB)"] and rows[0] == ["A", 20.5]
    save_table(tmp_path, head, rows, "a note")
    assert (tmp_path / "table.md").read_text().endswith("a note\n")
    assert json.loads((tmp_path / "table.json").read_text())["rows"][0] == {"run": "A", "PSNR (dB)": 20.5}
