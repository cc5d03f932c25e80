# SPDX-License-Identifier: Apache-2.0
"""labelfx compare."""

from __future__ import annotations

import json

import pytest
import yaml

from monai_labelfx.cli import main
from monai_labelfx.commands.compare import summary
from monai_labelfx.commands.run import comparison_layout, comparison_plan


def _rows(folder):
    return {row["run"]: row for row in json.loads((folder / "table.json").read_text())["rows"]}


def test_methods_and_seeds_end_in_one_table(bundle, data, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["compare", str(bundle), "--dataset_dir", str(data), "--seeds", "0", "1", "--out", str(out)]
    assert main([*arguments, "--max_epochs", "1", "--no-progress"]) == 0
    assert "Mean +- standard error over 2 seeds." in capsys.readouterr().out
    runs = {
        name: [json.loads((out / f"seed_{s}" / folder / "metrics.json").read_text())["accuracy"] for s in (0, 1)]
        for name, folder in {"toy": "toy", "heavy": "heavy", "twice": "twice/02_second"}.items()
    }
    assert {name: row["accuracy"] for name, row in _rows(out).items()} == {n: summary(v) for n, v in runs.items()}
    assert main([*arguments, "--max_epochs", "1", "--no-progress"]) == 0
    assert " done in " not in capsys.readouterr().out, "nothing is run twice"


def test_the_bundle_chooses_columns_and_intervals_follow(bundle, data, tmp_path, monkeypatch):
    layout = "rows: {toy: Toy}\ncolumns: {accuracy: Accuracy}\nnote: Of a toy.\n"
    (bundle / "configs" / "comparison.yaml").write_text(layout)
    read = {"accuracy": 0.5, "accuracy_low": 0.25, "accuracy_high": 0.75, "other": 1.0}
    for module in ("table", "plan"):
        monkeypatch.setattr(f"monai_labelfx.commands.{module}.read_metrics", lambda folder: read)
    out = tmp_path / "out"
    arguments = ["--rivals", "toy", "--dataset_dir", str(data), "--out", str(out), "--max_epochs", "1"]
    assert main(["compare", str(bundle), *arguments, "--no-progress"]) == 0
    assert _rows(out) == {"Toy": {"run": "Toy", "Accuracy": "0.500 [0.250, 0.750]"}}
    assert json.loads((out / "table.json").read_text())["note"] == "One seed, 0. Of a toy."
    assert _rows(out / "seed_0") == {"toy": {"run": "toy", "Accuracy": 0.5}}, "the table of labelfx run evaluate"


TABLES = """
rows: {heavy: Heavy}
tables:
  - {title: One, columns: {accuracy: Accuracy}}
  - {title: Two, columns: {accuracy: Accuracy, mask: Mask}}
  - {title: Three, columns: {mask: Mask}}
  - {title: Nothing, columns: {absent: Absent}}
note: Of a toy.
"""


def test_several_tables_with_the_runs_that_have_their_metrics(bundle, data, tmp_path, monkeypatch, capsys):
    (bundle / "configs" / "comparison.yaml").write_text(TABLES)
    read = {"toy": {"accuracy": 0.5}, "heavy": {"accuracy": 0.75, "mask": 0.25, "mask_low": 0.0, "mask_high": 0.5}}
    for module in ("table", "plan"):
        monkeypatch.setattr(f"monai_labelfx.commands.{module}.read_metrics", lambda folder: read[folder.name])
    out = tmp_path / "out"
    arguments = ["--rivals", "toy", "heavy", "--dataset_dir", str(data), "--out", str(out), "--max_epochs", "1"]
    assert main(["compare", str(bundle), *arguments, "--no-progress"]) == 0
    toy, heavy = {"run": "toy", "Accuracy": "0.500"}, {"run": "Heavy", "Accuracy": "0.750"}
    mask = {"Mask": "0.250 [0.000, 0.500]"}
    assert json.loads((out / "table.json").read_text()) == {
        "note": "One seed, 0. Of a toy.",
        "tables": [
            {"title": "One", "rows": [heavy, toy]},
            {"title": "Two", "rows": [{**heavy, **mask}, {**toy, "Mask": None}]},
            {"title": "Three", "rows": [{"run": "Heavy", **mask}]},
        ],
    }
    text = (out / "table.md").read_text()
    assert text in capsys.readouterr().out
    assert all(f"**{title}**\n\n| run" in text for title in ("One", "Two", "Three")) and "Nothing" not in text
    seed = json.loads((out / "seed_0" / "table.json").read_text())["tables"]
    assert seed[2] == {"title": "Three", "rows": [{"run": "heavy", "Mask": 0.25}]}, "the tables of labelfx run evaluate"


def test_rows_are_in_the_order_of_the_layout(bundle):
    def rows(*names):
        return list(comparison_plan(bundle, names, "evaluate", [], {})["table"]["rows"].values())

    assert rows("toy", "heavy", "twice") == ["toy", "heavy", "twice"]
    (bundle / "configs" / "comparison.yaml").write_text(
        "rows: {twice: A, planned: B, toy: C}\ncolumns: {accuracy: D}\n"
    )
    assert rows("toy", "heavy", "twice") == ["twice", "toy", "heavy"]
    assert rows("heavy", "toy") == ["toy", "heavy"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("column: {a: A}", "unknown key 'column', expected some of columns, note, rows, tables"),
        ("tables: [{title: A}]", "a table is {'title': 'A'}, expected a mapping with a title and columns"),
        ("tables: [{title: A, columns: {}}]", "expected a mapping with a title and columns"),
        ("tables: [accuracy]", "a table is 'accuracy'"),
    ],
)
def test_an_unusable_layout_is_refused(bundle, content, reason):
    (bundle / "configs" / "comparison.yaml").write_text(content)
    with pytest.raises(ValueError, match=reason.replace("{", r"\{")):
        comparison_layout(bundle)


