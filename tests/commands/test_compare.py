# SPDX-License-Identifier: Apache-2.0
"""labelfx compare."""

from __future__ import annotations

import json

import pytest

from monai_labelfx.cli import main
from monai_labelfx.commands.compare import summary


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
    monkeypatch.setattr("monai_labelfx.commands.table.read_metrics", lambda folder: read)
    out = tmp_path / "out"
    arguments = ["--rivals", "toy", "--dataset_dir", str(data), "--out", str(out), "--max_epochs", "1"]
    assert main(["compare", str(bundle), *arguments, "--no-progress"]) == 0
    assert _rows(out) == {"Toy": {"run": "Toy", "Accuracy": "0.500 [0.250, 0.750]"}}
    assert json.loads((out / "table.json").read_text())["note"] == "One seed, 0. Of a toy."
    assert _rows(out / "seed_0") == {"toy": {"run": "toy", "Accuracy": 0.5}}, "the table of labelfx run evaluate"


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
    ],
)
def test_what_cannot_be_compared_is_one_sentence(bundle, data, capsys, arguments, reason):
    assert main(["compare", str(bundle), "--dataset_dir", str(data), *arguments]) == 1
    assert reason in capsys.readouterr().err
