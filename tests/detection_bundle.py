# SPDX-License-Identifier: Apache-2.0
"""What the tests of the detection bundle share: how they call it, at a size of seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser

from monai_labelfx.cli import main
from monai_labelfx.commands.bundle_folder import config_file, find_bundle, rivals

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
HEADS = {
    "rpn_samples": "32",
    "roi_samples": "16",
    "pool_size": "3",
    "head_channels": "16",
    "mask_pool": "4",
    "mask_channels": "8",
    "attention_size": "4",
    "base_size": "12",
    "base_channels": "8",
    "solo_size": "64",
    "solo_channels": "16",
}
"""What only some rivals have."""
VOLUMES = {"patch_size": "[24, 24, 24]", "window_size": "[24, 24, 24]", "ssd_size": "32"}
KEEP_ALL = json.dumps(["$@detector.set_box_selector_parameters(score_thresh=0, detections_per_img=5)"])
"""``detector_ops`` with which also an untrained network finds something."""


def options(**values: str) -> list[str]:
    """The options of a small network, with changes."""
    return [part for name, value in {**TINY, **values}.items() for part in (f"--{name}", value)]


def heads(*names: str) -> dict[str, str]:
    """Those of :py:data:`HEADS` that any of these rivals, or of ``all``, has."""
    bundle = find_bundle("cxr_detection")
    files = [config_file(bundle, name, "rivals") for name in rivals(bundle) if {name, "all"} & set(names)]
    found = {key for file in files for key in ConfigParser.load_config_file(file)}
    return {name: value for name, value in HEADS.items() if name in found}


def call(workflow: str, out: Path, *arguments: str) -> int:
    """Run a workflow of the bundle; returns the exit status."""
    return main(["run", "cxr_detection", workflow, "--out", str(out), "--no-progress", *map(str, arguments)])


def run(workflow: str, out: Path, datalist: Path, *arguments: str, **values: str) -> None:
    """Train or evaluate a small network."""
    assert call(workflow, out, "--datalist", datalist, *arguments, *options(**values)) == 0


def compare(out: Path, datalist: Path, names: list[str], seeds: list[str], *arguments: str, **values: str) -> None:
    """Compare small networks."""
    small = options(**heads(*names), **values)
    place = small.index("--seed")
    asked = ["--rivals", *names, "--seeds", *seeds, "--datalist", str(datalist), "--out", str(out), "--no-progress"]
    assert main(["compare", "cxr_detection", *asked, *arguments, *small[:place], *small[place + 2 :]]) == 0


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text())


def metrics(folder: Path) -> dict[str, float]:
    """What a run measured."""
    return read_json(folder / "metrics.json")
