# SPDX-License-Identifier: Apache-2.0
"""labelfx list."""

from __future__ import annotations

import json

from monai_labelfx.cli import main


def test_text_and_json(bundle, capsys):
    assert main(["list", "--bundle-dir", str(bundle.parent)]) == 0
    text = capsys.readouterr().out
    assert "toy  (folder toy_segmentation, version 0.1.0)" in text
    assert "presets: short, wide" in text and "rivals: heavy, twice" in text
    assert main(["list", "--json", "--bundle-dir", str(bundle.parent)]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    keys = {"name", "folder", "path", "version", "task", "description", "presets", "rivals", "sweeps"}
    assert set(found) == keys and found["task"] == "Segment bright cubes"


def test_installed_and_empty(tmp_path, capsys):
    assert main(["list"]) == 0
    assert "denoiseg" in capsys.readouterr().out
    assert main(["list", "--bundle-dir", str(tmp_path)]) == 0
    assert "no bundles" in capsys.readouterr().out
