# SPDX-License-Identifier: Apache-2.0
"""What the tests of the detection bundle share: how they call it, at a size of seconds."""

from __future__ import annotations

import json
from pathlib import Path

from monai_labelfx.cli import main

TINY = {
    "backbone": "{'depth': 10, 'features': 8}",
    "vgg": "{'features': 4}",
    "darknet": "{'features': 4}",
    "ssd_size": "64",
    "pyramid_channels": "8",
    "first_level": "2",
    "extra_levels": "0",
    "head_depth": "1",
    "image_size": "null",
    "num_classes": "2",
    "batch_size": "2",
    "max_epochs": "1",
    "warmup_epochs": "0",
    "seed": "5",
}
VOLUMES = {"patch_size": "[24, 24, 24]", "window_size": "[24, 24, 24]", "ssd_size": "32"}
KEEP_ALL = json.dumps(["$@detector.set_box_selector_parameters(score_thresh=0, detections_per_img=5)"])
"""``detector_ops`` with which also an untrained network finds something."""


def options(**values: str) -> list[str]:
    """The options of a small network, with changes."""
    return [part for name, value in {**TINY, **values}.items() for part in (f"--{name}", value)]


def call(workflow: str, out: Path, *arguments: str) -> int:
    """Run a workflow of the bundle; returns the exit status."""
    return main(["run", "cxr_detection", workflow, "--out", str(out), "--no-progress", *map(str, arguments)])


def run(workflow: str, out: Path, datalist: Path, *arguments: str, **values: str) -> None:
    """Train or evaluate a small network."""
    assert call(workflow, out, "--datalist", datalist, *arguments, *options(**values)) == 0


def metrics(folder: Path) -> dict[str, float]:
    """What a run measured."""
    return json.loads((folder / "metrics.json").read_text())