def _config(out, name, workflow="train"):
    return yaml.safe_load((out / "seed_0" / name / f"config_{workflow}.yaml").read_text())


def test_overrides_for_one_rival_and_of_keys_that_others_lack(bundle, data, tmp_path, capsys):
    (bundle / "configs" / "rivals" / "heavy.yaml").write_text("weight: 10.0\nsize: 1\n")
    out = tmp_path / "out"
    common = ["compare", str(bundle), "--dataset_dir", str(data), "--out", str(out), "--no-progress"]
    common += ["--max_epochs", "1", "--size", "4", "--rivals", "heavy", "toy", "twice"]
    assert main([*common, "--for", "heavy", "weight=2", "--for", "twice", "weight=3"]) == 0
    heavy, toy = _config(out, "heavy"), _config(out, "toy")
    assert (heavy["weight"], heavy["size"], toy["weight"]) == (2, 4, 1.0) and "size" not in toy
    assert _config(out, "heavy", "evaluate")["weight"] == 2
    assert [_config(out, f"twice/{stage}")["weight"] for stage in ("01_first", "02_second")] == [3, 3]
    capsys.readouterr()
    assert main([*common, "--for", "heavy", "weight=5", "max_epochs=2", "--for", "twice", "weight=3"]) == 0
    printed = capsys.readouterr().out
    assert (_config(out, "heavy")["weight"], _config(out, "heavy")["max_epochs"]) == (5, 2)
    assert printed.count("has changed") == 2 and printed.count("complete, skipped") == 5, "only what changed runs again"


def test_a_metric_that_some_runs_lack():
    assert summary([None, 0.25, float("nan")]) == "0.250"
    assert summary([None]) is None
    assert summary([0.0, 1.0], [(0.0, 0.5), (0.5, 1.0)]) == "0.500 ± 0.500 [0.250, 0.750]"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--seed", "1"], "use --seeds"),
        (["--epoch", "3"], "no configuration has the identifier 'epoch'"),
        (["--rivals", "nobody"], "has no rival 'nobody'"),
        (
            ["--for", "nobody", "weight=1"],
            "--for names 'nobody', which is not compared: expected one of toy, heavy, twice",
        ),
        (["--for", "heavy"], "--for heavy: expected ID=VALUE"),
        (["--for", "heavy", "weight"], "--for heavy weight: expected ID=VALUE"),
        (["--for", "heavy", "weigth=1"], "no configuration has the identifier 'weigth'"),
        (["--for", "heavy", "seed=1"], "use --seeds"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(bundle, data, capsys, arguments, reason):
    assert main(["compare", str(bundle), "--dataset_dir", str(data), *arguments]) == 1
    assert reason in capsys.readouterr().err
