# SPDX-License-Identifier: Apache-2.0
"""labelfx run."""

from __future__ import annotations

import json

import pytest
import yaml

from monai_labelfx.cli import main


def _history(folder):
    return json.loads((folder / "history.json").read_text())["train_loss"]


def test_train_evaluate_inference(bundle, data, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["--dataset_dir", str(data), "--out", str(out)]
    assert main(["run", str(bundle), *arguments, "--preset", "wide", "--train#trainer#max_epochs", "3"]) == 0
    assert len(_history(out)) == 3
    assert main(["run", str(bundle), "evaluate", *arguments, "--preset", "wide"]) == 0
    assert set(json.loads((out / "metrics.json").read_text())) == {"accuracy"}
    assert (out / "overview.png").is_file()
    weights = ["--ckpt_path", str(out / "models" / "model.pt")]
    inference = ["run", str(bundle), "inference", "--preset", "wide", "--dataset_dir", str(data), *weights]
    assert main([*inference, "--output_dir", str(tmp_path / "results")]) == 0
    assert len(list((tmp_path / "results").glob("*.nii.gz"))) == 3
    assert capsys.readouterr().out.endswith(f"output is in {tmp_path / 'results'}\n")


def test_the_default_folder_is_runs_name(bundle, data, tmp_path):
    assert main(["run", str(bundle), "--dataset_dir", str(data), "--max_epochs", "1"]) == 0
    assert len(_history(tmp_path / "runs" / "toy")) == 1
    assert main(["run", str(bundle), "--dataset_dir", str(data), "--max_epochs", "1", "--rival", "heavy"]) == 0
    heavy, toy = _history(tmp_path / "runs" / "toy-heavy"), _history(tmp_path / "runs" / "toy")
    assert heavy[0][1] == pytest.approx(10 * toy[0][1], rel=1e-3), "the rival weighs its loss by ten"


def test_all_rivals_end_in_a_table(bundle, data, tmp_path, capsys):
    arguments = ["--dataset_dir", str(data), "--out", str(tmp_path / "out"), "--rivals", "all"]
    assert main(["run", str(bundle), *arguments]) == 0
    capsys.readouterr()
    assert main(["run", str(bundle), "evaluate", *arguments]) == 0
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert [row["run"] for row in rows] == ["toy", "heavy", "twice"]
    assert all(0 <= row["accuracy"] <= 1 for row in rows)
    assert "| twice |" in capsys.readouterr().out


def test_stages_run_in_order_and_complete_ones_are_skipped(bundle, data, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["run", str(bundle), "--dataset_dir", str(data), "--out", str(out), "--stages", "twice"]
    assert main(arguments) == 0
    first, second = out / "twice" / "01_first", out / "twice" / "02_second"
    assert len(_history(first)) == 1 and len(_history(second)) == 2
    config = yaml.safe_load((second / "config_train.yaml").read_text())
    assert config["stages_dir"] == str(out / "twice")
    assert _history(second)[0][1] < _history(first)[0][1], "the second stage starts from the weights of the first"
    capsys.readouterr()
    assert main(arguments) == 0
    assert capsys.readouterr().out.count("complete, skipped") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "huge"], "no 'huge' in configs/presets"),
        (["--rival", "huge"], "no rival 'huge': it has heavy, twice"),
        (["--stages"], "no stages '' in configs/stages: its plans are twice"),
        (["--stages", "twice", "--rival", "heavy"], "exclude each other"),
        (["--max_epoch", "1"], "did you mean 'max_epochs'"),
        (["--dataset_dir", "absent"], "absent"),
        (["--train#trainer#epochs", "1"], "epochs"),
    ],
)
def test_mistakes_are_one_sentence(bundle, data, arguments, message, capsys):
    assert main(["run", str(bundle), "--dataset_dir", str(data), *arguments]) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("labelfx run: ") and message in error and "Failed to" not in error


def test_a_sweep_runs_every_combination_and_ends_in_a_table(bundle, data, tmp_path, capsys):
    sweeps = bundle / "configs" / "sweeps"
    sweeps.mkdir()
    (sweeps / "length.yaml").write_text("max_epochs: [1, 2]\nseed: [0, 1]\n")
    (sweeps / "broken.yaml").write_text("max_epochs: 3\n")
    arguments = ["run", str(bundle), "--dataset_dir", str(data), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--sweep", "length"]) == 0
    lengths = {f.name: len(_history(f)) for f in (tmp_path / "out").iterdir() if f.is_dir()}
    assert lengths == {f"max_epochs={n}_seed={s}": n for n in (1, 2) for s in (0, 1)}
    rows = json.loads((tmp_path / "out" / "table.json").read_text())["rows"]
    assert [row["run"] for row in rows] == [f"max_epochs={n}_seed={s}" for n in (1, 2) for s in (0, 1)]
    assert main([*arguments, "--sweep", "broken"]) == 1
    assert "expected a list of values" in capsys.readouterr().err
