# SPDX-License-Identifier: Apache-2.0
"""labelfx demo."""

from __future__ import annotations

import json

import pytest

from monai_labelfx.cli import main
from monai_labelfx.commands.demo import collect_outputs


def test_demo_leaves_metrics_picture_prediction_and_report(bundle, tmp_path, capsys):
    out = tmp_path / "out"
    before = {f: f.stat().st_mtime_ns for f in bundle.rglob("*")}
    assert main(["demo", str(bundle), "--out", str(out)]) == 0
    assert set(json.loads((out / "metrics.json").read_text())) == {"toy/train_loss", "toy_test/accuracy"}
    assert (out / "overview.png").read_bytes() == (out / "toy_test" / "overview.png").read_bytes()
    assert (out / "report.html").is_file() and (out / "table.md").is_file()
    text = capsys.readouterr().out
    assert "| Toy |" in text and "A toy, to show that the commands work." in text
    assert f"predictions {out / 'predictions'}" in text
    assert {f: f.stat().st_mtime_ns for f in bundle.rglob("*")} == before, "a demo writes nothing into the bundle"
    assert main(["demo", str(bundle), "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("complete, skipped") == 4


def test_default_folder_and_choice(bundle, tmp_path):
    assert main(["demo", str(bundle), "--data", "larger"]) == 0
    assert (tmp_path / "runs" / "demo" / "toy" / "metrics.json").is_file()


def test_what_is_missing_is_named(tmp_path):
    step = tmp_path / "step"
    (step / "models").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no step of the demo wrote metrics\.json"):
        collect_outputs(tmp_path, {"step": step})
    (step / "metrics.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"left no picture \(\*\.png\)"):
        collect_outputs(tmp_path, {"step": step})
    (step / "a.png").touch()
    (step / "models" / "a.npz").touch()
    with pytest.raises(ValueError, match="left no prediction"):
        collect_outputs(tmp_path, {"step": step})
    (step / "a.nii.gz").touch()
    assert collect_outputs(tmp_path, {"step": step})["predictions"] == step
