# SPDX-License-Identifier: Apache-2.0
"""On real CT with simulated dose the bundle learns, without pairs, to take noise out; the low band stays."""

from __future__ import annotations

import json

import pytest

from monai_labelfx.cli import main
from monai_labelfx.data import head_ct


@pytest.mark.slow
def test_takes_noise_out_of_a_real_slice(tmp_path):
    datalist = head_ct(tmp_path / "data")
    common = ["--preset", "small", "--no-progress", "--datalist", str(datalist), "--level", "5", "--max_epochs", "3"]
    common += ["--val_interval", "3", "--noise_medium", "[0, 80]", "--noise_patch", "24"]
    assert main(["run", "patch_metric", "train", "--out", str(tmp_path / "run"), *common]) == 0
    found = {}
    for strength in (0, 1):
        out = tmp_path / f"strength{strength}"
        model = ["--ckpt_path", str(tmp_path / "run" / "models" / "model.pt")]
        options = [*common, *model, "--strength", str(strength), "--save_predictions", "false"]
        assert main(["run", "patch_metric", "evaluate", "--out", str(out), *options]) == 0
        found[strength] = json.loads((out / "metrics.json").read_text())
    assert found[1]["noise_ratio"] < found[0]["noise_ratio"]
    assert found[0]["hu_low_band"] == 0 and found[1]["hu_low_band"] < 1e-2
