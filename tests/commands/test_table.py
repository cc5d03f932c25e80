# SPDX-License-Identifier: Apache-2.0
"""Tables of metrics."""

from __future__ import annotations

import json
import math

import pytest

from monai_labelfx.commands.table import Table, compare_runs, format_cell, format_table, read_metrics, save_tables


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
    assert read_metrics(tmp_path / "a") == {"ap": 0.5, "psnr": 20.5}
    runs = {name: read_metrics(tmp_path / folder) for name, folder in {"A": "a", "B": "b", "C": "absent"}.items()}
    assert compare_runs(runs) == [(["run", "ap", "psnr"], [["A", 0.5, 20.5], ["B", None, None], ["C", None, None]], "")]
    tables = compare_runs(runs, {"columns": {"psnr": "PSNR (dB)"}})
    assert tables == [(["run", "PSNR (dB)"], [["A", 20.5], ["B", None], ["C", None]], "")]
    save_tables(tmp_path, tables, "a note")
    assert (tmp_path / "table.md").read_text().endswith("a note\n")
    content = json.loads((tmp_path / "table.json").read_text())
    assert set(content) == {"note", "rows"} and content["rows"][0] == {"run": "A", "PSNR (dB)": 20.5}


BOXES, MASKS = ({"title": kind, "columns": {f"{kind}_AP": "AP"}} for kind in ("boxes", "masks"))


def test_a_titled_table_has_the_runs_with_its_metrics(tmp_path):
    runs = {"one": {"boxes_AP": 0.5, "loss": 3.0}, "two": {"boxes_AP": 0.0, "masks_AP": 0.75}, "three": {"loss": 1.0}}
    boxes, masks = compare_runs(runs, {"tables": [BOXES, MASKS]})
    assert boxes == (["run", "AP"], [["one", 0.5], ["two", 0.0]], "boxes")
    assert masks == (["run", "AP"], [["two", 0.75]], "masks")
    text = save_tables(tmp_path, [boxes, masks])
    assert text.startswith("**boxes**\n\n| run |") and "\n\n**masks**\n\n| run |" in text
    assert (tmp_path / "table.md").read_text() == f"{text}\n"
    assert json.loads((tmp_path / "table.json").read_text()) == {
        "note": "",
        "tables": [
            {"title": "boxes", "rows": [{"run": "one", "AP": 0.5}, {"run": "two", "AP": 0.0}]},
            {"title": "masks", "rows": [{"run": "two", "AP": 0.75}]},
        ],
    }


def test_tables_without_a_run_are_left_out_and_plain_columns_stay(tmp_path):
    runs = {"one": {"boxes_AP": 0.5}, "two": {}}
    assert compare_runs(runs, {"tables": [BOXES, MASKS]}) == [(["run", "AP"], [["one", 0.5]], "boxes")]
    plain, boxes = compare_runs(runs, {"columns": ["masks_AP"], "tables": [BOXES]})
    assert plain == (["run", "masks_AP"], [["one", None], ["two", None]], "") and boxes.title == "boxes"
    save_tables(tmp_path, [plain, boxes])
    content = json.loads((tmp_path / "table.json").read_text())
    assert len(content["rows"]) == 2 and [table["title"] for table in content["tables"]] == ["boxes"]
    with pytest.raises(ValueError, match="no run has a value for the tables 'masks'"):
        compare_runs(runs, {"tables": [MASKS]})
    assert save_tables(tmp_path, [Table(["a"], [])]) == "| a  |\n| :- |"
